"""Residual networks for tests, each with something special; all take [N, 3, 32, 32]. And what is removable in each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8


def conv() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)


class Network(nn.Module):
    """A stem, these modules, global pooling and a classifier."""

    def __init__(self, tokens: bool = False, **modules: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 8 if tokens else 3, stride=8 if tokens else 4)
        self.order = list(modules)
        self.tokens = tokens
        for name, module in modules.items():
            self.add_module(name, module)
        self.fc = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x.flatten(2).mT if self.tokens else x
        for name in self.order:
            x = getattr(self, name)(x)
        return self.fc(x.mean(1) if self.tokens else x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions with one ReLU between; `after` is applied to the sum."""

    def __init__(self, after: nn.Module | None = None, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(), conv()
        self.relu = nn.ReLU()
        self.after = after or nn.Identity()
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))


class OneActivation(Block):
    """As torchvision's blocks: one activation module for both places. Not the identity on what is negative."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv2(self.relu(self.conv1(x))))


class OntoBranch(Block):
    """As torchvision's and timm's blocks: what is added to, in place, is the branch."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu_(self.conv1(x)))
        out += x
        return out


class ActivatedInput(Block):
    """Changes in place what the block before it gave: the block is no identity, its branch is."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x, inplace=True)
        out = self.conv1(x)
        out += x
        return out


class IntoShortcut(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.conv2(self.relu(self.conv1(x)))
        return x


class Gated(Block):
    """ReZero / SkipInit: the branch is zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.conv1(x)


class Sums(nn.Module):
    """The addition is a module of its own."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y)


class WithSums(Block):
    def __init__(self) -> None:
        super().__init__()
        self.add = Sums()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.conv1(x))


class SharedNorm(Block):
    """Pre-activation whose shortcut starts after the common activation: the block is no identity, its branch is."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x)
        return self.conv2(self.relu(self.conv1(x))) + x


class Parallel(Block):
    """Two branches of one input, summed at once: neither can leave by itself as `modules` in a row."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.stack([self.conv1(x), self.conv2(x)]).sum(0)


class Squeeze(Block):
    """What is added has another shape, and is added to every position."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(x).mean((2, 3), keepdim=True)


class GlobalNorm(nn.Module):
    """As ConvNeXt V2's response normalisation: adds to its input, and holds no convolution or linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * (x * x.norm(dim=(2, 3), keepdim=True))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Attended(nn.Module):
    """Reads a weight of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * self.block.conv1.weight.mean().sigmoid()


class LongSkip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Block(), Block(shortcut=conv()), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class OnlyLong(LongSkip):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Block(shortcut=conv()), conv())


class ChangedShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.skip = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.skip(x)


class Root(Network):
    """The network's own forward pass adds."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.fc((x + self.first(x)).mean((2, 3)))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm2, self.fc = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.fc(self.norm2(x))


class PostNorm(SelfAttention):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.norm2(x + self.fc(x))


def tied() -> Network:
    network = Network(first=Block(), second=Block(), third=Block())
    network.third.conv1.weight = network.first.conv1.weight  # type: ignore[union-attr]
    return network


def encoder(norm_first: bool) -> Network:
    """Torch's own layer reads what it holds, in a fast path of evaluation mode too."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=norm_first)
    return Network(tokens=True, first=layer, second=nn.Linear(WIDTH, WIDTH))


def whole(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


RESIDUAL: dict[str, tuple[Callable[[], Network], dict[str, tuple[str, ...]]]] = {
    "blocks": (lambda: Network(first=Block(), second=Block()), whole("first", "second")),
    "ReLU after the addition": (
        lambda: Network(relu=nn.ReLU(), first=Block(nn.ReLU()), second=Block(nn.ReLU())),
        whole("first", "second"),
    ),
    "SiLU after the addition": (
        lambda: Network(first=Block(nn.SiLU())),
        {"first": ("first.conv1", "first.relu", "first.conv2")},
    ),
    "one activation module": (
        lambda: Network(first=OneActivation(), second=OneActivation()),
        {"first": ("first.conv1", "first.conv2"), "second": ("second",)},
    ),
    "in place everywhere": (
        lambda: Network(first=OntoBranch(), second=ActivatedInput()),
        whole("first", "second.conv1"),
    ),
    "added to the shortcut in place": (lambda: Network(first=IntoShortcut()), whole("first")),
    "branches that are zero at the start": (lambda: Network(first=Gated(), second=Gated()), whole("first", "second")),
    "addition by a module": (lambda: Network(first=WithSums()), whole("first")),
    "shortcut after the activation": (
        lambda: Network(first=SharedNorm()),
        {"first": ("first.conv1", "first.relu", "first.conv2")},
    ),
    "parallel branches": (lambda: Network(first=Parallel()), whole("first")),
    "another shape is added": (lambda: Network(first=Squeeze()), {}),
    "additions without layers": (lambda: Network(first=GlobalNorm()), {}),
    "additions without layers in a block": (lambda: Network(first=Block(after=GlobalNorm())), whole("first")),
    "runs twice": (lambda: Network(first=Twice(), second=Block()), whole("second")),
    "tied weights": (tied, whole("second")),
    "weights read from outside": (lambda: Network(first=Attended(), second=Block()), whole("second")),
    "skips around skips": (lambda: Network(first=LongSkip()), whole("first.inner.0")),
    "skip around a transition": (lambda: Network(first=OnlyLong()), whole("first")),
    "shortcuts with weights": (lambda: Network(block=Block(shortcut=conv())), {}),
    "changes the shape": (lambda: Network(first=ChangedShape()), {}),
    "addition by the network itself": (lambda: Root(first=conv()), whole("first")),
    "attention": (
        lambda: Network(tokens=True, first=SelfAttention()),
        {"first.attention": ("first.norm", "first.attention"), "first.fc": ("first.norm2", "first.fc")},
    ),
    "normalisation after the addition": (
        lambda: Network(tokens=True, first=PostNorm()),
        whole("first.attention", "first.fc"),
    ),
    "torch's transformer layer": (lambda: encoder(norm_first=True), whole("first")),
    "torch's transformer layer, norms last": (lambda: encoder(norm_first=False), {}),
}


class WideBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(x)))


def wide_mlp(width: int) -> nn.Sequential:
    """Six residual blocks: nearly all of its memory is in 12 width² weights."""
    return nn.Sequential(nn.Flatten(), *(WideBlock(width) for _ in range(6)), nn.Linear(width, 10))
