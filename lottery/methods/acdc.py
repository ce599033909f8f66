"""AC/DC (Peste et al. 2021): compressed and decompressed training in turns, with a sparse network at the end.

From `begin` on the network is pruned to `density` by magnitude, all layers together, and trains sparse for `every`.
Then every weight may train again, pruned ones from zero, for as long; and so on. From `end` on it stays sparse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lottery.methods.gmp import pruned
from lottery.methods.moving import Planned
from lottery.methods.shows import Shows
from lottery.ranges import number, one_of, option

if TYPE_CHECKING:
    from torch import Tensor

    from lottery.training.moving import MovingTraining


@dataclass
class ACDC(Planned):
    """Alternating compressed/decompressed training."""

    begin: float = option(0.05, number(0, 1))
    scope: str = option("global", one_of("layer", "global"))

    shows: ClassVar = Shows("AC/DC", title="AC/DC", needs="none")

    def update(self, run: MovingTraining, step: int) -> Tensor:
        """Do an optimizer step; where a phase begins, prune or let all weights train."""
        loss = run.compute_gradients(step)
        run.optimize()
        plan = run.plan
        if step == plan.begin or plan.due(step):
            compressed = step == plan.end or (step - plan.begin) // plan.every % 2 == 0
            run.move_(step, pruned(run, self.density, self.scope) if compressed else run.full())
        return loss
