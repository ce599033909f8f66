"""Edge-popup (Ramanujan et al., CVPR 2020): a mask in a network of random weights, which are never trained.

Each layer keeps the weights of the highest |s|; the scores follow ∂loss/∂s = q ⊙ w ⊙ sign(s), with q = ∂loss/∂z at
z = m ⊙ w, also those of pruned weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lottery.errors import ConfigError
from lottery.methods.phases import Phase, Tuning, check_density, check_length
from lottery.stages.round import Round

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.training.search import Search


@dataclass
class EdgePopup:
    """One search for a mask of `density`; one round beside the untrained network."""

    density: float = 0.5
    # unstructured, filter (removed ones return only where their normalisation's shift is not 0), channel, or N:M as 2:4
    pattern: str = "unstructured"
    scope: str = "layer"  # layer: each keeps the same share; global: all weights are ranked together
    steps: str = "10ep"
    initial: str = "kaiming_uniform"  # the scores at the start
    scores: Phase = field(default_factory=lambda: Phase(weight_decay=5e-4))
    tune: Tuning = field(default_factory=Tuning)
    snapshots: str | None = None  # keep the mask every so often; null: only the last

    def __post_init__(self) -> None:
        check_density(self.density)
        check_length(self.steps, "method.steps")
        if self.scope not in ("layer", "global"):
            raise ConfigError.of("method.scope", self.scope, "'layer' or 'global'")
        for name in ("scores", "tune"):
            getattr(self, name).check(f"method.{name}")

    @property
    def rounds(self) -> int:
        return 1

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a density or a pattern that the layers cannot have."""
        lab.check_search(self.search(lab), self.tune)

    def search(self, lab: Lab) -> Search:
        """The options of the search; a layer of n weights keeps n - int((1 - density) n)."""
        from lottery.training.search import Search

        steps = lab.duration(self.steps, "method.steps")
        sizes = {name: shape.numel() for name, shape in lab.initial.mask.shapes.items()}
        by_layer = self.scope == "layer" and self.pattern == "unstructured"
        return Search(
            kind="edge_popup",
            optim=self.scores.optim(),
            lr=self.scores.rate(steps),
            initial=self.initial,
            seed=lab.config.seeds.mask,
            density=self.density,
            pattern=self.pattern,
            counts={name: n - int((1 - self.density) * n + 1e-9) for name, n in sizes.items()} if by_layer else None,
            snapshots=lab.every(self.snapshots, "method.snapshots"),
        )

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Round 0 is the untrained network, round 1 what is found in it."""
        untrained = lab.train(lab.untrained)
        yield Round(0, untrained.ticket, untrained)
        found = lab.searched(lab.initial.state, self.steps, self.search(lab))
        yield lab.tuned(1, found, self.tune)
