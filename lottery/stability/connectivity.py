"""Linear mode connectivity: loss and error along the line between networks, and the barrier (methods.md 2.3).

Barriers depend on how batch normalisation is treated, so a curve says which it was: `interpolate` takes the running
statistics along the line as they are, `recompute` estimates them anew at every point (Frankle et al. 2020 do the
former as far as is known; Garipov et al. 2018 and the three-regime study the latter). Never compare across the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isnan
from typing import Literal

from lottery.stability.path import Path
from lottery.state import State

BNMode = Literal["interpolate", "recompute"]
Score = tuple[float, float]
"""Mean loss, and error in [0, 1]."""


@dataclass(frozen=True)
class Curve:
    """Loss and error at the points of a path; `points` on each of its lines, both ends included."""

    positions: list[float]
    loss: list[float]
    error: list[float]
    points: int
    bn: BNMode

    @property
    def loss_barriers(self) -> list[float]:
        """The barrier in loss of each line."""
        return self._barriers(self.loss)

    @property
    def error_barriers(self) -> list[float]:
        """The barrier in error of each line, in [0, 1]."""
        return self._barriers(self.error)

    def _barriers(self, values: list[float]) -> list[float]:
        steps = self.points - 1
        return [barrier(values[first : first + self.points]) for first in range(0, len(values) - 1, steps)]


def barrier(values: Sequence[float]) -> float:
    """max(values) - (first + last) / 2, of values along a line from its one end to the other.

    At least half the difference of the ends, so never negative. What is not a number counts as infinitely high; NaN
    where an end itself is not finite.
    """
    top = max(float("inf") if isnan(value) else value for value in values)
    return top - (values[0] + values[-1]) / 2


def highest(barriers: Sequence[float]) -> float:
    """The largest; NaN where one of them is NaN, wherever it stands."""
    return float("nan") if any(map(isnan, barriers)) else max(barriers)


def along(
    path: Path, measure: Callable[[Sequence[State]], Sequence[Score]], bn: BNMode = "interpolate", at_once: int = 30
) -> Curve:
    """The curve that `measure` finds; it is given up to `at_once` states at a time, to share a pass over the data.

    `bn` is what `measure` does with batch normalisation; it is only written down here.
    """
    states, scores = path.states(), list[Score]()
    while group := list(islice(states, at_once)):
        scores += measure(group)
    loss, error = zip(*scores, strict=True)
    return Curve(path.positions, list(loss), list(error), path.points, bn)
