"""MEST (Yuan et al. 2021): dynamic sparse training that drops by |w| + λ |∂ℓ/∂w| and grows at random.

The share that changes places falls in stages. em: it goes and comes back at every move. em_s: the network trains with
more weights than the density, a move first prunes to the density, and the surplus falls in the same stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lottery.errors import ConfigError
from lottery.methods.set import Exchanging, chance, exchanged
from lottery.methods.shows import Shows
from lottery.ranges import number, one_of, option

if TYPE_CHECKING:
    from lottery.training.moving import MovingTraining


@dataclass
class MEST(Exchanging):
    """MEST. stages: shares of the training at which the next of `shares` holds; shares: of the kept weights."""

    variant: str = option("em", one_of("em", "em_s"))
    gradient: float = option(0.01, number(0))  # λ
    stages: list[float] = option([0.5625, 0.75], lambda key, got: None)
    shares: list[float] = option([0.2, 0.1, 0.0], lambda key, got: None)

    shows: ClassVar = Shows("MEST", title="MEST, {allocation}", needs="none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.stages) != list(self.stages) or any(not 0 < stage < 1 for stage in self.stages):
            raise ConfigError.of("method.stages", self.stages, "ascending shares of the training, between 0 and 1")
        if len(self.shares) != len(self.stages) + 1 or any(not 0 <= share < 1 for share in self.shares):
            expected = f"{len(self.stages) + 1} shares in [0, 1), one more than method.stages"
            raise ConfigError.of("method.shares", self.shares, expected)
        if self.variant == "em_s" and (self.density * (1 + max(self.shares)) > 1 or self.shares[-1] != 0):
            expected = "shares that end with 0, and with which the density stays at most 1"
            raise ConfigError.of("method.shares", self.shares, expected)

    @property
    def start_density(self) -> float:
        return self.density * (1 + self.shares[0]) if self.variant == "em_s" else self.density

    def share_at(self, progress: float) -> float:
        """Return the share that changes places, by the progress of the training."""
        return self.shares[sum(progress >= stage for stage in self.stages)]

    def move(self, run: MovingTraining, step: int) -> None:
        """Do the optimizer's step, drop by |w| + λ |∂ℓ/∂w| of its batch, and grow at random."""
        import numpy as np

        from lottery.moving.exchange import with_highest, without_lowest

        slopes = [np.abs(gradient) for gradient in run.gradients()]
        run.optimize()
        gains = chance(run, step)
        scores = [w + self.gradient * g for w, g in zip(run.magnitudes(), slopes, strict=True)]
        share = self.share_at(1.0 if step == run.plan.end else step / run.plan.total)
        kept = run.kept()
        if self.variant == "em":
            run.move_(step, exchanged(kept, scores, gains, share, new_only=True))
            return
        masks = []
        for before, layer, score, gain in zip(run.layer_goals(self.density), kept, scores, gains, strict=True):
            number = int(layer.sum())
            left = without_lowest(layer, score, max(0, number - before))
            more = min(round(before * (1 + share)) - int(left.sum()), int((~left).sum()))
            masks.append(with_highest(left, gain, max(0, more), ~left))
        run.move_(step, masks)
