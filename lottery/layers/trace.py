"""What a forward pass really does: which tensor is made of which, which module calls which, what is added to what.

Residual branches are found by this, whatever the classes and the code of a network are: where two tensors of one shape
are added and one of them was computed from the other, what lies between them is the branch, and the other the shortcut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

_ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})


@dataclass
class Call:
    """One run of a module. `parent` is the call that made it (an index of `Trace.calls`; -1: nobody's)."""

    path: str
    parent: int
    begins: int  # how many values there were before it
    outputs: frozenset[int] | None = None  # None: not done yet


@dataclass(frozen=True)
class Branch:
    """What lies between a shortcut and the addition.

    modules: paths of the modules on the way, in the order of their calls: those called outermost, not their parts
    owner:   the call that makes the addition and, itself or deeper, calls these modules
    values:  the values made on the way
    """

    modules: tuple[str, ...]
    owner: int
    values: frozenset[int]


@dataclass(eq=False)
class Trace(TorchFunctionMode):
    """Records one forward pass: `with Trace(network) as trace: network(trace.sees(images))`.

    A value is one content of a tensor: an operation in place makes a new value of the same tensor. The tensors
    themselves are not kept.
    """

    network: nn.Module
    values: list[tuple[int, ...]] = field(default_factory=list)  # of each: the values it was made of, all older
    calls: list[Call] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)  # in the order of the additions
    others: list[str] = field(default_factory=list)  # modules that add tensors of which none comes from the other

    def __post_init__(self) -> None:
        super().__init__()
        self._known = WeakIdKeyDictionary()  # tensor -> its version and its value
        self._seen: set[int] = set()  # values that depend on the images
        self._open: list[int] = []  # calls

    def __enter__(self) -> Trace:
        self._handles = []
        for path, module in self.network.named_modules():
            self._handles.append(module.register_forward_pre_hook(partial(self._begin, path)))
            self._handles.append(module.register_forward_hook(self._end))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def sees(self, images: Tensor) -> Tensor:
        """The images, of which from now on is known what is made of them."""
        self._seen.add(self._value(images))
        return images

    def joined(self, branch: Branch, shortcut: Tensor, add: Callable[[], Tensor]) -> Tensor:
        """Makes the addition at the end of a branch; for those who want to see it."""
        return add()

    # -- modules ----------------------------------------------------------------------------------------------------

    def _begin(self, path: str, module: nn.Module, args: Any) -> None:
        self.calls.append(Call(path, self._open[-1] if self._open else -1, len(self.values)))
        self._open.append(len(self.calls) - 1)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self.calls[self._open.pop()]
        # An operation that torch does not show made what is not known yet: of the module's inputs, as far as one knows.
        inputs = tuple(self._value(each) for each in tensors(args))
        call.outputs = frozenset(self._value(each, inputs) for each in tensors(output))

    # -- operations -------------------------------------------------------------------------------------------------

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
        shortcut, end = sorted(values)  # what is made of the other is younger
        branch = self._branch(shortcut, end)
        if branch is None:
            self.others.append(self.calls[self._open[-1]].path if self._open else "")
            return add()
        self.branches.append(branch)
        return self.joined(branch, operands[values.index(shortcut)], add)

    def _value(self, tensor: Tensor, made_of: tuple[int, ...] = ()) -> int:
        """The number of this tensor's present value; a new one, made of these, where it is not known."""
        version, value = self._known.get(tensor, (None, -1))
        if version == tensor._version:
            return value
        if not made_of and version is not None:
            made_of = (value,)  # changed by something that did not return it
        self.values.append(made_of)
        value = len(self.values) - 1
        self._known[tensor] = tensor._version, value
        if not self._seen.isdisjoint(made_of):
            self._seen.add(value)
        return value

    # -- branches ---------------------------------------------------------------------------------------------------

    def _branch(self, shortcut: int, end: int) -> Branch | None:
        """The branch from `shortcut` to `end`; None where `end` is not made of it, or by no module."""
        way = self._way(shortcut, end)
        modules: dict[str, None] = {}  # in order
        owner = len(self.calls)
        for call in self.calls:
            # Finished, begun on the way, and called by one that is still at work: not a part of another one on the way.
            if call.outputs and call.begins > shortcut and call.parent in self._open and way & call.outputs:
                modules[call.path] = None
                owner = min(owner, call.parent)
        return Branch(tuple(modules), owner, way) if modules else None

    def _way(self, shortcut: int, end: int) -> frozenset[int]:
        """All values that are made of `shortcut` and that `end` is made of, with `end`; empty where there are none."""
        before, todo = {end}, [end]
        while todo:
            for value in self.values[todo.pop()]:
                if value >= shortcut and value not in before:
                    before.add(value)
                    todo.append(value)
        way = {shortcut} & before
        for value in sorted(before):
            if not way.isdisjoint(self.values[value]):
                way.add(value)
        return frozenset(way - {shortcut})


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors(each)
