"""Channels that are coupled across layers, as one group, and which of them are dead."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lottery.export.channels import Cut, has_channels, is_depthwise, mixes_channels, widths

# Operations whose output in one channel is a function of their inputs in that channel alone, by autograd's names.
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


@dataclass(frozen=True)
class Seen:
    """What forward passes showed.

    zero:    the input channels of each layer that were always zero
    flat:    the layers whose input was [N, features]
    modules: all of the network
    once:    those that were used once and share no parameter with another one
    """

    zero: dict[nn.Module, Tensor]
    flat: frozenset[nn.Module]
    modules: frozenset[nn.Module]
    once: frozenset[nn.Module]


@dataclass(frozen=True, eq=False)
class Group:
    """The layers and operations that a layer's output channels run through, with which of theirs belongs to which."""

    graph: Any
    items: Any
    channels: int
    seen: Seen

    @cached_property
    def through(self) -> dict[int, Any]:
        """All but those that read: node identity -> item."""
        return {id(item.dep.target): item for item in self.items if not self.reads(item)}

    def reads(self, item: Any) -> bool:
        """Whether it is a layer's input."""
        module = item.dep.target.module
        return mixes_channels(module) and item.dep.handler == self.graph.get_pruner_of_module(module).prune_in_channels

    @property
    def understood(self) -> bool:
        """Whether every part is one whose effect on a channel is known, and none is the network's output."""
        reshaped = any(_operation(item.dep.target) in RESHAPES for item in self.items)
        return all(
            (self.reads(item) or item.dep.target.outputs)
            and not (reshaped and _is_linear(item.dep.target.module) and item.dep.target.module not in self.seen.flat)
            and _understood(item.dep.target, self.seen)
            and max(item.idxs) < self._width(item)
            for item in self.items
        )

    def _width(self, item: Any) -> float:
        """How many channels it has; fewer than are coupled with it where one is broadcast over many."""
        module = item.dep.target.module
        return widths(module)[1 if self.reads(item) else 0] if has_channels(module) else float("inf")

    @property
    def dead(self) -> Tensor:
        """Per channel of the root: no layer that reads it is affected by it."""
        found = torch.ones(self.channels, dtype=torch.bool)
        for item in self.items:
            if self.reads(item):
                module = item.dep.target.module
                ignored = (module.weight == 0).transpose(0, 1).flatten(1).all(1)
                silent = self._all(item, self.seen.zero[module]) & self._inputs_constant(item.dep.target)
                found &= self._all(item, ignored) | silent
        return found

    def _all(self, item: Any, holds: Tensor) -> Tensor:
        """Per channel of the root, whether something holds for all channels of the item that belong to it."""
        found = torch.ones(self.channels, dtype=torch.bool)
        found[torch.tensor(item.root_idxs)[~holds[torch.tensor(item.idxs)]]] = False
        return found

    @cached_property
    def _known(self) -> dict[int, Tensor]:
        return {}

    def _constant(self, node: Any) -> Tensor:
        """Per channel of the root, whether the node's output there is the same for all images."""
        if id(node) not in self._known:
            item, module = self.through[id(node)], node.module
            if mixes_channels(module):
                found = self._all(item, (module.weight == 0).flatten(1).all(1))
            else:
                found = self._inputs_constant(node)
                if isinstance(module, _BatchNorm) and module.affine:
                    found = found | self._all(item, module.weight == 0)
                elif is_depthwise(module):
                    found = found | self._all(item, (module.weight == 0).flatten(1).all(1))
            self._known[id(node)] = found
        return self._known[id(node)]

    def _inputs_constant(self, node: Any) -> Tensor:
        """Likewise for all its inputs. Of a concatenation one input has the channel, of all else every one."""
        inputs = [each for each in node.inputs if not _is_weight(each)]
        ours = [each for each in inputs if id(each) in self.through]
        if not ours or (len(ours) < len(inputs) and _operation(node) != "CatBackward0"):
            return torch.zeros(self.channels, dtype=torch.bool)
        return torch.stack([self._constant(each) for each in ours]).all(0)

    def cuts(self, roots: Collection[int]) -> dict[nn.Module, Cut]:
        """What goes from which layer with these channels of the root."""
        found: dict[nn.Module, Cut] = {}
        for item in self.items:
            module = item.dep.target.module
            if has_channels(module):
                indices = {i for i, root in zip(item.idxs, item.root_idxs, strict=True) if root in roots}
                cut = found.setdefault(module, Cut())
                if self.reads(item):
                    cut.ins |= indices
                else:
                    cut.outs |= indices
        return found


def _understood(node: Any, seen: Seen) -> bool:
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
    if operation == "ConstantPadNdBackward0":  # pairs of paddings, of the last dimension first
        return not any(saved._saved_pad[4:])
    if operation in RESHAPES:  # of [N, C, H, W]: flattened
        return len(saved._saved_self_sym_sizes) == 4
    return operation in CHANNELWISE


def _no_channel(dimensions: Collection[int], sizes: Collection[int]) -> bool:
    """Whether dimensions of an [N, C, H, W] are all of its last two; autograd keeps negative ones as 2**64 - n."""
    signed = [each - 2**64 if each >= 2**63 else each for each in dimensions]
    return len(sizes) == 4 and bool(signed) and all(each % 4 >= 2 for each in signed)


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear)


def _operation(node: Any) -> str:
    return node.grad_fn.name() if hasattr(node.grad_fn, "name") else ""


def _is_weight(node: Any) -> bool:
    """A linear layer's transposed weight, which autograd shows as an input of the layer."""
    return _operation(node) == "TBackward0" and not node.inputs
