"""BiP: bi-level pruning (Zhang et al., NeurIPS 2022).

min over masks m of ℓ(m ⊙ θ*(m)), where θ*(m) minimises ℓ(m ⊙ θ) + γ/2 |θ|². Starting from the trained dense network,
each step moves the weights on one batch with the mask fixed, then the mask on another with the weights fixed:

    θ ← θ - α (m ⊙ q + γ'θ)                      q = ∂ℓ/∂z at z = m ⊙ θ, on the first batch
    s ← s - β (θ - (1/γ) m ⊙ q) ⊙ q              the same on the second; m keeps the k highest scores
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lottery.errors import ConfigError, nearest
from lottery.methods.phases import Phase, Tuning, check_density, check_length
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.training.search import Search

VARIANTS = ("paper", "repo")


@dataclass
class BiP:
    """One search for a mask of `density`; one round beside the dense one."""

    density: float = 0.1
    pattern: str = "unstructured"  # unstructured, filter, channel, or N:M such as 2:4
    variant: str = "paper"  # repo: what the released code does, for comparison
    steps: str = "10ep"
    inner: int = 1  # steps of the weights for each step of the mask
    gamma: float | None = 1e4  # null: infinite, which leaves the implicit gradient out
    initial: str = "scaled"  # the scores at the start: scaled, magnitude, kaiming_uniform, uniform
    scores: Phase = field(default_factory=Phase)
    weights: Phase = field(default_factory=lambda: Phase(weight_decay=1e-4))
    tune: Tuning = field(default_factory=Tuning)
    snapshots: str | None = None  # keep the mask every so often; null: only the last

    def __post_init__(self) -> None:
        check_density(self.density)
        check_length(self.steps, "method.steps")
        if self.variant not in VARIANTS:
            expected = f"one of {', '.join(VARIANTS)}{nearest(self.variant, VARIANTS)}"
            raise ConfigError.of("method.variant", self.variant, expected)
        if self.inner < 1:
            raise ConfigError.of("method.inner", self.inner, "a number of steps ≥ 1")
        if self.variant == "repo" and self.inner != 1:
            raise ConfigError.of("method.inner", self.inner, "1, as the released code has it (method.variant=repo)")
        if self.gamma is not None and not self.gamma > 0:
            raise ConfigError.of("method.gamma", self.gamma, "a number > 0, or null to leave the implicit gradient out")
        for name in ("scores", "weights", "tune"):
            getattr(self, name).check(f"method.{name}")

    @property
    def rounds(self) -> int:
        return 1

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a density or a pattern that the layers cannot have."""
        lab.check_search(self.search(lab), self.tune)

    def search(self, lab: Lab) -> Search:
        """The options of the search."""
        from lottery.training.search import Search

        steps = lab.duration(self.steps, "method.steps")
        return Search(
            kind="bip" if self.variant == "paper" else "bip_repo",
            optim=self.scores.optim(),
            lr=self.scores.rate(steps),
            initial=self.initial,
            seed=lab.config.seeds.mask,
            density=self.density,
            pattern=self.pattern,
            inner=self.inner,
            inverse_gamma=1 / self.gamma if self.gamma is not None else 0.0,
            snapshots=lab.every(self.snapshots, "method.snapshots"),
        )

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the dense network, which IMP and others share; round 1 what is found in it, tuned if asked for."""
        dense = lab.train(lab.initial)
        yield Round(0, lab.initial, dense)
        found = lab.searched(dense.state, self.steps, self.search(lab), self.weights)
        yield lab.tuned(1, found, self.tune)
