"""The instability analysis (Frankle et al. 2020): from which step of the dense run on do tickets train stably?

For each rewind point: prune iteratively, rewinding to that point, and compare copies of the tickets (and of the dense
network) trained from there. The probes measure the copies (`probes=connectivity`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lottery.errors import ConfigError
from lottery.methods.imp import IMP
from lottery.methods.shows import Shows
from lottery.ranges import Checked, option, such_that
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab

POINTS = such_that(bool, 'at least one step, such as ["0it","500it"]')
MEASURED = such_that(lambda numbers: bool(numbers) and min(numbers) >= 0, "at least one number of prunings ≥ 0")


@dataclass
class Instability(Checked):
    """IMP rewound to each of `points`. Its rounds are the tickets after the numbers of prunings in `measured`."""

    points: list[str] = option(["0it"], POINTS)
    measured: list[int] = option([10], MEASURED)  # 0: the dense network, trained from the rewind point
    rate: float = 0.2
    rates: dict[str, float] = field(default_factory=dict)
    scope: str = "global"
    count: str = "exact"

    shows: ClassVar = Shows(title="IMP from several rewind points", ladder=False, figure="instability")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._imp()

    @property
    def parts(self) -> int:
        """How many parts of the study do not depend on each other."""
        return len(self.points)

    def _imp(self) -> IMP:
        """Build the IMP that prunes. ConfigError for options that IMP does not take."""
        return IMP(max(self.measured), self.rate, self.rates, self.scope, self.count)

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for points past the end, `rewind.weights` other than rewind, and options IMP refuses."""
        self.steps(lab)
        weights = lab.rewind.options.weights
        if weights != "rewind":
            raise ConfigError.of("rewind.weights", weights, "rewind: its tickets start from method.points")
        self._imp().check(lab)

    def steps(self, lab: Lab) -> list[int]:
        """Return the rewind points as steps, ascending."""
        return sorted({lab.step(point, "method.points") for point in self.points})

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the dense network, then for each point, earliest first, a round for each number in `measured`."""
        points, imp, each = self.steps(lab), self._imp(), len(set(self.measured))
        dense = lab.train(lab.initial, keep={*points, *lab.rewind.keep_pruned()})
        yield Round(0, lab.initial, dense)
        for number, point in lab.parts(list(enumerate(points))):
            index = number * each  # of the last round before this point's
            rewind, mask, trained, way = lab.rewind.to(point), lab.initial.mask, dense, list[str]()
            if 0 in self.measured:
                index, ticket = index + 1, rewind.ticket(dense, dense, mask)
                yield Round(index, ticket, lab.train(ticket), rewound=point)
            for k in range(1, max(self.measured) + 1):
                scores = lab.scores(trained.state, mask)
                mask = lab.prune(mask, scores, imp.rate, rates=imp.rates, scope=imp.scope, count=imp.count)
                ticket = rewind.ticket(dense, trained, mask)
                trained = lab.train(ticket, keep=rewind.keep_pruned())
                if k in self.measured:
                    index += 1
                    yield Round(index, ticket, trained, rewound=point, way=tuple(way))
                way.append(trained.key)
