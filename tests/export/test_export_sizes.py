"""What is left of a network, by closed form; and networks with attention and concatenation (docs/methods/layers.md)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import pytest
import torch
from torch import nn

from lottery.errors import LotteryError
from lottery.models.conv import conv
from lottery.models.mlp import mlp
from lottery.models.resnet import resnet
from lottery.models.zoo import from_timm, from_torchvision
from lottery.pruning.structure import silent

pytest.importorskip("torch_pruning")
from lottery.channels.cut import widths
from lottery.channels.shrink import shrink

SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def shrunk(network: nn.Module, gone: Mapping[str, Iterable[int]], shape: tuple[int, ...] = SHAPE) -> nn.Module:
    """Without these outputs of these layers, removed as a structured search does it; its logits are compared."""
    parameters = dict(network.eval().named_parameters())
    mask = {f"{name}.weight": torch.ones_like(parameters[f"{name}.weight"], dtype=torch.bool) for name in gone}
    for name, outputs in gone.items():
        mask[f"{name}.weight"][list(outputs)] = False
    biases = {f"{name}.bias": mask[f"{name}.weight"].flatten(1).any(1) for name in gone}
    for name, kept in {**mask, **biases, **silent(network, mask, shape)}.items():
        if name in parameters:
            parameters[name].mul_(kept)
    small = shrink(network, torch.randn(4, *shape))
    unseen = 3 * torch.randn(8, *shape)
    expected = network(unseen)
    assert expected.abs().max() > 0
    assert (small(unseen) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    return small


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_linear_layers() -> None:
    small = shrunk(mlp(shape=(1, 20), classes=3, hidden=(12, 8)), {"fc1": range(5), "fc2": [0, 7]}, (1, 20))
    assert size(small) == 21 * 7 + 8 * 6 + 7 * 3


def test_the_features_of_a_flattened_channel_are_its_pixels() -> None:
    network = conv(shape=(3, 8, 8), classes=5, blocks=1)
    small = shrunk(network, {"conv1": range(60), "conv2": range(10, 64), "fc1": range(200)}, (3, 8, 8))
    # 4 and 10 filters of 3x3 with biases; 10 channels of 4x4 pixels into 56; then 256 and 5 with biases
    assert size(small) == (27 + 1) * 4 + (36 + 1) * 10 + (160 + 1) * 56 + (56 + 1) * 256 + 257 * 5


def test_filters_inside_residual_blocks() -> None:
    """Each takes 9 weights an input channel, 2 of its normalisation, and 9 an output channel of the next layer."""
    network = resnet(shape=SHAPE, classes=10, depth=20)
    gone = {f"stages.{stage}.{block}.conv1": range(4 * 2**stage) for stage in range(3) for block in range(3)}
    small = shrunk(network, gone)
    removed = 0
    for name, filters in gone.items():
        width, inputs = widths(network.get_submodule(name))
        removed += len(filters) * (9 * inputs + 2 + 9 * width)
    assert size(network) - size(small) == removed


def test_a_channel_between_residual_blocks() -> None:
    """Two makers: filters of 3x3x16 and 1x1x8, a normalisation each. Two readers: 3x3 into 32 channels, 1x1 into 32."""
    network = resnet(shape=SHAPE, classes=10, depth=8, width=8)
    small = shrunk(network, {"stages.1.0.conv2": [2, 5], "stages.1.0.shortcut.conv": [2, 5]})
    assert size(network) - size(small) == 2 * (9 * 16 + 2 + 8 + 2 + 9 * 32 + 32)


@pytest.mark.parametrize("name", ["legacy_seresnet18", "squeezenet1_0"])
def test_channel_attention_and_concatenation(name: str) -> None:
    factory = from_torchvision if name == "squeezenet1_0" else from_timm
    network = factory(shape=(3, 32, 32), classes=10, name=name)
    inner = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.out_channels != 10}
    gone = {n: (torch.rand(m.out_channels) < 0.5).nonzero().flatten().tolist() for n, m in inner.items()}
    assert size(shrunk(network, gone, (3, 32, 32))) < 0.6 * size(network)


def test_without_torch_pruning_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(LotteryError, match=r"^torch-pruning is not installed: pip install -e '\.\[export\]'$"):
        shrink(mlp(shape=SHAPE, classes=2, hidden=[3]), torch.randn(2, *SHAPE))
