"""GraNet (Liu et al. 2021): gradual magnitude pruning, and after each pruning some weights change places.

At each move all layers together are pruned to the density d_f + (d_i - d_f)(1 - u)³. Then a share α of each layer's
weights, the smallest, go, and as many grow where the gradient is largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lottery.methods.gmp import GMP, pruned
from lottery.methods.set import SHARE, exchanged
from lottery.methods.shows import Shows
from lottery.moving.plan import DECAYS, cubic
from lottery.ranges import FRACTION, one_of, option

if TYPE_CHECKING:
    from lottery.training.moving import MovingTraining


@dataclass
class GraNet(GMP):
    """GraNet from the density `initial` (1: from a dense network) to `density`."""

    initial: float = option(0.5, FRACTION)
    scope: str = option("global", one_of("layer", "global"))
    share: float = option(0.5, SHARE)
    decay: str = option("cosine", one_of(*DECAYS))

    shows: ClassVar = Shows("GraNet", title="GraNet", needs="none")

    def move(self, run: MovingTraining, step: int) -> None:
        """Do the optimizer's step, prune, and let weights change places by the gradient of this step's batch."""
        import numpy as np

        gains = [np.abs(gradient) for gradient in run.dense_gradient()]
        run.optimize()
        progress = run.plan.progress(step)
        masks = pruned(run, cubic(self.initial, self.density, progress), self.scope)
        share = self.share * DECAYS[self.decay](progress)
        run.move_(step, exchanged(masks, run.magnitudes(), gains, share, new_only=False))
