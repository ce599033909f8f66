"""The three-regime view of pruning (Zhou et al. 2023): load, the density, against temperature, the length of training.

Stop the dense training early, prune what it has come to, and train that twice. How the two copies lie to each other
(linear mode connectivity and CKA, which the probes measure) tells the regimes apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lottery.errors import ConfigError
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab


@dataclass
class Regimes:
    """A round for each of `stops` and each of `densities`, pruned in one shot by the criterion."""

    stops: list[str] = field(default_factory=lambda: ["1ep"])
    densities: list[float] = field(default_factory=lambda: [0.1])

    def __post_init__(self) -> None:
        if not self.stops:
            raise ConfigError.of("method.stops", self.stops, 'at least one step, such as ["1ep","5ep"]')
        if not self.densities or not all(0 < density <= 1 for density in self.densities):
            raise ConfigError.of("method.densities", self.densities, "fractions of the weights, above 0 and at most 1")

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a stop past the end of the training."""
        self.steps(lab)

    def steps(self, lab: Lab) -> list[int]:
        """When the dense training stops, ascending."""
        return sorted({lab.step(stop, "method.stops") for stop in self.stops})

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the dense network at its end; then the stops from the earliest on, each from dense to sparse.

        A pruned network is trained for the whole length of the schedule again, from its beginning.
        """
        from lottery.ticket import Ticket  # torch, which a method's file must not need

        steps, index = self.steps(lab), 0
        dense = lab.train(lab.initial, keep=steps)
        yield Round(0, lab.initial, dense)
        for stop in steps:
            state, full = dense.at(stop), lab.initial.mask
            scores = lab.scores(state, full)
            for density in sorted(set(self.densities), reverse=True):
                mask = lab.prune_to(full, scores, density)
                ticket = Ticket(mask, state, step=0, order_step=0, steps=lab.initial.steps)
                index += 1
                yield Round(index, ticket, lab.train(ticket), rewound=stop)
