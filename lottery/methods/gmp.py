"""Gradual magnitude pruning (Zhu & Gupta 2017): a dense network loses its smallest weights while it trains.

After every `every` steps the density is d_f + (d_i - d_f)(1 - u)³, where u is the share of the plan that is done. Only
weights that are still there are ranked, so the masks are nested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lottery.errors import ConfigError
from lottery.methods.moving import Sparse
from lottery.methods.shows import Shows
from lottery.moving.plan import cubic
from lottery.ranges import FRACTION, one_of, option

if TYPE_CHECKING:
    from lottery.training.moving import MovingTraining


@dataclass
class GMP(Sparse):
    """Gradual magnitude pruning from the density `initial` to `density`, by layer or all layers together."""

    initial: float = option(1.0, FRACTION)
    scope: str = option("layer", one_of("layer", "global"))

    shows: ClassVar = Shows("GMP", title="gradual magnitude pruning", needs="none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial < self.density:
            raise ConfigError.of("method.initial", self.initial, f"at least method.density={self.density}")

    @property
    def start_density(self) -> float:
        return self.initial

    def move(self, run: MovingTraining, step: int) -> None:
        """Do the optimizer's step, then prune to the density of this step."""
        run.optimize()
        run.move_(step, pruned(run, cubic(self.initial, self.density, run.plan.progress(step)), self.scope))


def pruned(run: MovingTraining, density: float, scope: str) -> list:
    """Return the mask without its smallest weights, of this density over all layers.

    scope: "layer": each layer keeps its share of the weights at the start; "global": all weights are ranked together
    """
    from lottery.moving.exchange import apart, together, without_lowest

    kept, magnitudes = run.kept(), run.magnitudes()
    if scope == "global":
        whole = together(kept)
        gone = max(0, int(whole.sum()) - round(density * whole.size))
        return apart(without_lowest(whole, together(magnitudes), gone), kept)
    start = run.history[0][2:]
    share = density * sum(layer.size for layer in kept) / sum(start)
    goals = [max(1, round(share * count)) for count in start]
    numbers = [max(0, int(layer.sum()) - goal) for layer, goal in zip(kept, goals, strict=True)]
    return [without_lowest(*each) for each in zip(kept, magnitudes, numbers, strict=True)]
