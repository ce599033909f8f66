"""Make a network physically smaller: cut channels that cannot affect the output out of their layers.

Torch-Pruning's dependency graph says which channels are coupled across layers (Fang et al. 2023, "DepGraph"). This file
decides whether they may be cut; in doubt they stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lottery.channels.cut import cut_, has_channels, is_depthwise, mixes_channels, widths
from lottery.errors import LotteryError, cause

# Operations (by autograd's names) whose output in one channel depends on their inputs in that channel alone.
CHANNELWISE = frozenset(
    f"{name}Backward0"
    for name in (
        *("Add", "Sub", "Mul", "Div", "Alias", "Clone", "NativeBatchNorm", "CudnnBatchNorm", "ConstantPadNd"),
        *("Relu", "LeakyRelu", "Elu", "Gelu", "Silu", "Mish", "Tanh", "Sigmoid"),
        *("Hardtanh", "Hardswish", "Hardsigmoid"),
        *("MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "UpsampleNearest2D", "UpsampleBilinear2D"),
    )
)
RESHAPES = ("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0")


def shrink(network: nn.Module, images: Tensor) -> nn.Module:
    """Return a private copy in evaluation mode without the dead channels; its logits differ by rounding alone.

    A channel of layers coupled by additions, concatenations or depthwise convolutions is dead where each layer that
    reads it has zero weights for it, or always gets exactly zero from it: everything that computes it is constant (a
    zero filter, a normalisation of scale zero) and adds up to zero. Cutting channels may leave other filters without an
    input, so this is repeated until nothing more is dead. Each layer keeps a channel.

    images: [N, *shape], a few; constants are measured on them and on noise. Raises LotteryError where Torch-Pruning is
    not installed or cannot follow the network.
    """
    small = deepcopy(network).eval().requires_grad_(True)
    while cuts := dead(small, images):
        for name, cut in cuts.items():
            cut_(small.get_submodule(name), cut.outs, cut.ins)
    return small


@dataclass(frozen=True)
class Cut:
    """Channels to remove from one layer, by index."""

    outs: frozenset[int] = frozenset()
    ins: frozenset[int] = frozenset()

    def __or__(self, other: Cut) -> Cut:
        return Cut(self.outs | other.outs, self.ins | other.ins)


def dead(network: nn.Module, images: Tensor) -> dict[str, Cut]:
    """Return the channels that may be cut, by layer name."""
    graph, seen = traced(network, images), observed(network, images)
    names = {module: name for name, module in network.named_modules()}
    cuts: dict[str, Cut] = {}
    for root in [module for module in graph.module2node if mixes_channels(module)]:
        found = {module: cuts.get(names[module], Cut()) | cut for module, cut in removable(graph, root, seen).items()}
        if all(len(cut.outs) < widths(each)[0] and len(cut.ins) < widths(each)[1] for each, cut in found.items()):
            cuts |= {names[module]: cut for module, cut in found.items()}
    return cuts


def traced(network: nn.Module, images: Tensor) -> Any:
    """Return Torch-Pruning's dependency graph of the network."""
    try:
        from torch_pruning import DependencyGraph
    except ImportError as error:
        raise LotteryError("torch-pruning is not installed: pip install -e '.[export]'") from error

    def refusal(reason: str) -> LotteryError:
        kind = type(network).__name__
        return LotteryError(f"Torch-Pruning cannot follow {kind}: {reason}; --dense exports it with all its channels")

    def with_gradient(logits: Tensor) -> Tensor:
        if not logits.requires_grad:
            raise refusal("its logits have no gradient, which the graph is made from")
        return logits

    try:
        with torch.enable_grad():
            return DependencyGraph().build_dependency(
                network, (images[:2],), output_transform=with_gradient, verbose=False
            )
    except LotteryError:
        raise
    except Exception as error:
        raise refusal(cause(error)) from error


