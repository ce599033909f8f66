"""Random pruning (Liu et al. 2022): layer densities chosen beforehand, positions drawn, trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lottery.errors import ConfigError
from lottery.methods.shows import Shows
from lottery.ranges import FRACTION, Checked, chosen, option
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab


@dataclass
class RandomPruning(Checked):
    """A random mask of `density`, divided between the layers by the allocation; one round beside the dense one."""

    density: float = option(0.1, FRACTION)
    allocation: Any = option(None, chosen("allocation"))

    rounds: ClassVar = 1
    shows: ClassVar = Shows(title="random, {allocation}", mask="random mask", needs="none")

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for an unreachable density, a criterion (positions are drawn), or `controls.invert`."""
        lab.check_counts(self.allocation, self.density)
        criterion = lab.config.criterion["_target_"].rpartition(".")[2]
        if criterion not in ("magnitude", "random"):
            expected = (
                "none, as positions are drawn: its layer counts are allocation=NAME_ratio, its positions method=pai"
            )
            raise ConfigError.of("criterion", criterion, expected)
        if lab.config.controls.invert:
            raise ConfigError.of("controls.invert", lab.config.controls.invert, "0: random masks rank no weights")

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the dense network, then the random one; both are trained from the same initial weights."""
        mask = lab.found(
            lambda lab: lab.drawn(lab.counts(self.allocation, self.density)),
            density=self.density,
            allocation=self.allocation,
        )
        yield Round(0, lab.initial, lab.train(lab.initial))
        ticket = replace(lab.initial, mask=mask)
        yield Round(1, ticket, lab.train(ticket))
