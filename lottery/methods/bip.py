"""BiP: bi-level pruning (Zhang et al., NeurIPS 2022).

min over masks m of ℓ(m ⊙ θ*(m)), where θ*(m) minimises ℓ(m ⊙ θ) + γ/2 |θ|². Starting from the trained dense network,
each step moves the weights on one batch with the mask fixed, then the mask on another with the weights fixed:

    θ ← θ - α (m ⊙ q + γ'θ)                      q = ∂ℓ/∂z at z = m ⊙ θ, on the first batch
    s ← s - β (θ - (1/γ) m ⊙ q) ⊙ q              q on the second batch; m keeps the k highest scores

Single weights are ranked by s. Filters and channels are ranked by the norm of |s|, so the gradient of their scores has
the sign of s in it: a group that is pushed out shrinks towards 0 and stays out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lottery.errors import ConfigError
from lottery.methods.shows import Shows
from lottery.ranges import FRACTION, Checked, at_least, length, one_of, option, such_that
from lottery.stages.round import Round
from lottery.training.phases import Phase, Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from lottery.stages.lab import Lab
    from lottery.training.search import ScoreSearch
    from lottery.training.search_options import Search

POSITIVE = such_that(
    lambda gamma: gamma is None or gamma > 0, "a number > 0, or null to leave the implicit gradient out"
)


@dataclass
class BiP(Checked):
    """BiP: one search for a mask of `density`; one round beside the dense one."""

    density: float = option(0.1, FRACTION)
    pattern: str = "unstructured"  # unstructured, filter, channel, or N:M such as 2:4
    # repo: the update of the released code (bip_released.py), which reads neither scores nor initial
    variant: str = option("paper", one_of("paper", "repo"))
    steps: str = option("10ep", length)
    inner: int = option(1, at_least(1, "a number of steps ≥ 1"))  # steps of the weights for each step of the mask
    gamma: float | None = option(1e4, POSITIVE)  # null: infinite, which leaves the implicit gradient out
    initial: str = "scaled"  # the scores at the start: scaled, magnitude, kaiming_uniform, uniform
    scores: Phase = field(default_factory=Phase)
    weights: Phase = field(default_factory=lambda: Phase(weight_decay=1e-4))
    tune: Tuning = field(default_factory=Tuning)
    snapshots: str | None = None  # keep the mask every so often; null: only the last

    rounds: ClassVar = 1
    shows: ClassVar = Shows("BiP", title="BiP{searched}")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "repo" and self.inner != 1:
            raise ConfigError.of("method.inner", self.inner, "1, as the released code has it (method.variant=repo)")

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a density or a pattern that the layers cannot have."""
        lab.check_search(self.search(lab), self.tune)

    def search(self, lab: Lab) -> Search:
        """Return the options of the search."""
        from lottery.methods.bip_released import as_released
        from lottery.training.search_options import GROUPS

        search = lab.search_of(
            self,
            "bip",
            pattern=self.pattern,
            inner=self.inner,
            inverse_gamma=1 / self.gamma if self.gamma is not None else 0.0,
            revision=int(self.pattern in GROUPS),  # the numerics of groups changed once
            absolute=self.pattern in GROUPS,
            batches=self.inner + 1,
        )
        steps = lab.duration(self.steps, "method.steps")
        return search if self.variant == "paper" else as_released(search, self.weights, steps)

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the dense network (shared with IMP and others), then the ticket found in it, tuned if asked for."""
        dense = lab.train(lab.initial)
        yield Round(0, lab.initial, dense)
        found = lab.searched(dense.state, self.steps, self.search(lab), self.weights)
        yield lab.tuned(1, found, self.tune)

    def update(self, run: ScoreSearch, step: int) -> Tensor:
        """Do `inner` steps of the weights (lower level), then one step of the scores and their mask (upper level)."""
        import torch

        for number in range(run.search.inner):
            loss = run.loss_of(run.stream.batch(step * run.search.inner + number))
            run.move_weights(loss, step)
        q = run.gradient(run.loss_of(run.upper.batch(step), statistics=False, silent=False))
        moves = hypergradient(run.weights, run.masks, q, run.search.inverse_gamma)
        if run.search.absolute:
            torch._foreach_mul_(moves, torch._foreach_sign([score.detach() for score in run.scores]))
        run.move_scores(moves, step)
        return loss.detach()


def hypergradient(
    weights: Sequence[Tensor], masks: Sequence[Tensor], q: list[Tensor], inverse_gamma: float
) -> list[Tensor]:
    """Return (θ - (1/γ) m ⊙ q) ⊙ q, tensor by tensor, written over q: dℓ/dm with the Hessian of ℓ left out.

    It is exact where ℓ is linear in z; elsewhere the error shrinks with 1/γ.
    """
    import torch

    with torch.no_grad():
        total = list(weights)
        if inverse_gamma:
            total = list(torch._foreach_addcmul(total, list(masks), q, value=-inverse_gamma))
        torch._foreach_mul_(q, total)
    return q
