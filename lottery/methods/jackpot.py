"""Lottery jackpots (Zhang et al., TPAMI 2023): a mask in a pre-trained network whose weights never change.

The scores of all weights, kept or pruned, follow the gradient ∂loss/∂s = q ⊙ w, with q = ∂loss/∂z at z = b ⊙ w. Each
layer keeps its count: pruned weights that score above kept ones change places with them. *Short restriction* allows
only a fraction ρ of these swaps, which shrinks as the search goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lottery.errors import ConfigError
from lottery.methods.shows import Shows
from lottery.ranges import FRACTION, Checked, chosen, length, one_of, option
from lottery.stages.round import Round
from lottery.training.phases import Phase, Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from lottery.stages.lab import Lab
    from lottery.training.search import ScoreSearch
    from lottery.training.search_options import Search


@dataclass
class Jackpot(Checked):
    """Lottery jackpots: one search for a mask of `density`; one round beside the pre-trained network."""

    density: float = option(0.1, FRACTION)
    allocation: Any = option(None, chosen("allocation"))  # layer counts, chosen with allocation=NAME
    # dense: trained here first; loaded: from model.weights or model.pretrained
    start: str = option("dense", one_of("dense", "loaded"))
    steps: str = option("10ep", length)
    initial: str = "two_level"  # the scores at the start; two_level: 0.99 and 1 by magnitude
    short_restriction: Any = "none"  # none, quartic, cosine, or a constant ρ in [0, 1]
    scores: Phase = field(default_factory=lambda: Phase(weight_decay=5e-4))
    tune: Tuning = field(default_factory=lambda: Tuning(lr=0.01))
    snapshots: str | None = None  # keep the mask every so often; null: only the last

    rounds: ClassVar = 1
    shows: ClassVar = Shows("jackpot", title="jackpot{searched}")

    def check(self, lab: Lab) -> None:
        """Raise ConfigError without pre-trained weights, and for options that the layers do not allow."""
        model = lab.config.model
        if self.start == "loaded" and not (model.get("weights") or model.get("pretrained")):
            raise ConfigError(
                "method.start: got 'loaded', but nothing is: give model.weights=FILE (.safetensors, or a .pth of "
                "tensors), or +model.pretrained=true for a network of timm or torchvision, or start=dense to train one"
            )
        if self.short_restriction is None:
            expected = "none, quartic, cosine, or a constant in [0, 1]"
            raise ConfigError.of("method.short_restriction", None, expected)
        lab.check_counts(self.allocation, self.density)
        even = {name: 1 for name in lab.initial.mask}  # the actual counts are known when the network is trained
        lab.check_search(self.search(lab, even), self.tune)

    def search(self, lab: Lab, counts: dict[str, int]) -> Search:
        """Return the options of the search."""
        return lab.search_of(self, "jackpot", counts=counts, restriction=self.short_restriction)

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the pre-trained network, then the ticket found in it, tuned if asked for (the paper's 30s10t)."""
        dense = lab.train(lab.initial if self.start == "dense" else lab.untrained)
        yield Round(0, dense.ticket, dense)
        counts = lab.counts(self.allocation, self.density, dense.state)
        found = lab.searched(dense.state, self.steps, self.search(lab, counts))
        yield lab.tuned(1, found, self.tune)

    def update(self, run: ScoreSearch, step: int) -> Tensor:
        """Do one step of the scores on one batch, and set the mask that follows."""
        loss = run.loss_of(run.stream.batch(step), silent=False)
        run.move_scores(score_gradient(run.weights, run.gradient(loss)), step)
        return loss.detach()


def score_gradient(weights: Sequence[Tensor], q: list[Tensor]) -> list[Tensor]:
    """Return q ⊙ w, tensor by tensor, written over q: the gradient of the mask, passed to the scores unchanged."""
    import torch

    with torch.no_grad():
        torch._foreach_mul_(q, list(weights))
    return q
