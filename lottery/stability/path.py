"""States on the straight line between networks, and on paths of several such lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lottery.errors import ConfigError, LotteryError
from lottery.state import State


def between(one: State, other: State, alpha: float) -> State:
    """(1 - alpha) one + alpha other, alpha in [0, 1]: parameters and running statistics.

    Entries that are no real numbers (counters) are the nearer end's. At 0 and 1 each bit is the end's own, and so is,
    anywhere, what both ends have in common: weights that both have pruned stay 0. LotteryError where the two
    states have different entries.
    """
    check_alike([one, other])
    return {
        name: torch.lerp(a, other[name], alpha)
        if a.is_floating_point()
        else (a if alpha < 0.5 else other[name]).clone()
        for name, a in one.items()
    }


@dataclass(frozen=True, eq=False)
class Path:
    """Networks joined by straight lines, with `points` evenly spaced ones on each line, its two ends included.

    A point that two lines share is one point. Positions run from 0 to the number of lines; network k lies at k.
    """

    ends: Sequence[State]
    points: int = 30

    def __post_init__(self) -> None:
        if len(self.ends) < 2:
            raise LotteryError(f"a path: got {len(self.ends)} networks, expected at least 2")
        if self.points < 2:
            raise ConfigError.of("points", self.points, "a number ≥ 2, both ends included")
        check_alike(self.ends)

    @property
    def lines(self) -> int:
        return len(self.ends) - 1

    @property
    def positions(self) -> list[float]:
        """Where the points lie, ascending: lines · (points - 1) + 1 of them."""
        steps = self.points - 1
        return [k / steps for k in range(self.lines * steps + 1)]

    def states(self) -> Iterator[State]:
        """The state of each point, made when it is asked for; tensors lie where those of the ends do."""
        steps = self.points - 1
        for k in range(self.lines * steps + 1):
            line = min(k // steps, self.lines - 1)
            yield between(self.ends[line], self.ends[line + 1], (k - line * steps) / steps)


def check_alike(states: Sequence[State]) -> None:
    """Raise LotteryError, naming the first difference, unless all have the same entries, shapes and types."""
    first = states[0]
    for state in states[1:]:
        for name in (*first, *state):
            if name not in first or name not in state:
                raise LotteryError(f"networks of different architectures: only one of them has {name!r}")
            a, b = first[name], state[name]
            if a.shape != b.shape or a.dtype != b.dtype:
                shapes = f"{list(a.shape)} {a.dtype} and {list(b.shape)} {b.dtype}"
                raise LotteryError(f"networks of different architectures: {name!r} is {shapes}")
