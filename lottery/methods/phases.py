"""The phases of a search besides the dense training: what moves the scores, the weights meanwhile, and the tuning."""

from __future__ import annotations

from dataclasses import dataclass

from lottery.config import Optim
from lottery.errors import ConfigError, nearest
from lottery.steps import Duration
from lottery.training.schedule import LearningRate

CHOICES = {"optimizer": ("sgd", "adam", "adamw"), "schedule": ("constant", "cosine")}


@dataclass
class Phase:
    """An optimizer, and its learning rate over the length of the phase."""

    optimizer: str = "sgd"  # sgd, adam, adamw
    lr: float = 0.1
    momentum: float = 0.9  # of sgd
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "cosine"  # constant, cosine (to zero)

    def check(self, key: str) -> None:
        """Raise ConfigError, with `key` before the option, for what is out of range."""
        for name, choices in CHOICES.items():
            if (got := getattr(self, name)) not in choices:
                raise ConfigError.of(f"{key}.{name}", got, f"one of {', '.join(choices)}{nearest(got, choices)}")
        for name, top in {"lr": None, "momentum": 1.0, "weight_decay": None}.items():
            got = getattr(self, name)
            if not got >= 0 or got == float("inf") or (top is not None and got >= top):
                raise ConfigError.of(f"{key}.{name}", got, "a number ≥ 0" + (f" and < {top:g}" if top else ""))
        if self.nesterov and not self.momentum:
            raise ConfigError.of(f"{key}.nesterov", True, f"false, or {key}.momentum > 0")

    def optim(self) -> Optim:
        """The optimizer, as a training's recipe has it."""
        return Optim(self.optimizer, self.lr, self.momentum, self.nesterov, weight_decay=self.weight_decay)

    def rate(self, steps: int) -> LearningRate:
        """The learning rate over so many steps."""
        return LearningRate(self.schedule, self.lr, steps, gamma=1.0)


@dataclass
class Tuning(Phase):
    """Training of the kept weights under the final mask."""

    steps: str = "0it"  # 0it: none

    def check(self, key: str) -> None:
        super().check(key)
        Duration.parse(self.steps, f"{key}.steps")


def check_density(density: float) -> None:
    """Raise ConfigError for what is no density."""
    if not 0 < density <= 1:
        raise ConfigError.of("method.density", density, "a fraction of the weights, above 0 and at most 1")


def check_length(text: str, key: str) -> None:
    """Raise ConfigError for what is no time longer than zero."""
    if Duration.parse(text, key) == Duration():
        raise ConfigError.of(key, text, 'a time longer than zero, such as "500it" or "2ep"')
