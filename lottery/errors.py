"""The errors that a user sees: one line each, with the exit status that the command line promises."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


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
        by = f"{signal.Signals(signum).name}{where and ' ' + where}"
        super().__init__(f"interrupted by {by}; the state is saved, the same command continues")


def cause(error: BaseException) -> str:
    """What an exception says, in one line: all of it for our own, the first line and the kind for any other."""
    if isinstance(error, LotteryError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    kind = type(error).__name__
    return f"{kind}: {first}" if first else kind


def nearest(word: str, words: Iterable[str]) -> str:
    """` (did you mean 'train.steps'?)` where one of the words is close to `word`, else nothing."""
    found = closest(word, words)
    return f" (did you mean {found!r}?)" if found else ""


def closest(word: str, words: Iterable[str]) -> str | None:
    """The one of the words that was probably meant, if any is close.

    A dotted key may be meant by its last part alone (`lr`), a name by its beginning (`lenett` for lenet_300_100).
    """
    known = [name for name in words if name != word]
    last = {key.rpartition(".")[2]: key for key in reversed(known)}  # of several with the same end the first stays
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    close = close or [last[name] for name in difflib.get_close_matches(word, last, n=1, cutoff=0.6)]
    if not close and len(word) > 3:
        close = [name for name in known if name.startswith(word[: max(3, len(word) - 2)])]
    return close[0] if close else None
