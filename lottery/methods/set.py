"""Dynamic sparse training: weights of small magnitude go, as many others come, and the network stays sparse.

SET (Mocanu et al. 2018) grows at random; RigL (Evci et al. 2020) where the gradient is largest; ITOP (Liu et al. 2021)
is either with longer intervals, so that more weights are explored. Layer counts never change. The share that changes
places is α, constant or on a cosine to 0 at the end of the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lottery.errors import ConfigError
from lottery.methods.moving import Sparse
from lottery.methods.shows import Shows
from lottery.moving.plan import DECAYS, Plan, expected_exploration
from lottery.ranges import length, number, one_of, option

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lottery.training.moving import MovingTraining

SHARE = number(0, 1)


@dataclass
class Exchanging(Sparse):
    """A method by which weights change places at a density below 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density == 1:
            raise ConfigError.of("method.density", self.density, "less than 1: a full layer has no room to grow")


@dataclass
class SET(Exchanging):
    """SET: k = int(α kept) weights of each layer go after the optimizer's step, and k others come."""

    share: float = option(0.3, SHARE)  # α, of the kept weights
    decay: str = option("cosine", one_of(*DECAYS))

    grow = "random"
    shows: ClassVar = Shows("SET", title="SET, {allocation}", needs="none")

    def move(self, run: MovingTraining, step: int) -> None:
        """Drop the smallest weights of each layer, and grow as many."""
        import numpy as np

        if self.grow == "gradient":  # the move takes the place of the optimizer's step
            gains = [np.abs(gradient) for gradient in run.dense_gradient()]
            run.optimizer.zero_grad(set_to_none=True)
        else:
            run.optimize()
            gains = chance(run, step)
        share = self.share_at(run.plan, step)
        run.move_(step, exchanged(run.kept(), run.magnitudes(), gains, share, self.grow == "random"))

    def share_at(self, plan: Plan, step: int) -> float:
        """Return the share of the kept weights that changes places in this step."""
        return self.share * DECAYS[self.decay](plan.progress(step))

    def expected_exploration(self, plan: Plan, sizes: list[int], kept: list[int], step: int) -> float:
        shares = [self.share_at(plan, move) for move in range(step) if plan.due(move)]
        found = 0.0
        for size, count in zip(sizes, kept, strict=True):
            exact = [min(int(share * count), size - count) / count for share in shares if count]
            found += size * expected_exploration(count / size, exact) if count < size else size
        return found / sum(sizes)


@dataclass
class RigL(SET):
    """RigL: weights grow where the gradient is largest."""

    grow = "gradient"
    shows: ClassVar = Shows("RigL", title="RigL, {allocation}", needs="none")


@dataclass
class ITOP(SET):
    """In-time over-parameterisation: SET or RigL (`grow`) with a long interval, in which new weights get trained."""

    every: str = option("1500it", length)
    share: float = option(0.5, SHARE)
    grow: str = option("random", one_of("random", "gradient"))

    shows: ClassVar = Shows("ITOP", title="ITOP, {allocation}", needs="none")


def chance(run: MovingTraining, step: int) -> list[NDArray]:
    """Return a random number for each weight, by which weights are grown."""
    import numpy as np

    random = run.random(step)
    return [random.random(mask.numel(), dtype=np.float32) for mask in run.masks]


def exchanged(
    masks: list[NDArray], scores: list[NDArray], gains: list[NDArray], share: float, new_only: bool
) -> list[NDArray]:
    """Return the masks after a share of each layer's weights, the lowest-scored, has changed places.

    new_only: weights that were just dropped cannot come back. Otherwise one that does keeps its value, as in RigL.
    A layer without room for as many has fewer change places.
    """
    from lottery.moving.exchange import with_highest, without_lowest

    moved = []
    for kept, score, gain in zip(masks, scores, gains, strict=True):
        number = int(share * int(kept.sum()))
        if new_only:
            number = min(number, kept.size - int(kept.sum()))
        left = without_lowest(kept, score, number)
        moved.append(with_highest(left, gain, number, ~kept if new_only else ~left))
    return moved