def removable(graph: Any, root: nn.Module, seen: Seen) -> dict[nn.Module, Cut]:
    """Return, by layer, the channels to cut with `root`'s dead output channels; empty where this is uncertain."""
    channels, pruner = widths(root)[0], graph.get_pruner_of_module(root)

    def group(indices: list[int]) -> Group:
        return Group(graph, graph.get_pruning_group(root, pruner.prune_out_channels, indices), channels, seen)

    everything = group(list(range(channels)))
    found = everything.dead.nonzero().flatten().tolist() if everything.understood else []
    found = found[1:] if len(found) == channels else found
    if not found:
        return {}
    cuts = everything.cuts(found)
    return cuts if group(found).cuts(found) == cuts else {}  # else other channels depend on these


@dataclass(frozen=True)
class Seen:
    """What forward passes showed.

    zero:    for each layer, which input channels were always zero
    flat:    the layers whose input was [N, features]
    modules: all modules of the network
    once:    the modules that ran once and share no parameter with another module
    """

    zero: dict[nn.Module, Tensor]
    flat: set[nn.Module]
    modules: set[nn.Module]
    once: set[nn.Module]


@torch.no_grad()
def observed(network: nn.Module, images: Tensor) -> Seen:
    """Run the network on the images and on noise, and record what `Seen` holds."""
    zero: dict[nn.Module, Tensor] = {}
    flat: set[nn.Module] = set()
    calls: Counter[nn.Module] = Counter()

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if mixes_channels(module):
            channel = 1 if not isinstance(module, nn.Linear) else inputs[0].dim() - 1
            zero[module] = (inputs[0] == 0).transpose(0, channel).flatten(1).all(1)
            if inputs[0].dim() == 2 and len(inputs[0]) == 2 * len(images):
                flat.add(module)

    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=images.dtype)
    with ExitStack() as stack:
        for module in network.modules():
            stack.enter_context(module.register_forward_pre_hook(before))
        network(torch.cat([images, noise]))
    owners = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    once = {
        module
        for module, count in calls.items()
        if count == 1 and all(owners[id(parameter)] == 1 for parameter in module.parameters(recurse=False))
    }
    return Seen(zero, flat, set(network.modules()), once)


