"""Effective weights: by hand, against path enumeration, and against the gradients of networks with positive weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import Partial
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lottery.errors import LotteryError
from lottery.models.mlp import mlp
from lottery.models.resnet import resnet
from lottery.pruning.prunable import prunable
from lottery.stability.effective import effective
from lottery.ticket import Mask


def random_mask(network: nn.Module, density: float, seed: int = 0) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return Mask({n: torch.rand(s, generator=generator) < density for n, s in prunable(network).items()})


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9))
def test_fully_connected_against_the_paths_themselves(seed: int, density: float) -> None:
    """Weight [j, i] counts where a path of kept weights leads from some input to i, and one from j to some output."""
    network = mlp(shape=(5,), classes=3, hidden=(6, 4))
    mask = random_mask(network, density, seed)
    names = list(mask)
    expected = {}
    for k, name in enumerate(names):
        ahead, behind = torch.ones(5, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
        for before in names[:k]:
            ahead = (mask[before] & ahead).any(1)
        for after in reversed(names[k + 1 :]):
            behind = (mask[after] & behind[:, None]).any(0)
        expected[name] = mask[name] & ahead & behind[:, None]
    assert effective(network, mask, (5,)) == Mask(expected)


def test_a_dense_network_is_all_effective_and_is_not_changed() -> None:
    network = resnet(shape=(3, 8, 8), classes=4, depth=8, width=4)
    network.stages[0][0].bn1.weight.data.zero_()  # a scale of 0 can grow: no cut
    before = copy.deepcopy(network.state_dict())
    mask = Mask.ones(prunable(network))
    assert effective(network, mask, (3, 8, 8)) == mask
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_an_empty_layer_cuts_a_chain_but_not_a_residual_network() -> None:
    chain = mlp(shape=(5,), classes=3, hidden=(6, 4))
    cut = Mask(dict(Mask.ones(prunable(chain))) | {"fc2.weight": torch.zeros(4, 6, dtype=torch.bool)})
    assert effective(chain, cut, (5,)).kept == 0
    network = resnet(shape=(3, 8, 8), classes=4, depth=8, width=4)
    full = Mask.ones(prunable(network))
    name, beside = "stages.1.0.conv2.weight", "stages.1.0.conv1.weight"
    bypassed = Mask(dict(full) | {name: torch.zeros_like(full[name])})
    found = effective(network, bypassed, (3, 8, 8))
    assert found.collapsed == [beside, name]  # what led only to it is cut off; all else goes by the shortcut
    assert found.kept == full.kept - full.layer_kept[name] - full.layer_kept[beside]


class Varied(nn.Module):
    """Strides, groups, padding, both poolings, batch normalisation, in-place ReLU, concatenation, a squeezed branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.gate = nn.Linear(4, 4)
        self.fc1 = nn.Linear(8, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor, relu: Callable[[Tensor], Tensor] = F.relu_) -> Tensor:
        x = relu(self.bn(self.conv1(x)))
        x = F.max_pool2d(x, 2)
        y = relu(self.conv2(x))
        gate = self.gate(x.mean((2, 3)))
        x = F.adaptive_avg_pool2d(self.conv3(x), y.shape[-1])
        x = x + gate[:, :, None, None]
        x = torch.cat((x, y), 1).amax((2, 3))
        return self.fc2(F.dropout(self.fc1(x), training=self.training))


def by_gradients(network: nn.Module, mask: Mask, shape: tuple[int, ...], draws: int = 40) -> Mask:
    """Where the gradient is ever not zero, all weights and inputs being positive and no ReLU cutting anything.

    In float64, over draws, so that each entry of a max-pooling window wins at times.
    """
    copied = copy.deepcopy(network).double().eval()
    seen = {name: torch.zeros(size, dtype=torch.bool) for name, size in mask.shapes.items()}
    generator = torch.Generator().manual_seed(0)
    named = dict(copied.named_parameters())
    for _ in range(draws):
        with torch.no_grad():
            for name, value in named.items():
                value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.1)
                if name.endswith("bias"):
                    value.zero_()
                if name in mask:
                    value.mul_(mask[name])
        copied(torch.rand(1, *shape, generator=generator, dtype=torch.float64) + 0.1).sum().backward()
        for name in seen:
            gradient = named[name].grad
            assert gradient is not None
            seen[name] |= gradient != 0
            named[name].grad = None
    return Mask({name: mask[name] & found for name, found in seen.items()})


