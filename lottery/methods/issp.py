"""Iterative soft shrinkage (ISS-P, Wang et al. 2023): the smallest weights shrink a little in every step.

After each optimizer step of the plan, the int((1 - density) n) smallest weights of each layer are multiplied by
`ratio`. Which these are is decided anew each time, so a weight may come back. At the end of the plan they are pruned,
and the rest trains on. ratio = 0 is iterative hard thresholding, ratio = 1 dense training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lottery.methods.moving import Moving
from lottery.methods.shows import Shows
from lottery.ranges import FRACTION, number, option

if TYPE_CHECKING:
    from torch import Tensor

    from lottery.training.moving import MovingTraining


@dataclass
class ISSP(Moving):
    """Iterative soft shrinkage of each layer's smallest weights, in every step of the plan."""

    density: float = option(0.1, FRACTION)
    begin: float = option(0.0, number(0, 1))
    end: float = option(0.75, number(0, 1, above=True))
    ratio: float = option(0.95, number(0, 1))

    shows: ClassVar = Shows("ISS-P", title="soft shrinkage", needs="none")

    def update(self, run: MovingTraining, step: int) -> Tensor:
        """Do an optimizer step, and shrink the smallest weights, or prune them where the plan ends."""
        import torch

        from lottery.moving.exchange import without_lowest

        loss = run.compute_gradients(step)
        run.optimize()
        plan = run.plan
        if not plan.begin <= step <= plan.end:
            return loss
        gone = [int((1 - self.density) * weight.numel()) for weight in run.weights]
        left = [without_lowest(*each) for each in zip(run.kept(), run.magnitudes(), gone, strict=True)]
        if step == plan.end:
            run.move_(step, left)
            return loss
        with torch.no_grad():
            for weight, stays in zip(run.weights, left, strict=True):
                small = torch.from_numpy(~stays).view(weight.shape).to(weight.device)
                weight.copy_(torch.where(small, weight * self.ratio, weight))
        return loss
