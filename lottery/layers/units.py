"""Find the units that can leave a network: trace a forward pass for candidates, and test each numerically."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import partial
from itertools import count
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from lottery.errors import ConfigError, cause
from lottery.layers.removal import Unit, draw_images, same, silence_, without
from lottery.layers.trace import Branch, Trace, tensors
from lottery.pruning.prunable import weight_shapes


def find_units(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Unit]:
    """Return the removable units by name, in the order of the forward pass. `shape`: of one image, (C, H, W).

    A unit is a residual branch that holds convolutions or linear layers: the whole block, if it returns its input when
    its parameters are zero; otherwise the modules on the branch, if the branch is zero then. Of nested units the
    innermost are taken. No other module shares a unit's parameters, and its modules run once in a forward pass.

    The network and its mode are unchanged. Raises ConfigError where the network does not run on such images.
    """
    return UnitFinder(network, shape).units


def no_units(network: nn.Module, shape: tuple[int, ...]) -> str:
    """Describe in one line a network without removable units: what was examined, and why each candidate was refused."""
    finder, kind = UnitFinder(network, shape), type(network).__name__
    examined = f"examined the {len(finder.weights)} convolution and linear weights of {kind}"
    if not finder.refused:
        return f"{examined}: no layer's input is added to its output"
    reasons = [f"{path or kind}: {why}" for path, why in finder.refused.items()]
    more = [f"and {len(reasons) - 4} more"] if len(reasons) > 4 else []
    return "; ".join([examined, *reasons[:4], *more])


class UnitFinder:
    """The search for a network's removable `units`, named in forward order; `refused`: others, and why.

    Works on a private copy with random weights, so that the result depends on the architecture alone, and not on
    weights that happen to be zero or have diverged in training.
    """

    @torch.no_grad()
    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self.refused: dict[str, str] = {}
        self.weights = list(weight_shapes(network))
        self._network = deepcopy(network).eval()
        self._seeds = count()
        self._redraw_(self._network.parameters())
        for module in self._network.modules():
            if isinstance(module, _NormBase):
                module.reset_running_stats()
        self._images = draw_images(shape, self._network)
        self._names = list(self._network.state_dict())
        self._owned = dict(self._network.named_parameters(remove_duplicate=False))
        self._holders = Counter(map(id, self._owned.values()))
        self._trace = Trace(self._network)
        with torch.random.fork_rng(devices=[]):
            try:
                self._trace.run(self._images.clone())
            except Exception as error:
                name = type(network).__name__
                raise ConfigError(f"model: {name} does not run on images of {list(shape)}: {cause(error)}") from error
            self._runs = Counter(call.path for call in self._trace.calls)
            self._additions = Counter(branch.owner for branch in self._trace.branches)
            self.units = self._agreeing(self._innermost(self._sound(self._candidates())))
        for path in self._trace.others:
            self.refused.setdefault(path, "the shortcut is not the identity")
        del self._network, self._images, self._owned, self._trace

    def _redraw_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Draw new weights, in place: layers keep or lower the variance, and no two biases or gains are equal."""
        for parameter in parameters:
            if parameter.is_floating_point():
                inputs = parameter[0].numel() if parameter.ndim > 1 else 0
                bound = sqrt(3 / (4 * inputs)) if inputs else sqrt(3)  # standard deviations 1/(2 sqrt(inputs)) and 1
                generator = torch.Generator(parameter.device).manual_seed(next(self._seeds))
                parameter.uniform_(-bound, bound, generator=generator)

    def _candidates(self) -> dict[int, list[Unit]]:
        """Map each call that does an addition to its candidates: the module as a whole, then its branches."""
        found: dict[int, list[Unit]] = {}
        for branch in sorted(self._trace.branches, key=lambda branch: len(branch.values)):  # inner ones first
            if units := self._branch(branch):
                if branch.owner not in found:
                    path = self._trace.calls[branch.owner].path
                    found[branch.owner] = self._unit(path, [path], whole=True) if path else []
                found[branch.owner] += units
        return found

    def _branch(self, branch: Branch) -> list[Unit]:
        # A module without parameters that runs elsewhere too, such as a shared ReLU, stays: it maps zeros to zeros.
        modules = [path for path in branch.modules if self._runs[path] == 1 or self._tensors([path], self._names)]
        heavy = [path for path in modules if self._tensors([path], self.weights)]
        if not heavy:
            return []
        block = self._trace.calls[branch.owner].path
        name = block if block and len(heavy) > 1 and self._additions[branch.owner] == 1 else heavy[0]
        return self._unit(name, modules, whole=False)

    def _unit(self, name: str, modules: list[str], whole: bool) -> list[Unit]:
        held = self._tensors(modules, self._names)
        own = Counter(id(self._owned[tensor]) for tensor in held if tensor in self._owned)
        if any(self._runs[path] > 1 for path in modules):
            self.refused[name] = "runs more than once"
            return []
        if any(count != self._holders[parameter] for parameter, count in own.items()):
            self.refused[name] = "shares parameters with another module"
            return []
        return [Unit(name, tuple(modules), whole, held, self._tensors(modules, self.weights))]

    def _tensors(self, modules: list[str], names: list[str]) -> tuple[str, ...]:
        prefixes = tuple(f"{path}." for path in modules)
        return tuple(name for name in names if name.startswith(prefixes))

    def _sound(self, candidates: Mapping[int, list[Unit]]) -> dict[int, list[Unit]]:
        """Return the candidates that `_wrong` accepts, each on the inputs that its owner gets in one forward pass."""
        sound: dict[int, list[Unit]] = {owner: [] for owner in candidates}
        hooks: dict[int, RemovableHandle] = {}
        busy = False  # while a unit is tried, modules inside it receive inputs that must not be used to try them

        def attempt(owner: int, module: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal busy
            if busy:
                return
            hooks[owner].remove()  # a module may run different code while it has hooks
            busy = True
            for unit in candidates[owner]:
                if wrong := self._wrong(unit, module, args, kwargs):
                    self.refused[unit.name] = wrong
                else:
                    sound[owner].append(unit)
            busy = False

        for owner in candidates:
            module = self._network.get_submodule(self._trace.calls[owner].path)
            hooks[owner] = module.register_forward_pre_hook(partial(attempt, owner), with_kwargs=True)
        self._network(self._images.clone())
        return sound

    def _wrong(self, unit: Unit, owner: nn.Module, args: Any, kwargs: Any) -> str | None:
        """Compare the owner without the unit and with its parameters zero; None if equal, else the difference."""

        def run() -> list[Tensor]:
            mine, named = deepcopy((args, kwargs))  # a network may change its inputs in place
            return tensors(owner(*mine, **named))

        silence_(self._network, [unit])
        expected = run()
        try:
            with without(self._network, [unit]):
                found = tensors(args)[:1] if unit.whole else run()
        except Exception as error:
            return f"without it the network does not run: {cause(error)}"
        finally:
            self._redraw_(self._owned[name] for name in unit.tensors if name in self._owned)
        if any(bool(each.amin() == each.amax()) for each in expected):
            return "the random features that it was tried with vanish"
        gives = "it does not give its input" if unit.whole else "its branch is not zero"
        return None if _all_same(found, expected) else f"with its parameters zero {gives}"

    def _innermost(self, sound: Mapping[int, list[Unit]]) -> list[Unit]:
        """Return the innermost of nested units, in the order of the forward pass.

        A module with one addition leaves as a whole if it can; one with several additions loses their branches instead.
        """
        chosen: list[Unit] = []
        taken: set[str] = set()
        for owner in sorted(sound, reverse=True):  # inner calls come after outer ones
            several = self._additions[owner] > 1
            for unit in sorted(sound[owner], key=lambda unit: unit.whole if several else not unit.whole):
                if taken.isdisjoint(unit.tensors):
                    chosen.append(unit)
                    taken.update(unit.tensors)
        order = {call.path: position for position, call in enumerate(self._trace.calls)}
        return sorted(chosen, key=lambda unit: order[unit.modules[0]])

    def _agreeing(self, units: list[Unit]) -> dict[str, Unit]:
        """Return the units without which the whole network computes the same as with their parameters zero."""
        if not self._agree(units):
            self.refused |= {unit.name: "without it the network computes something else" for unit in units}
            units = [unit for unit in units if self._agree([unit])]
        return {unit.name: unit for unit in units}

    def _agree(self, units: list[Unit]) -> bool:
        self._redraw_(self._network.parameters())
        silence_(self._network, units)
        expected = tensors(self._network(self._images.clone()))
        try:
            with without(self._network, units):
                return _all_same(tensors(self._network(self._images.clone())), expected)
        except Exception as error:
            self.refused |= {unit.name: f"without it the network does not run: {cause(error)}" for unit in units}
            return False


def _all_same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(same, found, expected))