@pytest.mark.parametrize("density", [0.15, 0.3, 0.6])
def test_against_gradients_of_positive_networks(density: float) -> None:
    networks = [(Varied(), (2, 13, 13)), (resnet(shape=(3, 8, 8), classes=4, depth=8, width=4), (3, 8, 8))]
    cut = 0
    for network, shape in networks:
        for seed in range(3):
            mask = random_mask(network, density, seed)
            found = effective(network, mask, shape)
            assert found == by_gradients(network, mask, shape)
            cut += mask.kept - found.kept
    assert cut or density == 0.6


def test_products_have_paths_from_both_factors() -> None:
    """A gate whose other factor is cut off counts, since that factor may be a constant other than 0: its bias."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values, self.gate, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.values(x) * self.gate(x).sigmoid())

    network = Gated()
    full = Mask.ones(prunable(network))
    values, gate = full["values.weight"], full["gate.weight"]
    values[:2] = False
    gate[1:3] = False
    found = effective(network, Mask(dict(full) | {"values.weight": values, "gate.weight": gate}), (3,))
    assert torch.equal(found["values.weight"], values)
    assert torch.equal(found["gate.weight"], gate)
    assert found["head.weight"].any(0).tolist() == [True, False, True, True]


def test_padding_is_no_input() -> None:
    """On a 1 x 1 image only the middle of a padded 3 x 3 kernel touches anything."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2, 2))
    found = effective(network, Mask.ones(prunable(network)), (1, 1, 1))
    assert found["0.weight"].sum() == 2
    assert found["0.weight"][:, :, 1, 1].all()
    assert found["2.weight"].all()


def test_max_pooling_passes_paths_from_the_whole_window() -> None:
    """Only the corner of a 2 x 2 kernel that meets the padding is useless, whichever entry a pooling would choose."""
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2))
    assert effective(network, Mask.ones(prunable(network)), (1, 2, 2)).density == 1


def test_depth_neither_over_nor_underflows() -> None:
    """SynFlow's product over 200 layers of 100 inputs is 1e400."""
    network = nn.Sequential(*(nn.Linear(100, 100) for _ in range(200)))
    mask = Mask.ones(prunable(network))
    assert effective(network, mask, (100,)) == mask
    thin = Mask({name: torch.eye(100) > 0 for name in mask})
    assert effective(network, thin, (100,)) == thin


def test_signs_and_cancellation_do_not_matter() -> None:
    network = mlp(shape=(4,), classes=2, hidden=(3,))
    for weight in network.parameters():
        weight.data.fill_(-1)
    mask = Mask.ones(prunable(network))
    assert effective(network, mask, (4,)) == mask


def test_layers_that_are_not_pruned_count_as_dense_and_unused_ones_not_at_all() -> None:
    network = Partial(6, 3)
    shapes = prunable(network)
    assert effective(network, Mask.ones(shapes), (6,)).collapsed == ["unused.weight"]
    with torch.no_grad():
        network.output.weight.zero_()
    only = Mask.ones({"frozen.weight": shapes["frozen.weight"]})
    assert effective(network, only, (6,)) == only


