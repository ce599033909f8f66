"""SR-STE (Zhou et al. 2021): N:M sparsity from scratch, with dense weights underneath.

A forward pass uses m ⊙ w, where m keeps the N largest of each M weights and follows w in every step. The gradient goes
straight through to all weights, and pruned ones decay: g + λ (1 - m) ⊙ w. At the end w becomes m ⊙ w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lottery.errors import ConfigError
from lottery.methods.moving import Moving
from lottery.methods.shows import Shows
from lottery.ranges import number, one_of, option

if TYPE_CHECKING:
    from torch import Tensor

    from lottery.moving.groups import Groups
    from lottery.stages.lab import Lab
    from lottery.training.moving import MovingTraining


@dataclass
class Grouped(Moving):
    """A method whose mask keeps N of each M weights."""

    pattern: str = "2:4"
    layout: str = option("hardware", one_of("hardware", "flattened"))
    ungrouped: str = option("dense", one_of("dense", "refuse"))  # a layer that has no groups of M

    def __post_init__(self) -> None:
        super().__post_init__()
        n, _, m = str(self.pattern).partition(":")
        if not (n.isdigit() and m.isdigit() and 0 < int(n) <= int(m)):
            expected = "N:M with 0 < N ≤ M, such as 2:4, in a file in quotes"
            raise ConfigError.of("method.pattern", self.pattern, expected)

    @property
    def n_of_m(self) -> tuple[int, int]:
        n, _, m = self.pattern.partition(":")
        return int(n), int(m)

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a plan that is none, or layers without groups where these are refused."""
        super().check(lab)
        groups = self.groups(lab.initial.mask.shapes, *self.n_of_m)
        if not any(groups):
            raise ConfigError.of("method.pattern", self.pattern, "an M that divides the inputs of some layer")

    def groups(self, shapes: Any, n: int, m: int) -> list[Groups | None]:
        """Return the rule of each layer; None: the layer stays dense."""
        from lottery.moving.groups import Groups, fits

        return [
            Groups(name, shape, n, m, self.layout)
            if self.ungrouped == "refuse" or fits(shape, m, self.layout)
            else None
            for name, shape in shapes.items()
        ]

    def masks(self, run: MovingTraining, n: int, m: int) -> list[Tensor]:
        """Return the N:M mask of the current weights; layers without groups are dense."""
        import torch

        rules = self.groups({name: w.shape for name, w in zip(run.names, run.weights, strict=True)}, n, m)
        return [rule(w) if rule else torch.ones_like(w) for rule, w in zip(rules, run.weights, strict=True)]


@dataclass
class SRSTE(Grouped):
    """SR-STE. decay: λ, of pruned weights; it goes through momentum and learning rate, as in the source."""

    decay: float = option(2e-4, number(0))

    shows: ClassVar = Shows("SR-STE", title="SR-STE{searched}", needs="none")

    def update(self, run: MovingTraining, step: int) -> Tensor:
        """Do an optimizer step of the dense weights through the mask, and set the mask that follows from them."""
        run.masks_(self.masks(run, *self.n_of_m), step)
        with run.multiplied(run.masks):
            loss = run.compute_gradients(step)
        run.count_dense_gradient()
        add_decay_(run.weights, run.masks, self.decay)
        run.optimize(masked=False)
        if step + 1 == run.end:
            run.move_(step, run.flat(self.masks(run, *self.n_of_m)))
        return loss

    def factors(self, run: MovingTraining, step: int) -> list[Tensor] | None:
        return self.masks(run, *self.n_of_m) if step < run.end else None


def add_decay_(weights: Sequence[Tensor], masks: Sequence[Tensor], decay: float) -> None:
    """Add λ (1 - m) ⊙ w to the gradient of each weight."""
    for weight, mask in zip(weights, masks, strict=True):
        if weight.grad is not None:
            weight.grad.add_((1 - mask) * weight.detach(), alpha=decay)
