"""Edge-popup (Ramanujan et al., CVPR 2020): a mask in a network of random weights, which are never trained.

Each layer keeps the weights of the highest |s|. The scores of all weights, kept or pruned, follow the gradient ∂loss/∂s
= q ⊙ w ⊙ sign(s), with q = ∂loss/∂z at z = m ⊙ w.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lottery.methods.shows import Shows
from lottery.ranges import FRACTION, Checked, length, option, such_that
from lottery.stages.round import Round
from lottery.training.phases import Phase, Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from lottery.stages.lab import Lab
    from lottery.training.search import ScoreSearch
    from lottery.training.search_options import Search

SCOPE = such_that(lambda scope: scope in ("layer", "global"), "'layer' or 'global'")


@dataclass
class EdgePopup(Checked):
    """Edge-popup: one search for a mask of `density`; one round beside the untrained network."""

    density: float = option(0.5, FRACTION)
    # unstructured, filter (removed ones return only where their normalisation's shift is not 0), channel, or N:M as 2:4
    pattern: str = "unstructured"
    scope: str = option("layer", SCOPE)  # layer: each keeps the same share; global: all weights are ranked together
    steps: str = option("10ep", length)
    initial: str = "kaiming_uniform"  # the scores at the start
    scores: Phase = field(default_factory=lambda: Phase(weight_decay=5e-4))
    tune: Tuning = field(default_factory=Tuning)
    snapshots: str | None = None  # keep the mask every so often; null: only the last

    rounds: ClassVar = 1
    shows: ClassVar = Shows("edge-popup", title="edge-popup{searched}")

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a density or a pattern that the layers cannot have."""
        lab.check_search(self.search(lab), self.tune)

    def search(self, lab: Lab) -> Search:
        """Return the options of the search; a layer of n weights keeps n - int((1 - density) n)."""
        counts = None
        if self.scope == "layer" and self.pattern == "unstructured":
            sizes = {name: shape.numel() for name, shape in lab.initial.mask.shapes.items()}
            counts = {name: n - int((1 - self.density) * n + 1e-9) for name, n in sizes.items()}
        return lab.search_of(self, "edge_popup", pattern=self.pattern, counts=counts, absolute=True)

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the untrained network as round 0, and the ticket found in it as round 1."""
        untrained = lab.train(lab.untrained)
        yield Round(0, untrained.ticket, untrained)
        found = lab.searched(lab.initial.state, self.steps, self.search(lab))
        yield lab.tuned(1, found, self.tune)

    def update(self, run: ScoreSearch, step: int) -> Tensor:
        """Do one step of the scores on one batch, and set the mask of the highest |s|."""
        loss = run.loss_of(run.stream.batch(step), silent=False)
        run.move_scores(score_gradient(run.weights, run.gradient(loss), run.scores), step)
        return loss.detach()


def score_gradient(weights: Sequence[Tensor], q: list[Tensor], scores: Iterable[Tensor]) -> list[Tensor]:
    """Return q ⊙ w ⊙ sign(s), tensor by tensor, written over q: straight through the ranking, chain rule through |s|.

    The released code (allenai/hidden-networks) takes |s| inside autograd, so a negative score moves against q ⊙ w. A
    score of exactly 0 has no gradient.
    """
    import torch

    with torch.no_grad():
        torch._foreach_mul_(q, list(weights))
        torch._foreach_mul_(q, torch._foreach_sign([score.detach() for score in scores]))
    return q