class Attending(nn.Module):
    """A vision transformer's block: a class token, positions, attention, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.positions = nn.Parameter(torch.ones(1, 4, 4))
        self.scale = nn.Parameter(torch.zeros(4))
        self.norm = nn.LayerNorm(4)
        self.embed, self.qkv, self.proj, self.head = (nn.Linear(*s) for s in ((5, 4), (4, 12), (4, 4), (4, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.positions
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), 4, 3, 1, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 4, 4)
        return self.head(self.scale * self.proj(x))[:, 0]


def test_paths_through_attention() -> None:
    """The token is read out: it is no input, so all paths lead through attention, from queries, keys or values."""
    network = Attending()
    full = Mask.ones(prunable(network))
    found = effective(network, full, (3, 5))
    queries = found["qkv.weight"][:4]
    assert not queries.any()  # those of the token alone are read, and no path leads to it
    assert found["qkv.weight"][4:].all()
    assert found.kept == full.kept - 16
    values_off = full["qkv.weight"].clone()
    values_off[8:] = False
    assert effective(network, Mask(dict(full) | {"qkv.weight": values_off}), (3, 5))["embed.weight"].all()
    values_off[4:] = False
    assert effective(network, Mask(dict(full) | {"qkv.weight": values_off}), (3, 5)).kept == 0


class Heads(nn.Module):
    """nanoGPT's causal attention, by torch's kernel or written out; its heads are merged as everybody does."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.embed, self.qkv, self.proj, self.head = (nn.Linear(*s) for s in ((5, 4), (4, 12), (4, 4), (4, 2)))
        self.register_buffer("seen", torch.ones(3, 3).tril()[None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        q, k, v = (part.view(batch, tokens, 2, width // 2).transpose(1, 2) for part in self.qkv(x).split(width, dim=2))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0, is_causal=True)
        else:
            weights = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.shape[-1]))
            weights = F.softmax(weights.masked_fill(self.seen == 0, float("-inf")), dim=-1)
            y = F.dropout(weights, training=self.training) @ v
        y = y.transpose(1, 2).contiguous().view(batch, tokens, width)
        return self.head((x + self.proj(y))[:, 1])  # of the second token: the third is never looked at


class Checkpointed(nn.Module):
    """Its middle is run again in the backward pass, as torchvision's densenets do with `memory_efficient`."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.norm1, self.conv1, self.conv2 = nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(self.norm1(x)).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.middle, x, use_reentrant=self.reentrant).flatten(1))


class Shuffled(nn.Module):
    """Groups whose channels are shuffled, as in shufflenet; the layout of a sum in memory is the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 1, groups=2), nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)
        x = self.conv2(x).permute(0, 2, 3, 1)
        return self.head((x + x.mean((1, 2), keepdim=True)).permute(0, 3, 1, 2).view(batch, channels, -1).sum(2))


def by_derivatives(network: nn.Module, mask: Mask, shape: tuple[int, ...], draws: int = 5) -> Mask:
    """Of linear layers: where, at some position, the input has a derivative by the image, and the result by the output.

    Biases are not zero, so that no factor of a product is, whatever is pruned.
    """
    copied = copy.deepcopy(network).double().eval()
    seen = {name: torch.zeros(size, dtype=torch.bool) for name, size in mask.shapes.items()}
    generator = torch.Generator().manual_seed(0)
    met: dict[str, tuple[Tensor, Tensor]] = {}
    for name in mask:
        layer = copied.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_hook(lambda _, fed, output, name=name: met.update({name: (fed[0], output)}))
    for _ in range(draws):
        with torch.no_grad():
            for name, value in copied.named_parameters():
                value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.1)
                if name in mask:
                    value.mul_(mask[name])
        image = torch.rand(1, *shape, generator=generator, dtype=torch.float64).add_(0.1).requires_grad_()
        total = (copied(image) * torch.rand(2, generator=generator)).sum()
        for name, (fed, output) in met.items():
            ahead = torch.stack([leads(image, entry) for entry in fed.flatten()]).view(-1, fed.shape[-1])
            (back,) = torch.autograd.grad(total, output, retain_graph=True)
            seen[name] |= (back.view(len(ahead), -1, 1).ne(0) & ahead[:, None]).any(0)
    return Mask({name: mask[name] & found for name, found in seen.items()})


