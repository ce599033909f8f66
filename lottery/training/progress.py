"""The progress of a training, and the errors that end it early."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lottery.errors import LotteryError
from lottery.state import State
from lottery.training.evaluate import Tally


class NonFiniteLoss(LotteryError):
    """Error for a loss that became NaN or infinite."""

    @classmethod
    def at(cls, what: str, value: float, step: int) -> NonFiniteLoss:
        return cls(f"the {what} became {value} at step {step}; a lower optim.lr or optim.clip_norm may help")


class Stopped(Exception):
    """Exception for a signal during a measurement. A continued training goes on with the next batch."""


@dataclass
class Progress:
    """All that a training has measured so far; saved with every checkpoint."""

    step: int  # the absolute step reached
    curve: list[list[Any]] = field(default_factory=list)  # [step, split, loss, accuracy or None]
    best_loss: float = float("inf")  # lowest validation loss
    best_step: int | None = None  # where it was first reached: the early-stop step
    best_state: State | None = None
    seconds: float = 0.0
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))  # float32, of each step since the last curve point
    tallies: dict[str, Tally] = field(default_factory=dict)  # sums of measurements at this step, by name
    kept: dict[str, dict[str, str]] = field(default_factory=dict)  # step: digests of the states written there
    beside: State = field(default_factory=dict)  # what a search adds to its checkpoint
    log: list[dict[str, Any]] = field(default_factory=list)  # entries that a search adds as it goes

    @property
    def measured(self) -> int:
        """The number of batches in all tallies."""
        return sum(tally.batches for tally in self.tallies.values())

    @property
    def last_point(self) -> int | None:
        """The step of the last entry of the curve, or of a search's log."""
        steps = [point[0] for point in self.curve[-1:]] + [entry["step"] for entry in self.log[-1:]]
        return steps[0] if steps else None
