"""The errors that a user sees: one line each, with the exit status that the command line promises."""

from __future__ import annotations

import signal


class LotteryError(Exception):
    """The run failed for a reason that one line can name. Exit status 1."""

    exit_status = 1


class ConfigError(LotteryError):
    """The configuration is wrong; nothing was run and nothing written. Exit status 2."""

    exit_status = 2

    @classmethod
    def of(cls, key: str, got: object, expected: str) -> ConfigError:
        """The usual form: which key, what it got, what it may be."""
        return cls(f"{key}: got {got!r}, expected {expected}")


class Interrupted(LotteryError):
    """A signal stopped the run at a point from which the same command continues. Exit status 128 + signal."""

    def __init__(self, signum: int, where: str = "") -> None:
        self.signum = signum
        self.exit_status = 128 + signum
        name = signal.Signals(signum).name
        super().__init__(f"interrupted by {name}{where and ' ' + where}; the state is saved, the same command continues")
