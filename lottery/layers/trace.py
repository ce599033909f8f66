"""Record a forward pass: which tensor is computed from which, which module calls which, and what is added to what.

Residual branches are found in this record, whatever a network's classes and code. Where two tensors of one shape are
added and one was computed from the other, the other is the shortcut, and the modules between are the branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from lottery.errors import LotteryError

if TYPE_CHECKING:
    from lottery.layers.removal import Unit

_ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})


@dataclass
class Call:
    """One run of a module. `parent`: the index in `Trace.calls` of the calling module's run, or -1 for none."""

    path: str
    parent: int
    begins: int  # number of values that existed when the call began
    outputs: frozenset[int] | None = None  # None until the call ends


@dataclass(frozen=True)
class Branch:
    """The modules and values between a shortcut and its addition.

    modules: paths of the outermost modules on the way, in the order of their calls
    owner:   index of the call that does the addition and that calls these modules, directly or deeper
    values:  the values computed on the way
    """

    modules: tuple[str, ...]
    owner: int
    values: frozenset[int]


class Trace(TorchFunctionMode):
    """A record of one forward pass: `trace = Trace(network); trace.run(images)`. Tensors are not kept.

    A value is one content of a tensor: an in-place operation creates a new value of the same tensor.

    values:   for each value, the older values it was computed from
    calls:    the runs of modules, in the order in which they begin
    branches: the residual branches, in the order of their additions
    others:   paths of modules that add two tensors, neither computed from the other by a module
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.values: list[tuple[int, ...]] = []
        self.calls: list[Call] = []
        self.branches: list[Branch] = []
        self.others: list[str] = []
        self._known = WeakIdKeyDictionary()  # tensor -> (version, value)
        self._seen: set[int] = set()  # values that depend on the images
        self._open: list[int] = []  # calls that have not ended

    def run(self, images: Tensor) -> None:
        """Record the forward pass on these images, which the network may change in place."""
        self._seen.add(self._value(images))
        with ExitStack() as stack:
            for path, module in self.network.named_modules():
                stack.enter_context(module.register_forward_pre_hook(partial(self._begin, path)))
                stack.enter_context(module.register_forward_hook(self._end))
            stack.enter_context(self)
            self.network(images)

    def joined(self, branch: Branch, shortcut: Tensor, add: Callable[[], Tensor]) -> Tensor:
        """Do the addition at the end of a branch. A subclass may look at the operands and the result."""
        return add()

    def _begin(self, path: str, module: nn.Module, args: Any) -> None:
        self.calls.append(Call(path, self._open[-1] if self._open else -1, len(self.values)))
        self._open.append(len(self.calls) - 1)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self.calls[self._open.pop()]
        # An unknown output comes from an operation that torch does not show: assume it was computed from the inputs.
        inputs = tuple(self._value(each) for each in tensors(args))
        call.outputs = frozenset(self._value(each, inputs) for each in tensors(output))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made_of = tuple(self._value(each) for each in tensors((args, kwargs)))
        run = partial(func, *args, **kwargs)
        if getattr(func, "__name__", "") in _ADDITIONS and len(args) == 2 and all(isinstance(a, Tensor) for a in args):
            result = self._added(args, made_of, run)
        else:
            result = run()
        for each in tensors(result):
            self._value(each, made_of)
        return result

    def _added(self, operands: tuple[Tensor, Tensor], values: tuple[int, ...], add: Callable[[], Tensor]) -> Tensor:
        if operands[0].shape != operands[1].shape or not self._seen.issuperset(values):
            return add()
        shortcut, end = sorted(values)  # a value has a higher number than the values it was computed from
        branch = self._branch(shortcut, end)
        if branch is None:
            self.others.append(self.calls[self._open[-1]].path if self._open else "")
            return add()
        self.branches.append(branch)
        return self.joined(branch, operands[values.index(shortcut)], add)

    def _value(self, tensor: Tensor, made_of: tuple[int, ...] = ()) -> int:
        """Return the number of the tensor's present value; an unknown value gets a new one, computed from `made_of`."""
        version, value = self._known.get(tensor, (None, -1))
        if version == tensor._version:
            return value
        if not made_of and version is not None:
            made_of = (value,)  # changed in place by an operation that did not return it
        self.values.append(made_of)
        value = len(self.values) - 1
        self._known[tensor] = tensor._version, value
        if not self._seen.isdisjoint(made_of):
            self._seen.add(value)
        return value

    def _branch(self, shortcut: int, end: int) -> Branch | None:
        """Return the branch from `shortcut` to `end`; None if `end` does not depend on it or no module lies between."""
        way = self._way(shortcut, end)
        modules: dict[str, None] = {}  # in order
        owner = len(self.calls)
        for call in self.calls:
            # The call has ended, began after the shortcut, and is an outermost one: its caller is still open.
            if call.outputs and call.begins > shortcut and call.parent in self._open and way & call.outputs:
                modules[call.path] = None
                owner = min(owner, call.parent)
        return Branch(tuple(modules), owner, way) if modules else None

    def _way(self, shortcut: int, end: int) -> frozenset[int]:
        """Return `end` and the values computed from `shortcut` that `end` is computed from; empty if there are none."""
        before, todo = {end}, [end]
        while todo:
            new = {value for value in self.values[todo.pop()] if value >= shortcut} - before
            before |= new
            todo += new
        way = {shortcut} & before
        for value in sorted(before):
            if not way.isdisjoint(self.values[value]):
                way.add(value)
        return frozenset(way - {shortcut})


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for each in inner for tensor in tensors(each)]


