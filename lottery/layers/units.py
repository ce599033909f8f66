"""The units that can leave a network as a whole, and what goes into and comes out of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lottery.errors import LotteryError
from lottery.layers.find import Search
from lottery.layers.removal import Unit, check_removal, dense_form, remove_, shallow, silenced
from lottery.layers.trace import Branch, Trace

__all__ = [
    "Unit",
    "check_removal",
    "dense_form",
    "features",
    "find_units",
    "no_units",
    "remove_",
    "shallow",
    "silenced",
]


def find_units(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Unit]:
    """The removable units by name, in the order of the forward pass. `shape`: of one image, (C, H, W).

    A unit is a residual branch that holds convolutions or linear layers: the whole block, where that gives its input
    when its parameters are zero; else the modules on the branch, where that is zero then. Of units in one another the
    innermost are taken. A unit's parameters are its own, and its modules run once in a forward pass.

    What is found depends on the architecture alone; the network stays as it is, in whatever mode it is. ConfigError
    where it does not run on such images.
    """
    return Search(network, shape).units


def no_units(network: nn.Module, shape: tuple[int, ...]) -> str:
    """What was examined in a network without removable units, and why it is none: a line."""
    search = Search(network, shape)
    examined = f"examined the {len(search.weights)} convolution and linear weights of {type(network).__name__}"
    if not search.refused:
        return f"{examined}: no layer's input is added to its output"
    shown = [f"{path or type(network).__name__}: {why}" for path, why in list(search.refused.items())[:4]]
    more = f"; and {len(search.refused) - 4} more" if len(search.refused) > 4 else ""
    return f"{examined}; {'; '.join(shown)}{more}"


@torch.no_grad()
def features(network: nn.Module, units: Mapping[str, Unit], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into each unit and what comes out after the addition (input + branch), of equal shapes [N, ...].

    One forward pass in the network's present mode; a whole block's output is the block's own. Units of the dense
    network can be looked at in one from which other units have been removed; LotteryError for one of another network.
    """
    trace = _Features(network, units)
    with trace:
        network(trace.sees(images))
    if missing := [name for name in units if name not in trace.found]:
        raise LotteryError(f"{type(network).__name__} has no unit {missing[0]!r}")
    return {name: trace.found[name] for name in units}


class _Features(Trace):
    """A trace that keeps copies of units' inputs and outputs, before anything changes them in place."""

    def __init__(self, network: nn.Module, units: Mapping[str, Unit]) -> None:
        super().__init__(network)
        self.found: dict[str, tuple[Tensor, Tensor]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._whole = {unit.modules[0]: name for name, unit in units.items() if unit.whole}
        self._ends = {unit.modules[-1]: name for name, unit in units.items() if not unit.whole}
        self._copies = WeakIdKeyDictionary()  # tensor -> its version and the copy: the next unit's input is no new one

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
        if name is None or name in self.found:  # a longer shortcut around the unit comes later
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
