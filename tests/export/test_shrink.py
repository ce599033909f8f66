"""Cutting out dead channels changes no logit, and cuts what it should (docs/methods/layers.md)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lottery.errors import LotteryError
from lottery.models.airbench import airbench
from lottery.models.conv import conv
from lottery.models.mlp import mlp
from lottery.models.resnet import resnet
from lottery.models.vgg import vgg
from lottery.models.wide_resnet import wide_resnet
from lottery.models.zoo import from_timm, from_torchvision
from lottery.pruning.structure import silent

pytest.importorskip("torch_pruning")
from lottery.channels.cut import layers, widths
from lottery.channels.shrink import shrink

SHAPE = (3, 16, 16)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(shape=SHAPE, classes=5, hidden=[20, 12]),
    "conv": lambda: conv(shape=SHAPE, classes=5, blocks=1),
    "vgg": lambda: vgg(shape=SHAPE, classes=5, depth=11, width=8),
    "resnet20": lambda: resnet(shape=SHAPE, classes=5, depth=20, width=4),
    "resnet8, padded shortcuts": lambda: resnet(shape=SHAPE, classes=5, depth=8, width=4, shortcut="pad"),
    "wide_resnet": lambda: wide_resnet(shape=SHAPE, classes=5, depth=10, widen=1),
    "airbench": lambda: airbench(shape=SHAPE, classes=5, width=4),
    "timm resnet18": lambda: from_timm(shape=SHAPE, classes=5, name="resnet18"),
    "timm mobilenetv2_035": lambda: from_timm(shape=SHAPE, classes=5, name="mobilenetv2_035"),
    "torchvision mnasnet0_5": lambda: from_torchvision(shape=SHAPE, classes=5, name="mnasnet0_5"),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE)


def lively(network: nn.Module) -> nn.Module:
    """In evaluation mode, its normalisations as after a training: no scale one, no shift zero."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@torch.no_grad()
def prune_filters_(network: nn.Module, mask: dict[str, Tensor]) -> None:
    """As a search by filters leaves them: what follows a removed filter is zero too."""
    parameters = dict(network.named_parameters())
    biases = {name.replace("weight", "bias"): kept.flatten(1).any(1) for name, kept in mask.items()}
    for name, kept in {**mask, **biases, **silent(network, mask, SHAPE)}.items():
        if name in parameters:
            parameters[name].mul_(kept)


@torch.no_grad()
def prune_channels_(network: nn.Module) -> None:
    """Half of the inputs of every layer but the first."""
    for module in [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear)][1:]:
        if module.weight.shape[1] > 1:
            module.weight.mul_(random_rows(module.weight.transpose(0, 1)).transpose(0, 1))


def inner(network: nn.Module, classes: int = 5) -> dict[str, nn.Module]:
    """The convolutions and linear layers whose outputs are not the logits."""
    found = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {name: module for name, module in found.items() if module.weight.shape[0] != classes}


def random_rows(weight: Tensor) -> Tensor:
    """A mask that keeps half of the rows."""
    return (torch.rand(len(weight)) < 0.5).view(-1, *[1] * (weight.dim() - 1)).expand_as(weight)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def assert_equal_logits(one: nn.Module, other: nn.Module) -> None:
    """On images that shrinking has not seen, far brighter ones too."""
    for scale in (1, 10):
        with torch.no_grad():
            batch = scale * images(8)
            expected, found = one(batch), other(batch)
        assert expected.abs().max() > 0
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pattern", ["filter", "channel"])
def test_the_logits_are_the_same_and_the_network_is_smaller(name: str, pattern: str) -> None:
    network = lively(NETWORKS[name]())
    if pattern == "filter":
        prune_filters_(network, {f"{n}.weight": random_rows(m.weight) for n, m in inner(network).items()})
    else:
        prune_channels_(network)
    masked = {key: value.clone() for key, value in network.state_dict().items()}
    small = shrink(network, images())
    assert_equal_logits(network, small)
    assert size(small) < 0.95 * size(network)
    assert all(torch.equal(value, masked[key]) for key, value in network.state_dict().items()), "the original changed"


