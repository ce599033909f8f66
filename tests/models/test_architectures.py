"""The networks have the weights, the operations and the module names that the papers and the other parts rely on."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lottery.errors import ConfigError
from lottery.models.conv import conv
from lottery.models.mlp import lenet_300_100, mlp
from lottery.models.resnet import BasicBlock, Pad, resnet
from lottery.models.vgg import vgg, vgg_mlp
from lottery.models.wide_resnet import wide_resnet

CIFAR = {"shape": (3, 32, 32), "classes": 10}


@pytest.fixture(autouse=True)
def _on_meta():
    """Shapes and counts need no memory; tests that compute numbers ask for the CPU."""
    with torch.device("meta"):
        yield


def weights(network: nn.Module, *kinds: type[nn.Module]) -> dict[str, int]:
    """Entries of each convolution or linear weight."""
    kinds = kinds or (nn.Conv2d, nn.Linear)
    return {name: m.weight.numel() for name, m in network.named_modules() if isinstance(m, kinds)}


def macs(network: nn.Module) -> int:
    """Multiply-accumulates of convolutions and linear layers for one 3x32x32 image (the counter gives 2 flops each)."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, 3, 32, 32))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def test_lenet_is_lth_figure_2():
    network = lenet_300_100(shape=(1, 28, 28), classes=10)
    assert weights(network) == {"fc1": 784 * 300, "fc2": 300 * 100, "output": 100 * 10}
    assert sum(weights(network).values()) == 266_200


@pytest.mark.parametrize(
    ("blocks", "total", "convolutional"), [(1, 4_300_992, 38_592), (2, 2_425_024, 259_776), (3, 2_261_184, 1_144_512)]
)
def test_conv_networks_are_lth_figure_2(blocks, total, convolutional):
    # printed there: 4.3M/38K, 2.4M/260K and, for Conv-6, 1.7M/1.1M, of which the drawing has 2,261,184 weights
    network = conv(**CIFAR, blocks=blocks)
    assert sum(weights(network).values()) == total
    assert sum(weights(network, nn.Conv2d).values()) == convolutional
    assert list(weights(network)) == [f"conv{i + 1}" for i in range(2 * blocks)] + ["fc1", "fc2", "output"]


def test_resnet_20_is_lth_section_4():
    # Frankle & Carbin count 270,896 weights: 2,560 in the 1x1 shortcuts, 640 in the classifier, 267,696 prunable
    counts = weights(resnet(**CIFAR, depth=20))
    assert sum(counts.values()) == 270_896
    assert sum(n for name, n in counts.items() if "shortcut" in name) == 2_560
    assert counts["fc"] == 640
    assert counts["conv1"] == 432
    assert all(name in ("conv1", "fc") or name.startswith("stages.") for name in counts)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_resnet_with_padding_has_the_original_parameters(depth, parameters):
    # He et al. 2016, table 6: 0.27M, 0.85M, 1.7M, with parameter-free shortcuts
    network = resnet(**CIFAR, depth=depth, shortcut="pad")
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert not any("shortcut" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize(("shortcut", "expected"), [("projection", 69_124_736), ("pad", 68_862_592)])
def test_resnet_32_operations(shortcut, expected):
    # the counts under which table 4 of Jordao et al. (layer tickets) comes out: 4,718,592 / 69,124,736 = 6.826 %
    assert macs(resnet(**CIFAR, depth=32, shortcut=shortcut)) == expected


def test_every_identity_block_costs_the_same_operations():
    network = resnet(**CIFAR, depth=20)
    dense = macs(network)
    identities = [
        (stage, i)
        for stage, i in itertools.product(range(3), range(3))
        if isinstance(network.stages[stage][i].shortcut, nn.Identity)
    ]
    assert identities == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    for stage, i in identities:
        shallow = resnet(**CIFAR, depth=20)
        shallow.stages[stage][i] = nn.Identity()
        assert dense - macs(shallow) == 4_718_592


def test_resnet_width_scales_the_channels():
    narrow = resnet(**CIFAR, depth=20, width=4)
    assert narrow.fc.in_features == 16
    assert narrow.conv1.out_channels == 4


def test_residual_block_without_its_branch_passes_its_input_on():
    with torch.device("cpu"):
        block = BasicBlock(4, 4, 1, "projection").eval()
        nn.init.zeros_(block.bn2.weight)
        x = torch.rand(2, 4, 5, 5)
        assert torch.equal(block(x), x)


def test_padding_shortcut_keeps_every_second_pixel_and_adds_zero_channels():
    with torch.device("cpu"):
        x = torch.rand(2, 3, 6, 6)
        out = Pad(2, 2)(x)
    assert torch.equal(out[:, :3], x[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert out.shape == (2, 5, 3, 3)
    assert out[:, 3:].count_nonzero() == 0


def test_vgg_19_is_lth_figure_2():
    # printed there: 20.0M weights, 16 convolutions, and a classifier of 5,120
    counts = weights(vgg(**CIFAR, depth=19))
    assert list(counts) == [f"conv{i + 1}" for i in range(16)] + ["fc"]
    assert counts["fc"] == 5_120
    assert round(sum(counts.values()) / 1e6, 1) == 20.0


def test_vgg_16_with_three_linear_layers_is_that_of_bips_code():
    # 13 convolutions of 14,710,464 weights, then 2048 x 256, 256 x 256 and 256 x 10
    counts = weights(vgg_mlp(**CIFAR, depth=16))
    assert list(counts) == [f"conv{i + 1}" for i in range(13)] + ["fc1", "fc2", "fc"]
    assert [counts[name] for name in ("fc1", "fc2", "fc")] == [524_288, 65_536, 2_560]
    assert sum(counts.values()) == 15_302_848
    assert vgg_mlp(**CIFAR, depth=11, width=4)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_depth_counts_the_original_three_linear_layers(depth):
    assert len(weights(vgg(**CIFAR, depth=depth), nn.Conv2d)) == depth - 3


def test_vgg_16_operations():
    # Li et al. 2017 (pruning filters), table 1: 3.13e8 on CIFAR-10, so the last group works on 2x2 pixels
    assert round(macs(vgg(**CIFAR, depth=16)) / 1e8, 2) == 3.13


def test_wide_resnet_28_10_has_36_5_million_parameters():
    # Zagoruyko & Komodakis 2016, table 4: 36.5M; 25 3x3 convolutions, 3 projections and the classifier
    network = wide_resnet(**CIFAR, depth=28, widen=10)
    assert sum(p.numel() for p in network.parameters()) == 36_479_194
    assert len(weights(network)) == 25 + 3 + 1


def test_wide_resnet_block_adds_its_branch_to_the_raw_input():
    with torch.device("cpu"):
        network = wide_resnet(shape=(3, 8, 8), classes=2, depth=16, widen=1).eval()
        block = network.stages[1][1]
        nn.init.zeros_(block.conv2.weight)
        x = torch.randn(2, 32, 4, 4)
        assert torch.equal(block(x), x)


def test_wide_resnet_projection_starts_from_the_activated_input():
    with torch.device("cpu"):
        block = wide_resnet(shape=(3, 8, 8), classes=2, depth=10, widen=1).eval().stages[1][0]
        nn.init.zeros_(block.conv2.weight)
        x = torch.randn(2, 16, 8, 8)
        assert block(x).count_nonzero() > 0
        nn.init.zeros_(block.bn1.weight)
        assert block(x).count_nonzero() == 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 40)])
