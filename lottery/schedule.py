"""The learning rate as a pure function of the absolute step, so that a rewind or resume reproduces it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from lottery.config import Schedule
from lottery.errors import ConfigError
from lottery.steps import Duration


@dataclass(frozen=True)
class LearningRate:
    """`lr(step)` for 0 ≤ step < total: the schedule `name` after `warmup` steps that rise linearly from 0.

    one_cycle rises from `start` times the base rate, and then falls linearly, to `end` times the base rate at the last
    step. This is torch's OneCycleLR with linear annealing (Smith & Topin 2018).
    """

    name: str
    base: float
    total: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: int = 0
    start: float = 0.0
    end: float = 0.0

    @classmethod
    def resolve(cls, options: Schedule, base: float, total: int, steps_per_epoch: int) -> LearningRate:
        """Convert the options' times to steps. Raises ConfigError for unsorted milestones, or a warm-up > `total`."""
        warmup = Duration.parse(options.warmup, "schedule.warmup").resolve(steps_per_epoch)
        times = [Duration.parse(text, "schedule.milestones") for text in options.milestones]
        milestones = tuple(time.resolve(steps_per_epoch) for time in times)
        if options.name == "multistep" and list(milestones) != sorted(milestones):
            raise ConfigError.of("schedule.milestones", list(options.milestones), "times in rising order")
        if warmup > total:
            raise ConfigError.of("schedule.warmup", options.warmup, f"at most the {total} steps of train.steps")
        used = milestones if options.name == "multistep" else ()
        ends = (options.start, options.end) if options.name == "one_cycle" else ()
        return cls(options.name, base, total, used, options.gamma if used else 1.0, warmup, *ends)

    def inputs(self) -> dict[str, Any]:
        """Return the part of a stage key, without the options that this schedule does not read."""
        values = asdict(self)
        if self.name != "one_cycle":
            del values["start"], values["end"]
        return values

    def __call__(self, step: int) -> float:
        """Return the learning rate of the update from step `step` to `step + 1`."""
        if self.name == "one_cycle":
            return self.base * self._cycle(step)
        if step < self.warmup:
            # LTH and LMC warm up linearly from 0, reaching the base rate at the warm-up's end.
            return self.base * step / self.warmup
        if self.name == "cosine":
            progress = (step - self.warmup) / max(1, self.total - self.warmup)
            return self.base * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        passed = sum(step >= milestone for milestone in self.milestones)
        return self.base * self.gamma**passed

    def _cycle(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        progress = (step - self.warmup) / max(1, self.total - 1 - self.warmup)
        return 1 + (self.end - 1) * min(1.0, progress)
