"""The options of a search's phases: how the scores move, the weights meanwhile, and the tuning."""

from __future__ import annotations

from dataclasses import dataclass

from lottery.config import Optim
from lottery.errors import ConfigError
from lottery.ranges import check_options, duration, one_of, option, such_that
from lottery.schedule import LearningRate

RATE = such_that(lambda got: 0 <= got < float("inf"), "a number ≥ 0")
BELOW_1 = such_that(lambda got: 0 <= got < 1, "a number ≥ 0 and < 1")


@dataclass
class Phase:
    """An optimizer, and its learning rate over the length of the phase."""

    optimizer: str = option("sgd", one_of("sgd", "adam", "adamw"))
    lr: float = option(0.1, RATE)
    momentum: float = option(0.9, BELOW_1)  # sgd only
    nesterov: bool = False
    weight_decay: float = option(0.0, RATE)
    schedule: str = option("cosine", one_of("constant", "cosine"))  # cosine: to zero

    def check(self, key: str) -> None:
        """Raise ConfigError, with `key` before the option, for a value out of range."""
        check_options(self, key)
        if self.nesterov and not self.momentum:
            raise ConfigError.of(f"{key}.nesterov", True, f"false, or {key}.momentum > 0")

    def optim(self) -> Optim:
        """Return the optimizer's options in the form that a recipe has."""
        return Optim(self.optimizer, self.lr, self.momentum, self.nesterov, weight_decay=self.weight_decay)

    def rate(self, steps: int) -> LearningRate:
        """Return the learning rate over so many steps."""
        return LearningRate(self.schedule, self.lr, steps, gamma=1.0)


@dataclass
class Tuning(Phase):
    """Training of the kept weights under the final mask."""

    steps: str = option("0it", duration)  # 0it: none
