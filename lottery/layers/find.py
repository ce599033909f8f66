"""The search for removable units: candidates from a trace of the forward pass, then the proof by numbers."""

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


class Search:
    """One network's `units` by name, in the order of the forward pass; `refused`: what is none, and why.

    All is tried on a private copy with random weights, so that what is found depends on the architecture alone: not on
    weights that happen to be zero, or that a training has blown up.
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
        with torch.random.fork_rng(devices=[]):
            self._trace = self._traced(tuple(shape))
            self._runs = Counter(call.path for call in self._trace.calls)
            self._additions = Counter(branch.owner for branch in self._trace.branches)
            self.units = self._agreeing(self._innermost(self._sound(self._candidates())))
        for path in self._trace.others:
            self.refused.setdefault(path, "the shortcut is not the identity")
        del self._network, self._images, self._owned, self._trace

    def _traced(self, shape: tuple[int, ...]) -> Trace:
        try:
            with Trace(self._network) as trace:
                self._network(trace.sees(self._images.clone()))
        except Exception as error:
            name = type(self._network).__name__
            raise ConfigError(f"model: {name} does not run on images of {list(shape)}: {cause(error)}") from error
        return trace

    def _redraw_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Other weights, in place: layers keep variances or lower them a bit, no bias and no gain is like another."""
        for parameter in parameters:
            if parameter.is_floating_point():
                inputs = parameter[0].numel() if parameter.ndim > 1 else 0
                bound = sqrt(3 / (4 * inputs)) if inputs else sqrt(3)  # standard deviations 1/(2 sqrt(inputs)) and 1
                generator = torch.Generator(parameter.device).manual_seed(next(self._seeds))
                parameter.uniform_(-bound, bound, generator=generator)

    # -- candidates -------------------------------------------------------------------------------------------------

    def _candidates(self) -> dict[int, list[Unit]]:
        """By the call that makes the addition: the module as a whole, then its branches."""
        found: dict[int, list[Unit]] = {}
        for branch in sorted(self._trace.branches, key=lambda branch: len(branch.values)):  # inner ones first
            units = self._branch(branch)
            if units and branch.owner not in found:
                path = self._trace.calls[branch.owner].path
                found[branch.owner] = self._unit(path, [path], whole=True) if path else []
            if units:
                found[branch.owner] += units
        return found

    def _branch(self, branch: Branch) -> list[Unit]:
        # A module without parameters that runs elsewhere too, as one ReLU may, stays: of zeros it makes zeros.
        modules = [path for path in branch.modules if self._runs[path] == 1 or self._tensors([path])]
        heavy = [path for path in modules if self._tensors([path], self.weights)]
        if not heavy:
            return []
        block = self._trace.calls[branch.owner].path
        name = block if block and len(heavy) > 1 and self._additions[branch.owner] == 1 else heavy[0]
        return self._unit(name, modules, whole=False)

    def _unit(self, name: str, modules: list[str], whole: bool) -> list[Unit]:
        """One unit, or none where it does not have its modules and parameters for itself."""
        held = self._tensors(modules)
        own = Counter(id(self._owned[tensor]) for tensor in held if tensor in self._owned)
        if any(self._runs[path] > 1 for path in modules):
            self.refused[name] = "runs more than once"
        elif any(count != self._holders[parameter] for parameter, count in own.items()):
            self.refused[name] = "shares parameters with another module"
        else:
            return [Unit(name, tuple(modules), whole, held, self._tensors(modules, self.weights))]
        return []

    def _tensors(self, modules: list[str], names: list[str] | None = None) -> tuple[str, ...]:
        """Those of the names in the state_dict that belong to these modules."""
        prefixes = tuple(f"{path}." for path in modules)
        return tuple(name for name in (self._names if names is None else names) if name.startswith(prefixes))

    # -- proof ------------------------------------------------------------------------------------------------------

    def _sound(self, candidates: Mapping[int, list[Unit]]) -> dict[int, list[Unit]]:
        """Those that compute what they should: tried in one forward pass, each on the inputs that it gets there."""
        sound: dict[int, list[Unit]] = {owner: [] for owner in candidates}
        hooks: dict[int, RemovableHandle] = {}
        busy = False  # a unit is being tried: modules inside are not, not with such inputs

        def attempt(owner: int, module: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal busy
            if busy:
                return
            hooks[owner].remove()  # a module may run other code where it has hooks
            busy = True
            for unit in candidates[owner]:
                wrong = self._wrong(unit, module, args, kwargs)
                if wrong is None:
                    sound[owner].append(unit)
                else:
                    self.refused[unit.name] = wrong
            busy = False

        for owner in candidates:
            module = self._network.get_submodule(self._trace.calls[owner].path)
            hooks[owner] = module.register_forward_pre_hook(partial(attempt, owner), with_kwargs=True)
        self._network(self._images.clone())
        return sound

    def _wrong(self, unit: Unit, owner: nn.Module, args: Any, kwargs: Any) -> str | None:
        def run() -> list[Tensor]:
            mine, named = deepcopy((args, kwargs))  # a network may change its inputs in place
            return list(tensors(owner(*mine, **named)))

        silence_(self._network, unit)
        expected = run()
        try:
            with without(self._network, [unit]):
                found = list(tensors(args))[:1] if unit.whole else run()
        except Exception as error:
            return f"without it the network does not run: {cause(error)}"
        finally:
            self._redraw_(self._owned[name] for name in unit.tensors if name in self._owned)
        if any(bool(each.amin() == each.amax()) for each in expected):
            return "the random features that it was tried with vanish"
        gives = "it does not give its input" if unit.whole else "its branch is not zero"
        return None if _all_same(found, expected) else f"with its parameters zero {gives}"

    # -- choice -----------------------------------------------------------------------------------------------------

    def _innermost(self, sound: Mapping[int, list[Unit]]) -> list[Unit]:
        """Of units in one another the inner ones, in the order of the forward pass.

        Of a module that makes one addition the whole of it if possible, of one that makes several their branches.
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
        """Those without which the whole network computes the same as with their parameters zero."""
        if not self._agree(units):
            self.refused |= {unit.name: "without it the network computes something else" for unit in units}
            units = [unit for unit in units if self._agree([unit])]
        return {unit.name: unit for unit in units}

    def _agree(self, units: list[Unit]) -> bool:
        self._redraw_(self._network.parameters())
        for unit in units:
            silence_(self._network, unit)
        expected = list(tensors(self._network(self._images.clone())))
        try:
            with without(self._network, units):
                return _all_same(list(tensors(self._network(self._images.clone()))), expected)
        except Exception as error:
            self.refused |= {unit.name: f"without it the network does not run: {cause(error)}" for unit in units}
            return False


def _all_same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(same, found, expected))
