"""Iterative magnitude pruning (Frankle & Carbin 2019; with rewinding: Frankle et al. 2019, Renda et al. 2020).

Train, prune a fraction of what remains, rewind what remains, train again.
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
class IMP:
    """`rounds` prunings of a fraction `rate` of the remaining weights, in each layer or over all of them."""

    rounds: int = 8
    rate: float = 0.2
    rates: dict[str, float] = field(default_factory=dict)  # layer pattern: its own rate (scope "layer" only)
    scope: str = "global"  # global, layer
    count: str = "exact"  # exact, or how a released code base counts: lottery.pruning.prune
    one_shot: bool = False  # score the dense network only, and prune it straight to every level

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ConfigError.of("method.rounds", self.rounds, "a number ≥ 0")
        for key, rate in {"method.rate": self.rate, **{f"method.rates.{k}": v for k, v in self.rates.items()}}.items():
            if not 0 < rate < 1:
                raise ConfigError.of(key, rate, "a fraction between 0 and 1, both excluded")
        if self.scope not in ("global", "layer"):
            raise ConfigError.of("method.scope", self.scope, "global or layer")

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for what `prune` would refuse once the dense network is trained: patterns, scope, count."""
        mask = lab.initial.mask
        any_scores = {name: kept.float() for name, kept in mask.items()}
        try:
            lab.prune(mask, any_scores, self.rate, rates=self.rates, scope=self.scope, count=self.count)
        except ConfigError as error:
            raise ConfigError(f"method.{error}") from error

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the dense network; round k has been pruned k times."""
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
