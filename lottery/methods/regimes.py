"""The three-regime view of pruning (Zhou et al. 2023): load, the density, against temperature, the length of training.

Stop the dense training early, prune its network, and train the result twice. How similar the two copies are (linear
mode connectivity and CKA, which the probes measure) tells the regimes apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar

from lottery.methods.shows import Shows
from lottery.ranges import Checked, option, such_that
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab

STOPS = such_that(bool, 'at least one step, such as ["1ep","5ep"]')
DENSITIES = such_that(
    lambda densities: densities and all(0 < density <= 1 for density in densities),
    "fractions of the weights, above 0 and at most 1",
)


@dataclass
class Regimes(Checked):
    """A round for each of `stops` and each of `densities`, pruned in one shot by the criterion."""

    stops: list[str] = option(["1ep"], STOPS)
    densities: list[float] = option([0.1], DENSITIES)

    shows: ClassVar = Shows(title="three regimes", ladder=False, figure="regimes")

    @property
    def parts(self) -> int:
        """How many parts of the study do not depend on each other."""
        return len(self.stops) * len(self.densities)

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a stop past the end of the training."""
        self.steps(lab)

    def steps(self, lab: Lab) -> list[int]:
        """Return the steps at which the dense training stops, ascending."""
        return sorted({lab.step(stop, "method.stops") for stop in self.stops})

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the dense network at its end, then for each stop, earliest first, tickets from dense to sparse.

        A pruned network is trained for the whole length of the schedule again, from its beginning.
        """
        from lottery.ticket import Ticket  # needs torch, which importing a method must not

        steps = self.steps(lab)
        dense = lab.train(lab.initial, keep=steps)
        yield Round(0, lab.initial, dense)
        grid = list(product(steps, sorted(set(self.densities), reverse=True)))
        for index, (stop, density) in lab.parts(list(enumerate(grid, 1))):
            state, full = dense.at(stop), lab.initial.mask
            mask = lab.prune_to(full, lab.scores(state, full), density)
            ticket = Ticket(mask, state, step=0, order_step=0, steps=lab.initial.steps)
            yield Round(index, ticket, lab.train(ticket), rewound=stop)
