"""Random pruning (Liu et al. 2022): layer densities chosen beforehand, positions drawn, trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab


@dataclass
class RandomPruning:
    """A random mask of `density`, divided between the layers by the allocation; one round beside the dense one."""

    density: float = 0.1
    allocation: Any = None  # chosen with allocation=NAME

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError.of("method.density", self.density, "a fraction of the weights, above 0 and at most 1")
        if self.allocation is None:
            raise ConfigError("method.allocation: nothing chosen; choose one with allocation=NAME (--help lists them)")

    @property
    def rounds(self) -> int:
        return 1

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a density that the allocation cannot reach, and for what random masks do not have."""
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
        """Round 0 is the dense network, round 1 the random one; both are trained from the same initial weights."""
        mask = lab.found(
            lambda: lab.drawn(lab.counts(self.allocation, self.density)),
            density=self.density,
            allocation=self.allocation,
        )
        yield Round(0, lab.initial, lab.train(lab.initial))
        ticket = replace(lab.initial, mask=mask)
        yield Round(1, ticket, lab.train(ticket))