@dataclass(frozen=True, eq=False)
class Group:
    """The layers and operations through which the output channels of one layer (the root) run.

    Each item couples channels of one layer or operation (`idxs`) with channels of the root (`root_idxs`).
    """

    graph: Any
    items: Any
    channels: int
    seen: Seen
    _known: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def through(self) -> dict[int, Any]:
        """The items that are not inputs of layers, keyed by the id of their nodes."""
        return {id(item.dep.target): item for item in self.items if not self.reads(item)}

    def reads(self, item: Any) -> bool:
        """Whether the item is a layer's input."""
        module = item.dep.target.module
        return mixes_channels(module) and item.dep.handler == self.graph.get_pruner_of_module(module).prune_in_channels

    @property
    def understood(self) -> bool:
        """Whether the effect of every item on a channel is known, and no item is the network's output."""
        reshaped = any(_operation(item.dep.target) in RESHAPES for item in self.items)
        return all(self._understood(item, reshaped) for item in self.items)

    def _understood(self, item: Any, reshaped: bool) -> bool:
        node, module, reads = item.dep.target, item.dep.target.module, self.reads(item)
        if not (reads or node.outputs) or not _is_known(node, self.seen):
            return False
        if reshaped and isinstance(module, nn.Linear) and module not in self.seen.flat:
            return False
        # Where one channel is broadcast over many, the layer has fewer channels than are coupled with it.
        return not has_channels(module) or max(item.idxs) < widths(module)[1 if reads else 0]

    @property
    def dead(self) -> Tensor:
        """For each channel of the root: whether every layer that reads the channel ignores it."""
        found = torch.ones(self.channels, dtype=torch.bool)
        for item in filter(self.reads, self.items):
            module = item.dep.target.module
            ignored = (module.weight == 0).transpose(0, 1).flatten(1).all(1)
            silent = self._all(item, self.seen.zero[module]) & self._inputs_constant(item.dep.target)
            found &= self._all(item, ignored) | silent
        return found

    def _all(self, item: Any, holds: Tensor) -> Tensor:
        """For each channel of the root: whether `holds` is True for all of the item's channels coupled with it."""
        found = torch.ones(self.channels, dtype=torch.bool)
        found[torch.tensor(item.root_idxs)[~holds[torch.tensor(item.idxs)]]] = False
        return found

    def _constant(self, node: Any) -> Tensor:
        """For each channel of the root: whether the node's output in it is the same for all images."""
        if id(node) not in self._known:
            item, module = self.through[id(node)], node.module
            found = torch.tensor(False) if mixes_channels(module) else self._inputs_constant(node)
            if mixes_channels(module) or is_depthwise(module):
                found = found | self._all(item, (module.weight == 0).flatten(1).all(1))
            elif isinstance(module, _BatchNorm) and module.affine:
                found = found | self._all(item, module.weight == 0)
            self._known[id(node)] = found
        return self._known[id(node)]

    def _inputs_constant(self, node: Any) -> Tensor:
        """For each channel of the root: whether all inputs that have the channel are constant.

        One input of a concatenation has the channel; for other operations all inputs must have it.
        """
        inputs = [each for each in node.inputs if not _is_weight(each)]
        ours = [each for each in inputs if id(each) in self.through]
        if not ours or (len(ours) < len(inputs) and _operation(node) != "CatBackward0"):
            return torch.zeros(self.channels, dtype=torch.bool)
        return torch.stack([self._constant(each) for each in ours]).all(0)

    def cuts(self, roots: Collection[int]) -> dict[nn.Module, Cut]:
        """Return the channels to cut from each layer together with channels `roots` of the root."""
        roots, found = set(roots), dict[nn.Module, Cut]()
        for item in self.items:
            module = item.dep.target.module
            if has_channels(module):
                gone = frozenset(i for i, root in zip(item.idxs, item.root_idxs, strict=True) if root in roots)
                found[module] = found.get(module, Cut()) | (Cut(ins=gone) if self.reads(item) else Cut(outs=gone))
        return found


def _is_known(node: Any, seen: Seen) -> bool:
    module, operation = node.module, _operation(node)
    if isinstance(module, nn.Parameter) or module in seen.modules:
        return has_channels(module) and module in seen.once
    if _is_weight(node):
        return True
    saved = node.grad_fn
    if operation == "MeanBackward1":
        return _no_channel(saved._saved_dim, saved._saved_self_sym_sizes)
    if operation == "SliceBackward0":
        return _no_channel([saved._saved_dim], saved._saved_self_sym_sizes)
    if operation == "CatBackward0":
        return saved._saved_dim == 1
    if operation == "ConstantPadNdBackward0":  # pairs of paddings, the last dimension's first
        return not any(saved._saved_pad[4:])
    if operation in RESHAPES:  # [N, C, H, W] is flattened
        return len(saved._saved_self_sym_sizes) == 4
    return operation in CHANNELWISE


def _no_channel(dimensions: Collection[int], sizes: Collection[int]) -> bool:
    """Whether all dimensions are among the last two of [N, C, H, W]; autograd stores a negative -n as 2**64 - n."""
    signed = [each - 2**64 if each >= 2**63 else each for each in dimensions]
    return len(sizes) == 4 and bool(signed) and all(each % 4 >= 2 for each in signed)


def _operation(node: Any) -> str:
    return node.grad_fn.name() if hasattr(node.grad_fn, "name") else ""


def _is_weight(node: Any) -> bool:
    """Whether the node is a linear layer's transposed weight, which autograd shows as an input of the layer."""
    return _operation(node) == "TBackward0" and not node.inputs
