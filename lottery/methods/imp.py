"""Iterative magnitude pruning (Frankle & Carbin 2019; with rewinding: Frankle et al. 2019, Renda et al. 2020).

Train, prune a fraction of the remaining weights, rewind the others, train again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lottery.errors import ConfigError
from lottery.methods.shows import Shows
from lottery.ranges import Checked, at_least, each_of, option, such_that
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab

RATE = such_that(lambda rate: 0 < rate < 1, "a fraction between 0 and 1, both excluded")
SCOPE = such_that(lambda scope: scope in ("global", "layer"), "global or layer")


@dataclass
class IMP(Checked):
    """IMP: `rounds` prunings of a fraction `rate` of the remaining weights, in each layer or over all layers."""

    rounds: int = option(8, at_least(0, "a number ≥ 0"))
    rate: float = option(0.2, RATE)
    rates: dict[str, float] = option({}, each_of(RATE))  # layer pattern: its own rate (scope "layer" only)
    scope: str = option("global", SCOPE)
    count: str = "exact"  # exact, or how a released code base counts: lottery.pruning.prune
    one_shot: bool = False  # score the dense network only, and prune it straight to every level

    shows: ClassVar = Shows(title="{rewind}", group="IMP, {rewind}")

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for patterns, scope or count that `prune` would refuse after the dense training."""
        mask = lab.initial.mask
        any_scores = {name: kept.float() for name, kept in mask.items()}
        try:
            lab.prune(mask, any_scores, self.rate, rates=self.rates, scope=self.scope, count=self.count)
        except ConfigError as error:
            raise ConfigError(f"method.{error}") from error

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the dense network as round 0; round k has been pruned k times."""
        rewind = lab.rewind
        dense = trained = lab.train(lab.initial, keep=rewind.keep_dense())
        mask = lab.initial.mask
        yield Round(0, lab.initial, dense)
        for k in range(1, self.rounds + 1):
            pruned = dense if self.one_shot else trained
            scores = lab.scores(pruned.state, mask)
            mask = lab.prune(mask, scores, self.rate, rates=self.rates, scope=self.scope, count=self.count)
            ticket = rewind.ticket(dense, pruned, mask)
            trained = lab.train(ticket, keep=rewind.keep_pruned())
            yield Round(k, ticket, trained)
