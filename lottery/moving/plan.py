"""When a mask moves during a training, how dense it is then, and what share of it changes places."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The steps at which a mask moves: every `every` steps after `begin`, and at `end`.

    total: the steps of the training
    """

    every: int
    begin: int
    end: int
    total: int

    def due(self, step: int) -> bool:
        """Whether the mask moves in the optimizer step number `step`, counted from 0."""
        return self.begin < step <= self.end and ((step - self.begin) % self.every == 0 or step == self.end)

    def progress(self, step: int) -> float:
        """Return how much of the way from `begin` to `end` is done, in [0, 1]."""
        if step >= self.end:
            return 1.0
        return max(0.0, (step - self.begin) / (self.end - self.begin))


def cubic(start: float, end: float, progress: float) -> float:
    """Return the density on the way from `start` to `end`: end + (start - end)(1 - u)³ (Zhu & Gupta 2017)."""
    return end + (start - end) * (1 - progress) ** 3


DECAYS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}  # the share that changes places, by progress, relative to the first one


def expected_exploration(density: float, shares: list[float]) -> float:
    """Return the share of weights that SET has ever kept, expected after updates that move these shares.

    1 - (1 - d) Π (1 - α d / (1 - d)): growth draws uniformly from the weights that were not kept before the update.
    """
    return 1 - (1 - density) * math.prod(1 - share * density / (1 - density) for share in shares)
