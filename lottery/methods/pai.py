"""Pruning at initialisation: SNIP (Lee et al. 2019), GraSP (Wang et al. 2020), SynFlow (Tanaka et al. 2020) and others.

Score the initial weights, prune, and train what is left. Which of these it is, the criterion says (`criterion=snip`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError
from lottery.stages.round import Round

if TYPE_CHECKING:
    from torch import Size

    from lottery.stages.lab import Lab
    from lottery.ticket import Mask


@dataclass
class PruningAtInit:
    """Down to `density` in `steps` equal factors, with new scores before each; one round beside the dense one."""

    density: float = 0.1
    steps: int | None = None  # null: as the criterion's authors do, which is 100 for SynFlow and 1 for the others
    allocation: Any = None  # layer counts, inside which weights are ranked; null: all weights are ranked together

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError.of("method.density", self.density, "a fraction of the weights, above 0 and at most 1")
        if self.steps is not None and self.steps < 1:
            raise ConfigError.of("method.steps", self.steps, "a number ≥ 1, or null for what the criterion takes")

    @property
    def rounds(self) -> int:
        return 1

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a density that cannot be reached."""
        size = lab.initial.mask.size
        if round(self.density * size) < 1:
            raise ConfigError.of(
                "method.density", self.density, f"at least {1 / size:.4g}, one of the {size:,} weights"
            )
        if self.allocation is not None:
            lab.check_counts(self.allocation, self.density)

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the dense network, round 1 the pruned one; both are trained from the same initial weights."""
        steps = self.steps or lab.criterion_steps
        mask = lab.found(lambda: self.search(lab, steps), density=self.density, steps=steps, allocation=self.allocation)
        yield Round(0, lab.initial, lab.train(lab.initial))
        ticket = replace(lab.initial, mask=mask)
        yield Round(1, ticket, lab.train(ticket))

    def search(self, lab: Lab, steps: int) -> Mask:
        """After step i the density, or with an allocation that of each layer, is its goal to the power i / `steps`."""
        mask = lab.initial.mask
        goal = lab.counts(self.allocation, self.density) if self.allocation is not None else None
        for step in range(1, steps + 1):
            scores = lab.scores(lab.initial.state, mask)
            if goal is None:
                mask = lab.prune_to(mask, scores, self.density ** (step / steps))
            else:
                mask = lab.prune_to_counts(mask, scores, between(mask.shapes, goal, step / steps))
        return mask


def between(shapes: Mapping[str, Size], goal: Mapping[str, int], share: float) -> dict[str, int]:
    """Each layer's count between from all its weights to its goal, in equal factors; `share` of the way, in [0, 1]."""
    return {name: round(shape.numel() * (goal[name] / shape.numel()) ** share) for name, shape in shapes.items()}