@torch.no_grad()
def features(network: nn.Module, units: Mapping[str, Unit], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each unit's input and its output after the addition (input + branch), of equal shapes [N, ...].

    Takes one forward pass in the network's present mode; a whole block's output is the block's own. The network may
    lack other units of the dense network. Raises LotteryError for a unit that it does not have.
    """
    trace = _FeatureTrace(network, units)
    trace.run(images)
    if missing := [name for name in units if name not in trace.found]:
        raise LotteryError(f"{type(network).__name__} has no unit {missing[0]!r}")
    return {name: trace.found[name] for name in units}


class _FeatureTrace(Trace):
    """A trace with copies of units' inputs and outputs, taken before anything changes them in place."""

    def __init__(self, network: nn.Module, units: Mapping[str, Unit]) -> None:
        super().__init__(network)
        self.found: dict[str, tuple[Tensor, Tensor]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._whole = {unit.modules[0]: name for name, unit in units.items() if unit.whole}
        self._ends = {unit.modules[-1]: name for name, unit in units.items() if not unit.whole}
        self._copies = WeakIdKeyDictionary()  # tensor -> (version, copy): one unit's output is the next unit's input

    def _begin(self, path: str, module: nn.Module, args: Any) -> None:
        super()._begin(path, module, args)
        if path in self._whole:
            self._inputs[path] = self._copy(args[0])

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        path = self.calls[self._open[-1]].path
        super()._end(module, args, output)
        if path in self._whole:
            self.found[self._whole[path]] = self._inputs.pop(path), self._copy(output)

    def joined(self, branch: Branch, shortcut: Tensor, add: Callable[[], Tensor]) -> Tensor:
        name = next((self._ends[path] for path in reversed(branch.modules) if path in self._ends), None)
        if name is None or name in self.found:  # found already: this is a longer shortcut around the unit
            return add()
        before, result = self._copy(shortcut), add()
        self.found[name] = before, self._copy(result)
        return result

    def _copy(self, tensor: Tensor) -> Tensor:
        version, copy = self._copies.get(tensor, (None, tensor))
        if version != tensor._version:
            copy = tensor.detach().clone()
            self._copies[tensor] = tensor._version, copy
        return copy


@torch.no_grad()
def last_input(network: nn.Module, images: Tensor) -> Tensor:
    """Return the input [N, ...] of the convolution or linear layer that runs last: in most networks the classifier.

    Runs the network in its present mode. Raises LotteryError where no such layer runs.
    """
    inputs: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[:] = [args[0] if args else kwargs["input"]]

    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, nn.Linear | _ConvNd):
                stack.enter_context(module.register_forward_pre_hook(see, with_kwargs=True))
        network(images)
    if not inputs:
        raise LotteryError(f"{type(network).__name__} runs no convolution or linear layer")
    return inputs[0]