def test_mlp_takes_any_shape(shape):
    network = mlp(shape=shape, classes=7, hidden=[20, 30, 5])
    assert list(weights(network)) == ["fc1", "fc2", "fc3", "output"]
    assert network(torch.empty(4, *shape)).shape == (4, 7)


@pytest.mark.parametrize("make", [lenet_300_100, lambda **kw: conv(**kw, blocks=3), lambda **kw: vgg(**kw, depth=16)])
def test_small_networks_are_bare_sequentials(make):
    # they run for millions of steps: no Python of ours between torch's modules
    assert type(make(**CIFAR)) is nn.Sequential


def test_dropout_acts_in_training_only():
    with torch.device("cpu"):
        network = conv(shape=(1, 8, 8), classes=3, blocks=1, dropout=0.5)
        x = torch.randn(4, 1, 8, 8)
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))
    assert not any(isinstance(m, nn.Dropout) for m in conv(**CIFAR, blocks=1).modules())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: resnet(**CIFAR, depth=21), r"model.depth: got 21, .*20 or 26"),
        (lambda: resnet(**CIFAR, depth=2), r"model.depth: got 2, .*8 or 14"),
        (lambda: resnet(**CIFAR, depth=20, width=0), "model.width"),
        (lambda: resnet(**CIFAR, depth=20, shortcut="padding"), "model.shortcut: got 'padding', .*nearest: pad"),
        (lambda: vgg(**CIFAR, depth=15), "model.depth: got 15, expected 11, 13, 16 or 19"),
        (lambda: vgg(shape=(1, 8, 8), classes=10, depth=11), r"VGG-11 needs at least 16x16.*8x8"),
        (lambda: wide_resnet(**CIFAR, depth=27, widen=10), "model.depth: got 27, .*22 or 28"),
        (lambda: wide_resnet(**CIFAR, depth=28, widen=1, dropout=1.0), "model.dropout"),
        (lambda: conv(**CIFAR, blocks=5), "model.blocks: got 5"),
        (lambda: conv(**CIFAR, blocks=1, dropout=-0.1), "model.dropout"),
        (lambda: conv(shape=(1, 4, 4), classes=10, blocks=3), r"Conv-6 needs at least 8x8.*4x4"),
        (lambda: conv(shape=(1, 40), classes=10, blocks=1), r"Conv-2 takes images.*\(1, 40\).*model=mlp"),
        (lambda: mlp(**CIFAR, hidden=[100, 0]), "model.hidden: got 0"),
        (lambda: mlp(**CIFAR, hidden=100), "model.hidden: got 100, expected a list"),
    ],
)
def test_wrong_options_are_named_in_one_line(make, named):
    with pytest.raises(ConfigError, match=named) as caught:
        make()
    assert "\n" not in str(caught.value)