def test_the_size_of_a_vgg_follows_from_its_filters() -> None:
    """A chain: k_i filters of 3x3 weights over k_(i-1) channels, scale and shift each, and the linear layer."""
    network = lively(vgg(shape=SHAPE, classes=5, depth=11, width=8))
    kept = [5, 9, 20, 31, 40, 1, 64, 17]
    convolutions = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    mask = {}
    for (name, module), count in zip(convolutions.items(), kept, strict=True):
        rows = torch.zeros_like(module.weight, dtype=torch.bool)
        rows[torch.randperm(len(rows))[:count]] = True
        mask[f"{name}.weight"] = rows
    prune_filters_(network, mask)
    small = shrink(network, images())
    assert [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)] == kept
    convolution = sum(9 * a * b for a, b in zip([3, *kept], kept, strict=False))
    assert size(small) == convolution + 2 * sum(kept) + 5 * kept[-1] + 5
    assert_equal_logits(network, small)


@torch.no_grad()
def test_a_filter_whose_channel_others_fill_stays() -> None:
    """Of a residual stage the channel is read as long as one block writes it; without any writer it goes everywhere."""
    network = lively(resnet(shape=SHAPE, classes=5, depth=14, width=4))
    writers = {"conv1": "bn1", "stages.0.0.conv2": "stages.0.0.bn2", "stages.0.1.conv2": "stages.0.1.bn2"}
    for number, (name, norm) in enumerate(writers.items()):
        assert size(shrink(network, images())) == size(network), f"{number} of 3 writers were pruned"
        network.get_submodule(name).weight[2] = 0
        network.get_submodule(norm).weight[2] = 0
        network.get_submodule(norm).bias[2] = 0
    small = shrink(network, images())
    assert all(small.get_submodule(name).out_channels == 3 for name in writers)
    assert small.get_submodule("stages.0.1.conv1").in_channels == 3
    assert small.get_submodule("stages.1.0.shortcut.conv").in_channels == 3
    assert small.get_submodule("stages.0.0.conv1").out_channels == 4
    assert_equal_logits(network, small)


@torch.no_grad()
def test_a_channel_that_none_reads_goes_with_all_who_write_it() -> None:
    network = lively(resnet(shape=SHAPE, classes=5, depth=14, width=4))
    readers = ["stages.0.0.conv1", "stages.0.1.conv1", "stages.1.0.conv1", "stages.1.0.shortcut.conv"]
    for number, name in enumerate(readers):
        assert size(shrink(network, images())) == size(network), f"{number} of 4 readers ignore it"
        network.get_submodule(name).weight[:, 2] = 0
    small = shrink(network, images())
    assert small.conv1.out_channels == small.bn1.num_features == 3
    assert_equal_logits(network, small)


def test_an_unstructured_mask_removes_nothing_alive() -> None:
    network = lively(resnet(shape=SHAPE, classes=5, depth=8, width=4))
    with torch.no_grad():
        for module in inner(network).values():
            module.weight.mul_(torch.rand(module.weight.shape) < 0.3)
    assert size(shrink(network, images())) == size(network)


@torch.no_grad()
def test_it_removes_until_nothing_more_is_dead() -> None:
    """Unit 0 of the second layer reads only unit 0 of the first, which is dead; so does one further on."""
    network = mlp(shape=SHAPE, classes=5, hidden=[6, 6, 6]).eval()
    network.fc1.weight[0] = network.fc1.bias[0] = 0
    for layer in (network.fc2, network.fc3):
        layer.weight[0, 1:] = 0
        layer.bias[0] = 0
    small = shrink(network, images())
    assert [widths(each)[0] for _, each in layers(small)] == [5, 5, 5, 5]
    network.fc2.bias[0] = 1  # alive, though it reads nothing
    small = shrink(network, images())
    assert [widths(each)[0] for _, each in layers(small)] == [5, 6, 6, 5]
    assert_equal_logits(network, small)


@torch.no_grad()
def test_what_is_constant_goes_where_it_comes_to_zero() -> None:
    """A filter without weights, a normalisation that goes on: a positive shift passes the ReLU, a negative one not."""
    network = lively(vgg(shape=SHAPE, classes=5, depth=11, width=8))
    network.conv1.weight[:2] = 0
    network.bn1.running_mean[:2] = 0
    network.bn1.bias[0], network.bn1.bias[1] = 0.5, -0.5
    small = shrink(network, images())
    assert small.conv1.out_channels == 7
    assert small.bn1.bias[0] == 0.5
    assert_equal_logits(network, small)


@torch.no_grad()
def test_a_channel_that_its_normalisation_silences_goes() -> None:
    network = lively(vgg(shape=SHAPE, classes=5, depth=11, width=8))
    network.bn1.weight[:3] = 0
    network.bn1.bias[:2], network.bn1.bias[2] = 0, 1
    small = shrink(network, images())
    assert small.conv1.out_channels == small.conv2.in_channels == 6
    assert_equal_logits(network, small)


