"""Pruning at initialisation: SNIP (Lee et al. 2019), GraSP (Wang et al. 2020), SynFlow (Tanaka et al. 2020) and others.

Score the initial weights, prune, and train what is left. Which of these it is, the criterion says (`criterion=snip`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.ticket import Mask


@dataclass
class PruningAtInit:
    """Down to `density` in `steps` equal factors, with new scores before each; one round beside the dense one."""

    density: float = 0.1
    steps: int = 1  # SynFlow takes 100; SNIP in several steps is iterative SNIP
    allocation: Any = None  # layer counts, inside which weights are ranked; null: all weights are ranked together

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError.of("method.density", self.density, "a fraction of the weights, above 0 and at most 1")
        if self.steps < 1:
            raise ConfigError.of("method.steps", self.steps, "a number ≥ 1")

    @property
    def rounds(self) -> int:
        return 1

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a density that the allocation cannot reach."""
        if self.allocation is not None:
            lab.check_counts(self.allocation, self.density)

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the dense network, round 1 the pruned one; both are trained from the same initial weights."""
        mask = lab.found(lambda: self.search(lab), density=self.density, steps=self.steps, allocation=self.allocation)
        yield Round(0, lab.initial, lab.train(lab.initial))
        ticket = replace(lab.initial, mask=mask)
        yield Round(1, ticket, lab.train(ticket))

    def search(self, lab: Lab) -> Mask:
        """After step i the density is `density` to the power i / `steps`, to the nearest weight."""
        mask = lab.initial.mask
        for step in range(1, self.steps + 1):
            density = self.density ** (step / self.steps)
            scores = lab.scores(lab.initial.state, mask)
            counts = lab.counts(self.allocation, density, mask.layer_kept) if self.allocation is not None else None
            mask = lab.prune_to(mask, scores, density, counts)
        return mask
