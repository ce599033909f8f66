"""Progressive gradient flow (Bambhaniya et al. 2024): N:M sparsity that closes slowly.

The network trains dense up to `begin`. Then a forward pass uses w ⊙ (m + (1 - m) β), where m keeps the largest of each
group. Two things decay on the way to `end`: the structure of m, from (M-1):M over M/2:M, M/4:M, … to N:M in frames of
equal length, and the mask's strength, β = max(0, 1 - c t) or e^(-c t). From `end` on the network trains under N:M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, ClassVar

from lottery.methods.shows import Shows
from lottery.methods.srste import Grouped
from lottery.ranges import number, one_of, option

if TYPE_CHECKING:
    from torch import Tensor

    from lottery.training.moving import MovingTraining


@dataclass
class ProgressiveNM(Grouped):
    """Decaying masks and structures.

    structure: whether the structure decays; if not, it is N:M from `begin` on
    strength:  how β falls: none (β = 0), linear or exponential; rate: its c, per step
    gradient:  derivative: of w ⊙ (m + (1 - m) β); straight_through: all of ∂ℓ/∂z, as the released code has it
    """

    begin: float = option(0.1, number(0, 1))
    end: float = option(0.75, number(0, 1, above=True))
    structure: bool = True
    strength: str = option("exponential", one_of("none", "linear", "exponential"))
    rate: float = option(0.01, number(0))
    gradient: str = option("derivative", one_of("derivative", "straight_through"))

    shows: ClassVar = Shows("progressive N:M", title="progressive{searched}", needs="none")

    def frames(self) -> list[int]:
        """Return the N of each frame: M - 1, M/2, M/4, …, N; log2(M/N) + 1 frames."""
        n, m = self.n_of_m
        halves, now = [max(n, m - 1)], m // 2
        while now > n:
            halves.append(now)
            now //= 2
        return halves if halves[-1] == n else [*halves, n]

    def n_at(self, run: MovingTraining, step: int) -> int:
        """Return the N of this step."""
        if not self.structure or step >= run.plan.end:
            return self.n_of_m[0]
        frames = self.frames()
        return frames[min(int(run.plan.progress(step) * len(frames)), len(frames) - 1)]

    def beta(self, run: MovingTraining, step: int) -> float:
        """Return β of this step, in [0, 1]: how much of a pruned weight the forward pass uses."""
        passed = self.rate * (step - run.plan.begin)
        if step >= run.plan.end or self.strength == "none":
            return 0.0
        return max(0.0, 1 - passed) if self.strength == "linear" else exp(-passed)

    def update(self, run: MovingTraining, step: int) -> Tensor:
        """Do a dense step, one through the mask of this step, or a masked one, by the part of the training."""
        plan = run.plan
        if step < plan.begin or step > plan.end:
            loss = run.compute_gradients(step)
            run.optimize(masked=step > plan.end)
            return loss
        if step == plan.end:
            run.move_(step, run.flat(self.masks(run, *self.n_of_m)))
            loss = run.compute_gradients(step)
            run.optimize()
            return loss
        run.masks_(self.masks(run, self.n_at(run, step), self.n_of_m[1]), step)
        factors = softened(run.masks, self.beta(run, step))
        with run.multiplied(factors):
            loss = run.compute_gradients(step)
        run.count_dense_gradient()
        if self.gradient == "derivative":
            for weight, factor in zip(run.weights, factors, strict=True):
                if weight.grad is not None:
                    weight.grad.mul_(factor)
        run.optimize(masked=False)
        return loss

    def factors(self, run: MovingTraining, step: int) -> list[Tensor] | None:
        if not run.plan.begin <= step < run.plan.end:
            return None
        return softened(self.masks(run, self.n_at(run, step), self.n_of_m[1]), self.beta(run, step))


def softened(masks: Sequence[Tensor], beta: float) -> list[Tensor]:
    """Return m + (1 - m) β of each mask."""
    return [mask + (1 - mask) * beta for mask in masks]