def leads(image: Tensor, entry: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(entry, image, retain_graph=True, materialize_grads=True, allow_unused=True)
    return found.ne(0).any()


@pytest.mark.parametrize("fused", [True, False])
def test_causal_attention_whose_heads_are_merged(fused: bool) -> None:
    network = Heads(fused)
    for density in (0.1, 0.2, 0.5, 1.0):
        mask = random_mask(network, density)
        assert effective(network, mask, (3, 5)) == by_derivatives(network, mask, (3, 5))


@pytest.mark.parametrize(
    ("network", "shape"), [(Checkpointed(), (2, 5, 5)), (Shuffled(), (2, 3, 3))], ids=["checkpointed", "shuffled"]
)
def test_memory_layouts_and_checkpoints(network: nn.Module, shape: tuple[int, ...]) -> None:
    for density in (0.2, 0.5, 1.0):
        mask = random_mask(network, density)
        assert effective(network, mask, shape) == by_gradients(network, mask, shape, draws=5)


def test_checkpoints_that_hide_their_operations_are_refused() -> None:
    network = Checkpointed(reentrant=True)
    with pytest.raises(LotteryError, match=r"without gradients .*use_reentrant=True"):
        effective(network, Mask.ones(prunable(network)), (2, 5, 5))


class Uses(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.operation = nn.Linear(4, 4), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.fc(x))


def written(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2] = x[:, :2]
    return out


@pytest.mark.parametrize(
    ("operation", "name"),
    [(lambda x: torch.einsum("bi,bj->bij", x, x), "einsum"), (lambda x: x.sort(1).values, "sort"),
     (lambda x: F.max_pool1d(x[:, None], 2, dilation=2), "max pooling with dilation"), (written, "setitem"),
     (lambda x: x @ torch.ones(4), "matmul of vectors"), (lambda x: x.masked_fill(x > 9, 0.0), "masked_fill"),
     (lambda x: x.masked_fill_(x > 9, -math.inf), "masked_fill"),
     (lambda x: F.interpolate(x[:, None], size=2, mode="bicubic"), "bicubic")],
)  # fmt: skip
def test_what_is_not_known_is_said(operation: Callable[[Tensor], Tensor], name: str) -> None:
    network = Uses(operation)
    with pytest.raises(LotteryError, match=f"uses {name}.*no paths are known"):
        effective(network, Mask.ones(prunable(network)), (4,))


@pytest.mark.parametrize(
    "operation",
    [lambda x: x.add_(1).mul_(2), lambda x: F.softmax(x, 1), lambda x: x / x.shape[0] - torch.ones(4),
     lambda x: x.relu_().detach(), lambda x: F.pad(x, (1, 1), value=9.0), lambda x: x * torch.zeros(4)],
)  # fmt: skip
def test_operations_that_keep_all_paths(operation: Callable[[Tensor], Tensor]) -> None:
    network = Uses(operation)
    mask = random_mask(network, 0.5)
    assert effective(network, mask, (4,)) == mask


class Chained(nn.Module):
    """Something between two layers, of which the first leads nowhere but to its first two outputs."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.between = nn.Linear(4, 4), nn.Linear(4, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fc1(x)))

    def fed(self) -> list[bool]:
        """Which inputs of the second layer a path leads to."""
        full = Mask.ones(prunable(self))
        first = full["fc1.weight"]
        first[2:] = False
        return effective(self, Mask(dict(full) | {"fc1.weight": first}), (4,))["fc2.weight"].all(0).tolist()


def overwritten(x: Tensor) -> Tensor:
    """A copy is written to; what it was copied from is what goes on."""
    copied = x.sigmoid()
    copied.add_(x.flip(1))
    return x


@pytest.mark.parametrize(
    "between",
    [torch.sigmoid, lambda x: x + torch.arange(1, 5), lambda x: x * torch.ones(4) - torch.ones(1, 4), overwritten,
     lambda x: torch.cat((x[:, :2], torch.ones(1, 2)), 1)],
)  # fmt: skip
def test_constants_are_no_input(between: Callable[[Tensor], Tensor]) -> None:
    assert Chained(between).fed() == [True, True, False, False]
    assert Chained(lambda x: x + x.flip(1)).fed() == [True] * 4


def test_in_place_sums_reach_the_tensor_written_to() -> None:
    def added(x: Tensor) -> Tensor:
        total = torch.zeros(1, 4)
        total.add_(x)
        return total

    network = Uses(added)
    assert effective(network, Mask.ones(prunable(network)), (4,)).density == 1


def test_a_mask_of_another_network_is_refused() -> None:
    with pytest.raises(LotteryError, match="prunes 'other', which the network does not have"):
        effective(nn.Linear(2, 2), Mask.ones({"other": torch.Size([2, 2])}), (2,))
