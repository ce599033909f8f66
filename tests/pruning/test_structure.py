"""Which normalisation a filter feeds, and what is zero when it goes."""

from __future__ import annotations

import torch
from torch import nn

from lottery.models.resnet import resnet
from lottery.models.vgg import vgg
from lottery.pruning.structure import normalised_by, silent

SHAPE = (3, 16, 16)


def test_each_convolution_of_a_residual_network_has_its_own() -> None:
    network = resnet(shape=SHAPE, classes=4, depth=8, width=4)
    feeds = normalised_by(network, SHAPE)
    assert feeds["conv1.weight"] == "bn1"
    assert feeds["stages.0.0.conv1.weight"] == "stages.0.0.bn1"
    assert feeds["stages.1.0.shortcut.conv.weight"] == "stages.1.0.shortcut.bn"
    assert len(feeds) == sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert len(set(feeds.values())) == len(feeds)


def test_looking_changes_nothing() -> None:
    network = vgg(shape=SHAPE, classes=4, depth=11, width=4).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    normalised_by(network, SHAPE)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_comes_between_breaks_the_tie() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    assert normalised_by(network, SHAPE) == {"3.weight": "4"}


def test_a_removed_filter_takes_scale_and_shift_with_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, affine=False))
    mask = {"0.weight": torch.ones(4, 3, 1, 1, dtype=torch.bool), "2.weight": torch.zeros(2, 4, 1, 1, dtype=torch.bool)}
    mask["0.weight"][1] = False
    mask["0.weight"][2, 0] = False  # not the whole filter
    found = silent(network, mask, SHAPE)
    assert {name: alive.tolist() for name, alive in found.items()} == {
        "0.bias": [True, False, True, True],
        "2.bias": [False, False],
        "1.weight": [True, False, True, True],
        "1.bias": [True, False, True, True],
    }
