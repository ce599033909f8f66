"""Durations such as "500it", "2ep" or "160ep50it", and their conversion to optimizer steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lottery.errors import ConfigError

_PATTERN = re.compile(r"(?:(?P<epochs>\d+)ep)?(?:(?P<steps>\d+)it)?")


@dataclass(frozen=True)
class Duration:
    """A number of epochs plus a number of optimizer steps, both ≥ 0."""

    epochs: int = 0
    steps: int = 0

    @classmethod
    def parse(cls, text: str | int, key: str = "duration") -> Duration:
        """Read "500it", "2ep", "160ep50it" or "init" (zero). key: the option, for the error."""
        if text == "init":
            return cls()
        match = _PATTERN.fullmatch(str(text)) if text != "" else None
        if match is None:
            raise ConfigError.of(key, text, 'a time such as "500it", "2ep", "160ep50it" or "init"')
        return cls(int(match["epochs"] or 0), int(match["steps"] or 0))

    def resolve(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps, given the steps of one epoch."""
        return self.epochs * steps_per_epoch + self.steps

    def __str__(self) -> str:
        epochs = f"{self.epochs}ep" if self.epochs else ""
        return epochs + (f"{self.steps}it" if self.steps or not epochs else "")