def test_a_channel_that_was_only_dark_on_these_images_stays() -> None:
    """A ReLU that no image has lit is no proof."""
    network = mlp(shape=SHAPE, classes=5, hidden=[6]).eval()
    with torch.no_grad():
        network.fc1.bias[0] = -1000
    assert size(shrink(network, images())) == size(network)


@torch.no_grad()
def test_of_each_layer_a_channel_stays() -> None:
    network = lively(resnet(shape=SHAPE, classes=5, depth=8, width=4))
    prune_filters_(network, {"stages.1.0.conv1.weight": torch.zeros(8, 4, 3, 3, dtype=torch.bool)})
    small = shrink(network, images())
    assert small.get_submodule("stages.1.0.conv1").out_channels == 1
    assert_equal_logits(network, small)


# -- where the graph is not enough ------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Between a convolution `a` and the classifier `c`, what a dependency graph alone would get wrong."""

    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between(self.a(x), x).mean((2, 3)))

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class Softmax(Odd):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.softmax(y, 1)


class Normed(Odd):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y / (1 + y.norm(dim=1, keepdim=True))


class Centred(Odd):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y - y.mean(1, keepdim=True)


class Twice(Odd):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.b(torch.relu(y))))


class Shuffled(Odd):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y.view(-1, 2, 2, *y.shape[2:]).transpose(1, 2).reshape(y.shape)


class Grouped(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(4, 4, 1, groups=2)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return self.b(torch.relu(y))


class Standardised(nn.Conv2d):
    """Its weight is not what it multiplies with: a zero filter has a mean of zero, but a zero input has not."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Standard(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.b = Standardised(4, 4, 1)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return self.b(torch.relu(y))


class Gated(Odd):
    """One channel over all: it must not be taken for a partner of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(3, 1, 1)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y * torch.sigmoid(self.b(x))


class Halves(Odd):
    def __init__(self) -> None:
        super().__init__(2)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        one, other = y.chunk(2, 1)
        return one + other


class Pixels(Odd):
    """A linear layer over the pixels of each channel: its features are no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(256, 5)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return self.b(y.reshape(4 * len(y), 256)).view(len(y), 4, 5, 1)


class Padded(Odd):
    """Two channels of zeros in front: what was first is third."""

    def __init__(self) -> None:
        super().__init__(6)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return F.pad(y, (0, 0, 0, 0, 2, 0))


class Tall(Odd):
    """Put together along the height, not along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(3, 4, 1)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.cat([y, self.b(x)], 2)


class Brightened(Odd):
    """The image itself, which autograd does not show, joins in: nothing is constant."""

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x.mean(1, keepdim=True)


class Exponential(Odd):
    """exp(0) is no zero."""

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.sigmoid(y)


UNCERTAIN = [Softmax, Normed, Centred, Twice, Shuffled, Grouped, Standard, Gated, Halves, Pixels, Padded, Tall]


@pytest.mark.parametrize("kind", [*UNCERTAIN, Brightened, Exponential])
@torch.no_grad()
def test_what_is_not_certain_stays(kind: type[Odd]) -> None:
    network = kind().eval()
    for layer in (network.a, network.b):
        layer.weight[:2] = layer.bias[:2] = 0
    small = shrink(network, images())
    assert size(small) == size(network)
    assert_equal_logits(network, small)


@pytest.mark.parametrize("kind", UNCERTAIN)
@torch.no_grad()
def test_nor_does_what_the_classifier_ignores(kind: type[Odd]) -> None:
    network = kind().eval()
    network.b.weight[:, : network.b.weight.shape[1] // 2] = network.c.weight[:, :2] = 0
    small = shrink(network, images())
    assert small.a.out_channels == 4
    assert_equal_logits(network, small)


class Concatenated(nn.Module):
    """Two convolutions side by side, added to a third over both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
        self.c = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((torch.cat([self.a(x), self.b(x)], 1) + self.d(x)).mean((2, 3)))


@torch.no_grad()
def test_channels_beside_each_other_are_told_apart() -> None:
    network = Concatenated().eval()
    network.c.weight[:, [1, 6, 7]] = 0
    small = shrink(network, images())
    assert [each.out_channels for each in (small.a, small.b, small.d)] == [3, 2, 5]
    assert_equal_logits(network, small)


class Cut(Odd):
    """Without gradients, so that who reads what cannot be seen."""

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def test_a_network_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(
        LotteryError, match=r"Torch-Pruning cannot follow Cut: its logits have no gradient.*; --dense exports it"
    ):
        shrink(Cut().eval(), images())
