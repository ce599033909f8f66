"""Rewinding: where a ticket takes each part of the training state from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lottery.config import Rewind
from lottery.recipe import Recipe
from lottery.state import StateRef
from lottery.ticket import Mask, Ticket

if TYPE_CHECKING:
    from lottery.stages.trained import Trained


@dataclass(frozen=True)
class RewindPolicy:
    """The rule by which a pruned network becomes a ticket.

    Weight rewinding (Stabilizing the LTH, section 3) takes all but the optimizer from step `step` of the dense run;
    learning-rate rewinding (Renda et al., section 3) keeps the weights and takes the schedule's position; fine-tuning
    keeps the weights and the last learning rate. In all of them the ticket trains for `total - step` steps.
    """

    options: Rewind
    step: int
    total: int

    @classmethod
    def resolve(cls, options: Rewind, recipe: Recipe, train_size: int) -> RewindPolicy:
        """Build the policy of these options, with `to` as a step. ConfigError past the end of the dense training."""
        return cls(options, recipe.rewind_step(options.to, train_size), recipe.total)

    def to(self, step: int) -> RewindPolicy:
        """Return this policy with another rewind point."""
        return replace(self, step=step)

    def keep_dense(self) -> set[int]:
        """Return the steps of the dense run that tickets will ask for."""
        rewound = "rewind" in (self.options.weights, self.options.batchnorm, self.options.optimizer)
        return ({self.step} if rewound else set()) | self.keep_pruned()

    def keep_pruned(self) -> set[int]:
        """Return the steps of a pruned training that the next ticket will ask for: its end, if momentum is kept."""
        return {self.total} if self.options.optimizer == "keep" else set()

    def ticket(self, dense: Trained, trained: Trained, mask: Mask) -> Ticket:
        """Return the ticket of `mask` after `trained` was pruned; `dense` is round 0 of the study."""
        schedule = 0 if self.options.schedule == "reset" else self.step
        order = {"rewind": self.step, "reset": 0, "keep": trained.ticket.order_step + trained.ticket.steps}
        optimizer = None
        if self.options.optimizer != "reset":
            rewound = self.options.optimizer == "rewind"
            optimizer = dense.optimizer_at(self.step) if rewound else trained.optimizer_at(self.total)
        return Ticket(
            mask=mask,
            state=self._state(dense, trained),
            step=schedule,
            order_step=order[self.options.order],
            steps=self.total - schedule,
            hold_lr=self.options.schedule == "keep",
            optimizer=optimizer,
        )

    def _state(self, dense: Trained, trained: Trained) -> StateRef:
        sources = {"rewind": lambda: dense.at(self.step), "reset": lambda: dense.at(0), "keep": lambda: trained.state}
        weights = sources[self.options.weights]()
        if self.options.batchnorm == self.options.weights:
            return weights
        statistics = sources[self.options.batchnorm]().tensors()
        return StateRef.of(weights.tensors() | {name: t for name, t in statistics.items() if is_statistic(name)})


def is_statistic(name: str) -> bool:
    """Whether a state's entry is a running statistic of a normalisation layer."""
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
