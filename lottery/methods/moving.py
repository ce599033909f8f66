"""What the methods with a mask that moves in training have in common: the plan, the start, and the rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lottery.errors import ConfigError
from lottery.ranges import FRACTION, Checked, chosen, length, number, option
from lottery.stages.round import Round

if TYPE_CHECKING:
    from torch import Tensor

    from lottery.moving.plan import Plan
    from lottery.stages.lab import Lab
    from lottery.ticket import Mask
    from lottery.training.moving import MovingTraining


@dataclass
class Moving(Checked):
    """A training whose mask moves; one round beside the dense one. It starts dense, and its plan is the whole training.

    The round's ticket is the mask at the end with the weights that `rewind` says, so that controls retrain it, as a
    static mask: controls.static=1 with these weights, controls.reinit=1 with new ones.
    """

    snapshots: str | None = None  # keep the mask every so often; null: only the last

    # Fields of methods with a plan.
    every = "1it"
    begin = 0.0
    end = 1.0
    rounds: ClassVar = 1
    revision: ClassVar = 0  # raised when the numerics of this method alone change

    def check(self, lab: Lab) -> None:
        """Raise ConfigError for a plan or a start that is impossible."""
        lab.check_moving(self)
        if lab.config.controls.invert:
            expected = "0: weights come and go, so that none are first to go"
            raise ConfigError.of("controls.invert", lab.config.controls.invert, expected)

    def start(self, lab: Lab) -> Mask:
        """Return the mask at the start."""
        return lab.initial.mask

    def __call__(self, lab: Lab) -> Iterator[Round]:
        """Yield the dense network, then the one whose mask moved; both are trained from the same initial weights."""
        dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
        yield Round(0, lab.initial, dense)
        moved = lab.moved(replace(lab.initial, mask=self.start(lab)), self)
        yield Round(1, lab.rewind.ticket(dense, moved, moved.mask), moved)

    def update(self, run: MovingTraining, step: int) -> Tensor:
        """Do a masked step; where a move is due, `move`."""
        loss = run.compute_gradients(step)
        if run.plan.due(step):
            self.move(run, step)
        else:
            run.optimize()
        return loss

    def move(self, run: MovingTraining, step: int) -> None:
        """Do the optimizer's part of the step, and move the mask."""
        raise NotImplementedError

    def expected_exploration(self, plan: Plan, sizes: list[int], kept: list[int], step: int) -> float | None:
        """Return the share of weights kept by `step`, expected of growth at random; None where none is expected.

        sizes, kept: the entries of each layer, and those it keeps at the start
        """
        return None

    def factors(self, run: MovingTraining, step: int) -> list[Tensor] | None:
        return None


@dataclass
class Planned(Moving):
    """A method that moves the mask now and then, up to a part of the training; the mask is static afterwards."""

    density: float = option(0.1, FRACTION)  # at the end
    every: str = option("100it", length)  # between two moves
    begin: float = option(0.0, number(0, 1))  # of the training
    end: float = option(0.75, number(0, 1, above=True))  # of the training


@dataclass
class Sparse(Planned):
    """A method that may start sparse: with a random mask whose layer densities the allocation has."""

    allocation: Any = None

    @property
    def start_density(self) -> float:
        """The density of the mask at the start."""
        return self.density

    def check(self, lab: Lab) -> None:
        super().check(lab)
        if self.start_density < 1:
            chosen("allocation")("method.allocation", self.allocation)
            lab.check_counts(self.allocation, self.start_density)

    def start(self, lab: Lab) -> Mask:
        if self.start_density == 1:
            return lab.initial.mask
        options = {"density": self.start_density, "allocation": self.allocation}
        return lab.found(lambda lab: lab.drawn(lab.counts(self.allocation, self.start_density)), **options)
