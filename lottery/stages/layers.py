"""Layer tickets: score a network's removable units (a cached stage), remove some, and draw the controls."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import comb, isfinite, prod
from typing import Any, Self

import torch
from torch import nn

from lottery.config import digest
from lottery.errors import ConfigError, LotteryError
from lottery.layers.removal import Unit, check_removal, remove_, silenced
from lottery.layers.scoring import UnitScoring
from lottery.layers.units import no_units
from lottery.own_code import own_code
from lottery.parts import instantiated
from lottery.seeding import derive
from lottery.stages.masks import check_options, unscored
from lottery.stages.setup import Setup
from lottery.state import State, StateRef
from lottery.ticket import Mask, Ticket

LOG = logging.getLogger("lottery")
VERSION = 1  # raise when the numerics of scoring units change


class Removed(tuple[str, ...]):
    """Names of removed units.

    order: all units that may be removed, those removed first at the beginning
    stage: key of the `evaluate` stage of the scores that chose them; None: not chosen by scores
    """

    order: Sequence[str]
    stage: str | None

    def __new__(cls, names: Iterable[str], order: Sequence[str] = (), stage: str | None = None) -> Self:
        removed = super().__new__(cls, names)
        removed.order, removed.stage = order, stage
        return removed


@dataclass
class LayerStages:
    """The removable units of one network. States are the dense network's, with the parameters of removed units zero."""

    setup: Setup

    @property
    def units(self) -> dict[str, Unit]:
        """All removable units, in the order of the forward pass; empty where there are none."""
        return self.setup.units

    @cached_property
    def _dense(self) -> nn.Module:
        return self.setup.network()

    def _all(self, names: Iterable[str]) -> list[Unit]:
        return [self.units[name] for name in names]

    def ticket(self, of: Ticket, removed: Collection[str]) -> Ticket:
        """Return the ticket `of` without these units and their weights.

        The shallow network is built and run once: a removal that breaks the network is a ConfigError here.
        """
        if unknown := [name for name in removed if name not in self.units]:
            raise LotteryError(f"no removable unit {unknown[0]!r}; there are {', '.join(self.units)}")
        names = [name for name in self.units if name in removed]
        if names:
            check_removal(self._dense, self._all(names), self.setup.dataset.shape)
        gone = self.weights_of(names)
        mask = Mask({name: kept & (name not in gone) for name, kept in of.mask.items()})
        known = removed if isinstance(removed, Removed) else Removed(names)
        return replace(of, mask=mask, removed=Removed(names, known.order, known.stage))

    def kept(self, ticket: Ticket) -> Mask:
        """Return the units that a ticket keeps, as a mask with one entry a unit."""
        return Mask({name: torch.tensor([name not in ticket.removed]) for name in self.units})

    def weights_of(self, removed: Collection[str]) -> frozenset[str]:
        """Return the names of the convolution and linear weights of these units."""
        return frozenset(name for unit in self._all(removed) for name in unit.weights)

    def silenced(self, state: State, removed: Collection[str]) -> State:
        """Return a dense network's state in which these units output zero."""
        return silenced(state, self._all(removed), frozenset(name for name, _ in self._dense.named_parameters()))

    def shallow_(self, network: nn.Module, removed: Collection[str]) -> nn.Module:
        """Remove these units from a dense network in place, and return the network."""
        remove_(network, self._all(removed))
        return network

    def check(self, criterion: Mapping[str, Any], candidates: Sequence[str], count: int) -> None:
        """Raise ConfigError where `count` units cannot be removed, or the criterion refuses its options."""
        shape = self.setup.dataset.shape
        if not self.units:
            raise ConfigError(f"model: has no removable units: {no_units(self._dense, shape)}")
        if count > len(candidates):
            expected = f"at most {len(candidates)}, the removable units: {', '.join(candidates)}"
            raise ConfigError.of("method.remove", count, expected)
        full = set(self.setup.initial.mask)
        holding = [name for name in candidates if not full.isdisjoint(self.units[name].weights)]
        if full <= self.weights_of(candidates) and count >= len(holding):
            expected = f"less than {len(holding)}, or nothing prunable would be left outside of the removed units"
            raise ConfigError.of("method.remove", count, expected)
        units = {name: self.units[name] for name in candidates}
        at = UnitScoring(units, unscored, unscored, unscored, torch.Generator(), shape)
        check_options(instantiated(criterion, "method.criterion"), at, "method.criterion", self.setup)

    def lowest(
        self, criterion: Mapping[str, Any], state: StateRef, ticket: Ticket, candidates: Sequence[str], count: int
    ) -> Removed:
        """Choose `count` units to remove: those that the ticket lacks already, then the candidates of lowest score.

        Of equal scores the earlier unit goes first. `criterion` is a node of the configuration.
        """
        gone = ticket.removed.order[: len(ticket.removed)] if isinstance(ticket.removed, Removed) else ticket.removed
        left = [name for name in candidates if name not in gone]
        scores, stage = self.scores(criterion, state, ticket, left)
        order = [*gone, *sorted(left, key=lambda name: scores[name])]
        return Removed(order[:count], order, stage)

    def scores(
        self, criterion: Mapping[str, Any], state: StateRef, ticket: Ticket, candidates: Sequence[str]
    ) -> tuple[dict[str, float], str]:
        """Score each candidate in the network of this state and ticket; return the scores and their stage's key."""
        inputs = {
            "unit scores": VERSION,
            **self.setup.common_inputs,
            "criterion": dict(criterion),
            "own code": own_code(criterion),
            "state": state.digest,
            "mask": ticket.mask.digest,
            "removed": sorted(ticket.removed),
            "candidates": list(candidates),
            "seed": self.setup.config.seeds.mask,
        }
        return self.setup.figures(inputs, lambda: self._scored(criterion, state, ticket, candidates))

    def _scored(
        self, criterion: Mapping[str, Any], state: StateRef, ticket: Ticket, candidates: Sequence[str]
    ) -> dict[str, float]:
        setup, weights = self.setup, ticket.mask.apply(state.tensors())

        def network() -> nn.Module:
            return self.shallow_(setup.loaded(weights), ticket.removed).train()

        seed = derive(setup.config.seeds.mask, "units", digest(sorted(ticket.removed)))
        at = UnitScoring(
            units={name: self.units[name] for name in candidates},
            network=network,
            without=lambda name: self.shallow_(network(), [name]).eval(),
            sample=setup.sample,
            generator=torch.Generator().manual_seed(seed),
            shape=setup.dataset.shape,
        )
        scores = instantiated(criterion, "method.criterion")(at)
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

    def control(self, ticket: Ticket, kind: str, copy: int, round: int) -> Ticket:
        """Return a control of a layer ticket: as many removed units, chosen among those that may be removed.

        `random` draws them, `shuffle` draws as many of each kind (shape), `invert` takes those that would have been
        removed last. The ticket's own set is not drawn, unless it is the only one.
        """
        order = (ticket.removed.order if isinstance(ticket.removed, Removed) else ()) or list(self.units)
        removed: Sequence[str] = ticket.removed
        if kind == "invert":
            removed = order[len(order) - len(removed) :]
        else:
            seed = derive(self.setup.config.seeds.mask, f"units {kind}", round, copy)
            generator = torch.Generator().manual_seed(seed)
            groups = self._alike(order) if kind == "shuffle" else [[name for name in self.units if name in order]]
            counts = [len(set(group) & set(removed)) for group in groups]
            if prod(comb(len(group), count) for group, count in zip(groups, counts, strict=True)) == 1:
                LOG.warning("control %s: the only choice is the ticket's own, so it is the ticket", kind)
            else:
                while set(removed) == set(ticket.removed):
                    removed = [unit for group, count in zip(groups, counts, strict=True)
                               for unit in _drawn(group, count, generator)]  # fmt: skip
        return self.ticket(replace(ticket, mask=self.setup.initial.mask, removed=()), removed)

    def _alike(self, candidates: Collection[str]) -> list[list[str]]:
        """Group these units by the shapes of their tensors, which are equal for the blocks of one stage."""
        shapes = {name: tuple(value.shape) for name, value in self._dense.state_dict().items()}
        groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
        for name in (name for name in self.units if name in candidates):
            groups.setdefault(tuple(shapes[tensor] for tensor in self.units[name].tensors), []).append(name)
        return list(groups.values())


def _drawn(group: Sequence[str], count: int, generator: torch.Generator) -> list[str]:
    return [group[i] for i in torch.randperm(len(group), generator=generator)[:count].tolist()]
