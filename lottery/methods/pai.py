"""Pruning at initialisation: SNIP (Lee et al. 2019), GraSP (Wang et al. 2020), SynFlow (Tanaka et al. 2020) and others.

Score the initial weights, prune, and train the remaining ones. The criterion selects the algorithm (`criterion=snip`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lottery.errors import ConfigError
from lottery.methods.shows import Shows
from lottery.ranges import FRACTION, Checked, option, such_that
from lottery.stages.round import Round

if TYPE_CHECKING:
    from torch import Size

    from lottery.stages.lab import Lab
    from lottery.ticket import Mask

STEPS = such_that(lambda steps: steps is None or steps >= 1, "a number ≥ 1, or null for what the criterion takes")


@dataclass
class PruningAtInit(Checked):
    """Pruning to `density` in `steps` equal factors, with new scores before each; one round beside the dense one."""

    density: float = option(0.1, FRACTION)
    # null: as the criterion's authors do: 100 for SynFlow and 1 for the others
    steps: int | None = option(None, STEPS)
    allocation: Any = None  # layer counts, inside which weights are ranked; null: all weights are ranked together

    rounds: ClassVar = 1
    shows: ClassVar = Shows(title="{criterion} at init", needs="none")

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
        """Yield the dense network, then the pruned one; both are trained from the same initial weights."""
        steps = self.steps or lab.criterion_steps
        options = {"density": self.density, "steps": steps, "allocation": self.allocation}
        mask = lab.found(lambda lab: self.search(lab, steps), **options)
        yield Round(0, lab.initial, lab.train(lab.initial))
        ticket = replace(lab.initial, mask=mask)
        yield Round(1, ticket, lab.train(ticket))

    def search(self, lab: Lab, steps: int) -> Mask:
        """Prune in steps: after step i the density, or that of each layer, is its goal to the power i / `steps`."""
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
    """Return each layer's count `share` (in [0, 1]) of the way from all its weights to its goal, in equal factors."""
    return {name: round(shape.numel() * (goal[name] / shape.numel()) ** share) for name, shape in shapes.items()}
