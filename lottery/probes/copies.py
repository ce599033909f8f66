"""Stability (Stabilizing the LTH, section 2): how far pruning, or another data order, moves a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from lottery.errors import ConfigError
from lottery.probes.images import Options
from lottery.ranges import at_least, option
from lottery.stability.weights import distance
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.stages.trained import Trained
from lottery.ticket import Mask, Ticket

VERSION = 1
COPIES = at_least(2, "a number ≥ 2: the round's own training is one of them")


@dataclass(frozen=True)
class DataOrder(Options):
    """`l2_order`, `angle_order`: L2 distance and degrees between copies of the round in different data orders.

    They are of kept weights only, means over all pairs of `copies` trainings, the round's own included. Only in these
    `rounds`; [] = in all. A round that is not trained has none.
    """

    copies: int = option(2, COPIES)
    rounds: list[int] = field(default_factory=list)

    def trainings(self, round: Round, lab: Bench) -> list[Ticket]:
        """Return the tickets that the probe trains."""
        return lab.copied(round.ticket, self.copies) if has_copies(round, self.rounds) else []

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        if not has_copies(round, self.rounds):
            return {}
        return apart(lab, "data order", lab.copies(round.ticket, self.copies), round.mask, "order")


@dataclass(frozen=True)
class Pruning(Options):
    """`l2_pruning`, `angle_pruning`: between this round's training and that of the same start without the mask.

    Of kept weights only. The unpruned training continues the dense run from the rewind point: for tickets reset to the
    initial weights it is the dense training. Only in these `rounds`; [] = in all. A searched mask has none, as its
    weights do not start from a state of the dense run.
    """

    rounds: list[int] = field(default_factory=list)

    def check(self, lab: Bench) -> None:
        """Raise ConfigError where tickets do not start from a state of the dense run."""
        if "keep" in (lab.rewind.options.weights, lab.rewind.options.optimizer):
            expected = "rewind or reset: stability to pruning compares with the dense run from the same point"
            raise ConfigError.of("rewind.weights", lab.rewind.options.weights, expected)

    def trainings(self, round: Round, lab: Bench) -> list[Ticket]:
        """Return the ticket without its mask, if the round has an unpruned counterpart."""
        if round.index == 0 or round.search is not None or not has_copies(round, self.rounds):
            return []
        return [replace(round.ticket, mask=Mask.ones(round.mask.shapes))]

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        unpruned = [lab.trained("unpruned", ticket) for ticket in self.trainings(round, lab)]
        return apart(lab, "pruning", [*unpruned, round.trained], round.mask, "pruning") if unpruned else {}


def apart(lab: Bench, probe: str, trained: list[Trained], mask: Mask, name: str) -> dict[str, Any]:
    """Return the mean distance and angle over all pairs of trained networks, cached; None where nothing is kept."""

    def compute() -> dict[str, Any]:
        states = [each.state.tensors() for each in trained]
        found = [distance(one, other, mask) for one, other in combinations(states, 2)]
        pairs = [each for each in found if each is not None]
        angles = [each.angle for each in pairs if each.angle is not None]
        return {"l2": fmean(each.l2 for each in pairs) if pairs else None, "angle": fmean(angles) if angles else None}

    inputs = {"version": VERSION, "states": [each.state.digest for each in trained], "mask": mask.digest}
    return {f"{key}_{name}": figure for key, figure in lab.evaluated(probe, inputs, compute).items()}


def has_copies(round: Round, rounds: Sequence[int]) -> bool:
    """Whether a round is one of `rounds` ([] = all) and is trained at all.

    Copies of an untrained network (such as a searched mask that was not tuned) are identical. Their distances and
    barriers would all be 0, which says nothing of stability.
    """
    return round.ticket.steps > 0 and (not rounds or round.index in rounds)
