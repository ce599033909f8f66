"""What layer tickets are made of: a network's removable units, their scores as a stage, tickets without some of them,
and the controls of these.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from math import comb, isfinite, prod
from typing import Any

import torch
from torch import nn

from lottery.config import digest
from lottery.data.dataset import Batch, Dataset
from lottery.data.sample import check_per_class
from lottery.errors import ConfigError, LotteryError
from lottery.layers.scoring import UnitScoring
from lottery.layers.units import Unit, check_removal, find_units, no_units, remove_, silenced
from lottery.parts import made, own_code
from lottery.pruning.prunable import weight_shapes
from lottery.seeding import derive
from lottery.stages.evaluate import evaluated
from lottery.stages.masks import Unscored
from lottery.stages.store import Store
from lottery.state import State, StateRef
from lottery.ticket import Mask, Ticket

LOG = logging.getLogger("lottery")
VERSION = 1  # raise when the numerics of scoring units change


@dataclass
class LayerStages:
    """The removable units of one network. States are the dense network's, with the parameters of removed units zero."""

    store: Store
    build: Callable[[], nn.Module]  # a new dense network; its weights are then replaced by the state's
    data: Callable[[], Dataset]  # on the training device
    device: torch.device
    seed: int  # seeds.mask
    inputs: dict[str, Any]  # what scores read besides the criterion: model, data
    full: Mask  # the dense network's
    facts: Callable[[], dict[str, str]]  # recorded with a stage: device, threads
    on_reuse: Callable[[dict[str, str]], None]  # is told the environment of a stage that was found
    keys: dict[frozenset[str], str] = field(default_factory=dict)  # removed units: the stage that they were chosen by
    _order: dict[frozenset[str], list[str]] = field(default_factory=dict)  # removed units: all, first to go first

    @cached_property
    def units(self) -> dict[str, Unit]:
        """All that can be removed, in the order of the forward pass; empty where there are none."""
        return find_units(self.build(), self.image_shape)

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        return self.data().shape

    @cached_property
    def _dense(self) -> nn.Module:
        return self.build()

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._dense.named_parameters())

    # -- tickets ----------------------------------------------------------------------------------------------------

    def ticket(self, of: Ticket, removed: Collection[str]) -> Ticket:
        """The ticket `of` without these units, nor the weights in them.

        The shallow network is built and run once before, so that a removal that breaks the network is a ConfigError
        here, before any training.
        """
        if unknown := [name for name in removed if name not in self.units]:
            raise LotteryError(f"no removable unit {unknown[0]!r}; there are {', '.join(self.units)}")
        units = [unit for name, unit in self.units.items() if name in removed]
        if units:
            check_removal(self._dense, units, self.image_shape)
        gone = {name for unit in units for name in unit.weights}
        mask = Mask({name: kept & (name not in gone) for name, kept in of.mask.items()})
        return replace(of, mask=mask, removed=tuple(unit.name for unit in units))

    def kept(self, ticket: Ticket) -> Mask:
        """Which units a ticket keeps: a mask of one entry a unit."""
        return Mask({name: torch.tensor([name not in ticket.removed]) for name in self.units})

    def weights_of(self, removed: Collection[str]) -> frozenset[str]:
        """The convolution and linear weights of these units, by name."""
        return frozenset(name for unit in removed for name in self.units[unit].weights)

    def unprunable_in(self, removed: Collection[str]) -> int:
        """How many of these weights may not be pruned one by one, and so are no part of a mask."""
        gone = self.weights_of(removed) - set(self.full)
        return sum(shape.numel() for name, shape in weight_shapes(self._dense).items() if name in gone)

    def silenced(self, state: State, removed: Collection[str]) -> State:
        """A dense network's state, in which these units give nothing."""
        return silenced(state, [self.units[name] for name in removed], self._parameters)

    def shallow_(self, network: nn.Module, removed: Collection[str]) -> nn.Module:
        """The dense network, really without these units, in place."""
        remove_(network, [self.units[name] for name in removed])
        return network

    def check(self, criterion: Mapping[str, Any], candidates: Sequence[str], count: int) -> None:
        """Raise ConfigError where there are no units, or less than `count`, or the criterion refuses its options."""
        if not self.units:
            raise ConfigError(f"model: has no removable units: {no_units(self.build(), self.image_shape)}")
        if count > len(candidates):
            expected = f"at most {len(candidates)}, the removable units: {', '.join(candidates)}"
            raise ConfigError.of("method.remove", count, expected)
        holding = [name for name in candidates if not self.full.keys().isdisjoint(self.units[name].weights)]
        if set(self.full) <= self.weights_of(candidates) and count >= len(holding):
            expected = f"less than {len(holding)}, or nothing prunable would be left outside of the removed units"
            raise ConfigError.of("method.remove", count, expected)
        function = made(criterion, "method.criterion")
        option = signature(function).parameters.get("per_class")
        if option is not None:
            check_per_class(self.data().class_sizes, option.default, "method.criterion.per_class")

        def unscored(*_: object) -> Any:
            raise Unscored

        units = {name: self.units[name] for name in candidates}
        with suppress(Unscored):  # it is called, up to its first look at the network
            function(UnitScoring(units, unscored, unscored, unscored, torch.Generator(), self.image_shape))

    # -- scores -----------------------------------------------------------------------------------------------------

    def lowest(
        self, criterion: Mapping[str, Any], state: StateRef, ticket: Ticket, candidates: Sequence[str], count: int
    ) -> tuple[str, ...]:
        """The ticket's removed units and, of the other candidates, those of lowest score: `count` in all.

        Of equal scores the earlier unit goes first. `criterion` is the node of the configuration.
        """
        left = [name for name in candidates if name not in ticket.removed]
        scores, key = self.scores(criterion, state, ticket, left)
        order = [*self._order.get(frozenset(ticket.removed), ticket.removed)[: len(ticket.removed)]]
        order += sorted(left, key=lambda name: scores[name])
        removed = tuple(order[:count])
        self._order[frozenset(removed)], self.keys[frozenset(removed)] = order, key
        return removed

    def scores(
        self, criterion: Mapping[str, Any], state: StateRef, ticket: Ticket, candidates: Sequence[str]
    ) -> tuple[dict[str, float], str]:
        """The score of each candidate in the network of this state without the ticket's removed units, and the key of
        the stage that keeps them.
        """
        inputs = {
            "unit scores": VERSION,
            **self.inputs,
            "criterion": dict(criterion),
            "own code": own_code(criterion),
            "state": state.digest,
            "mask": ticket.mask.digest,
            "removed": sorted(ticket.removed),
            "candidates": list(candidates),
            "seed": self.seed,
        }
        done = evaluated(self.store, inputs, lambda: self._scored(criterion, state, ticket, candidates), **self.facts())
        if done.environment:
            self.on_reuse(done.environment)
        return done.figures, done.key

    def _scored(
        self, criterion: Mapping[str, Any], state: StateRef, ticket: Ticket, candidates: Sequence[str]
    ) -> dict[str, float]:
        weights = ticket.mask.apply(state.tensors())

        def network() -> nn.Module:
            dense = self.build()
            dense.load_state_dict(weights, strict=True)
            return self.shallow_(dense, ticket.removed).to(self.device).train()

        def without(name: str) -> nn.Module:
            return self.shallow_(network(), [name]).eval()

        def sample(per_class: int) -> Batch:
            return self.data().sample(per_class, self.seed)

        at = UnitScoring(
            units={name: self.units[name] for name in candidates},
            network=network,
            without=without,
            sample=sample,
            generator=torch.Generator().manual_seed(derive(self.seed, "units", digest(sorted(ticket.removed)))),
            shape=self.image_shape,
        )
        scores = made(criterion, "method.criterion")(at)
        wrong = [name for name in candidates if not isfinite(scores.get(name, float("nan")))]
        if wrong:
            raise LotteryError(f"method.criterion: gives {wrong[0]!r} no finite score, cannot rank the units")
        if len(candidates) > 1 and len({scores[name] for name in candidates}) == 1:
            LOG.warning(
                "all units score %g, so they go in the order of the network. Networks whose branches start at zero "
                "do that: of timm, +model.options.zero_init_last=false",
                scores[candidates[0]],
            )
        return {name: float(scores[name]) for name in candidates}

    # -- controls ---------------------------------------------------------------------------------------------------

    def control(self, ticket: Ticket, kind: str, copy: int, round: int) -> Ticket:
        """The ticket with as many other units removed, of those that may go.

        `random` ones; `shuffle`: as many of each kind (shape); `invert`: those that would have gone last. The ticket's
        own are not drawn, unless there are no others.
        """
        if kind == "invert":
            order = self._order[frozenset(ticket.removed)]
            removed = order[len(order) - len(ticket.removed) :]
        else:
            generator = torch.Generator().manual_seed(derive(self.seed, f"units {kind}", round, copy))
            candidates = self._order.get(frozenset(ticket.removed), list(self.units))
            groups = self._alike(candidates) if kind == "shuffle" else [[n for n in self.units if n in candidates]]
            counts = [len(set(group) & set(ticket.removed)) for group in groups]
            others = prod(comb(len(group), count) for group, count in zip(groups, counts, strict=True)) > 1
            removed = list(ticket.removed)
            if not others:
                LOG.warning("control %s: the only choice is the ticket's own, so it is the ticket", kind)
            while others and set(removed) == set(ticket.removed):
                removed = [unit for group, count in zip(groups, counts, strict=True)
                           for unit in _drawn(group, count, generator)]  # fmt: skip
        return self.ticket(replace(ticket, mask=self.full, removed=()), removed)

    def _alike(self, candidates: Collection[str]) -> list[list[str]]:
        """These units, those of equal shapes together: the blocks of one stage."""
        shapes = {name: tuple(value.shape) for name, value in self._dense.state_dict().items()}
        groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
        for name in (name for name in self.units if name in candidates):
            unit = self.units[name]
            groups.setdefault(tuple(shapes[tensor] for tensor in unit.tensors), []).append(name)
        return list(groups.values())


def _drawn(group: Sequence[str], count: int, generator: torch.Generator) -> list[str]:
    return [group[i] for i in torch.randperm(len(group), generator=generator)[:count].tolist()]
