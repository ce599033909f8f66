"""Stability (Stabilizing the LTH, section 2): how far pruning, or another data order, moves a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError
from lottery.stability.distance import distance
from lottery.ticket import Mask

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.stages.round import Round
    from lottery.stages.trained import Trained

VERSION = 1


@dataclass(frozen=True)
class DataOrder:
    """`l2_order`, `angle_order`: between copies of the round trained in different data orders, kept weights only.

    Means over all pairs of `copies` trainings, of which the round's own is one; L2, and degrees. Only in
    these `rounds`; [] = in all. Nothing of a round that is not trained.
    """

    copies: int = 2
    rounds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_copies(self.copies)

    def __call__(self, round: Round, previous: Round | None, lab: Lab) -> dict[str, Any]:
        if not has_copies(round, self.rounds):
            return {}
        return apart(lab, "data order", lab.copies(round.ticket, self.copies), round.mask, "order")


@dataclass(frozen=True)
class Pruning:
    """`l2_pruning`, `angle_pruning`: between this round's training and that of the same start without the mask.

    Over the weights that the mask keeps. The unpruned training is the dense run's continuation from the rewind point:
    for tickets reset to the initial weights it is the dense training itself. Only in these `rounds`; [] = in all.
    Nothing of a mask that was searched for: its weights do not start from a state of the dense run.
    """

    rounds: list[int] = field(default_factory=list)

    def check(self, lab: Lab) -> None:
        """Raise ConfigError where tickets do not start from a state of the dense run."""
        if "keep" in (lab.rewind.options.weights, lab.rewind.options.optimizer):
            expected = "rewind or reset: stability to pruning compares with the dense run from the same point"
            raise ConfigError.of("rewind.weights", lab.rewind.options.weights, expected)

    def __call__(self, round: Round, previous: Round | None, lab: Lab) -> dict[str, Any]:
        if round.index == 0 or round.search is not None or not has_copies(round, self.rounds):
            return {}
        unpruned = lab.train(replace(round.ticket, mask=Mask.ones(round.mask.shapes)))
        lab.measured["train unpruned"] = unpruned.key
        return apart(lab, "pruning", [unpruned, round.trained], round.mask, "pruning")


def apart(lab: Lab, probe: str, trained: list[Trained], mask: Mask, name: str) -> dict[str, Any]:
    """The mean distance and angle over all pairs of trained networks, cached. Nothing where nothing is kept."""

    def compute() -> dict[str, Any]:
        states = [each.state.tensors() for each in trained]
        found = [distance(one, other, mask) for one, other in combinations(states, 2)]
        pairs = [each for each in found if each is not None]
        angles = [each.angle for each in pairs if each.angle is not None]
        return {"l2": fmean(each.l2 for each in pairs) if pairs else None, "angle": fmean(angles) if angles else None}

    inputs = {"version": VERSION, "states": [each.state.digest for each in trained], "mask": mask.digest}
    return {f"{key}_{name}": figure for key, figure in lab.evaluated(probe, inputs, compute).items()}


def check_copies(copies: int) -> None:
    """Raise ConfigError for fewer copies than can be compared."""
    if copies < 2:
        raise ConfigError.of("copies", copies, "a number ≥ 2: the round's own training is one of them")


def has_copies(round: Round, rounds: Sequence[int]) -> bool:
    """Whether a round is one of `rounds` ([] = all) and is trained at all.

    An untrained network, or a mask that was searched for and not tuned, has no copies but itself: every distance and
    barrier between them would be 0, which says nothing of stability.
    """
    return round.ticket.steps > 0 and (not rounds or round.index in rounds)
