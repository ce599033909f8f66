"""Lottery jackpots (Zhang et al., TPAMI 2023): a mask in a pre-trained network whose weights never change.

Every weight has a score; the scores follow ∂loss/∂s = q ⊙ w, with q = ∂loss/∂z at z = b ⊙ w, also those of pruned
weights. Each layer keeps its count: where pruned weights have come to score above kept ones they change places, under
*short restriction* only the fraction ρ of them that shrinks as the search goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError, nearest
from lottery.methods.phases import Phase, Tuning, check_density, check_length
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.stages.train import Trained
    from lottery.training.search import Search

STARTS = ("dense", "loaded")


@dataclass
class Jackpot:
    """One search for a mask of `density`; one round beside the pre-trained network."""

    density: float = 0.1
    allocation: Any = None  # layer counts, chosen with allocation=NAME
    start: str = "dense"  # dense: trained here first; loaded: as model.weights or model.pretrained gives it
    steps: str = "10ep"
    initial: str = "two_level"  # the scores at the start; two_level: 0.99 and 1 by magnitude
    short_restriction: Any = "none"  # none, quartic, cosine, or a constant ρ in [0, 1]
    scores: Phase = field(default_factory=lambda: Phase(weight_decay=5e-4))
    tune: Tuning = field(default_factory=lambda: Tuning(lr=0.01))
    snapshots: str | None = None  # keep the mask every so often; null: only the last

    def __post_init__(self) -> None:
        check_density(self.density)
        check_length(self.steps, "method.steps")
        if self.allocation is None:
            raise ConfigError("method.allocation: nothing chosen; choose one with allocation=NAME (--help lists them)")
        if self.start not in STARTS:
            raise ConfigError.of("method.start", self.start, f"one of {', '.join(STARTS)}{nearest(self.start, STARTS)}")
        for name in ("scores", "tune"):
            getattr(self, name).check(f"method.{name}")

    @property
    def rounds(self) -> int:
        return 1

    def check(self, lab: Lab) -> None:
        """Raise ConfigError without pre-trained weights, and for what the layers cannot have."""
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
        even = {name: 1 for name in lab.initial.mask}  # the real ones are known when the network is trained
        lab.check_search(self.search(lab, even), self.tune)

    def search(self, lab: Lab, counts: dict[str, int]) -> Search:
        """The options of the search."""
        from lottery.training.search import Search

        steps = lab.duration(self.steps, "method.steps")
        return Search(
            kind="jackpot",
            optim=self.scores.optim(),
            lr=self.scores.rate(steps),
            initial=self.initial,
            seed=lab.config.seeds.mask,
            density=self.density,
            counts=counts,
            restriction=self.short_restriction,
            snapshots=lab.every(self.snapshots, "method.snapshots"),
        )

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the pre-trained network, round 1 what is found in it, tuned if asked for (the paper's 30s10t)."""
        dense = self.pretrained(lab)
        yield Round(0, dense.ticket, dense)
        counts = lab.counts(self.allocation, self.density, dense.state)
        found = lab.searched(dense.state, self.steps, self.search(lab, counts))
        yield lab.tuned(1, found, self.tune)

    def pretrained(self, lab: Lab) -> Trained:
        """The dense network, trained here or as it was loaded."""
        return lab.train(lab.initial if self.start == "dense" else lab.untrained)
