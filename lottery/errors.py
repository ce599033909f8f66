"""Errors that a user sees: one line each, and the exit status of the command line."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

from lottery.printing import say


class LotteryError(Exception):
    """The run failed for a reason that fits in one line. Exit status 1."""

    exit_status = 1


class ConfigError(LotteryError):
    """The configuration is wrong; nothing was run and nothing written. Exit status 2."""

    exit_status = 2

    @classmethod
    def of(cls, key: str, got: object, expected: str) -> ConfigError:
        """Return an error of the usual form: the key, the value it got, and the values that are allowed."""
        return cls(f"{key}: got {got!r}, expected {expected}")


class Interrupted(LotteryError):
    """A signal stopped the run at a point from which the same command continues. Exit status 128 + signal."""

    def __init__(self, signum: int, where: str = "") -> None:
        self.signum = signum
        self.exit_status = 128 + signum
        by = f"{signal.Signals(signum).name}{where and ' ' + where}"
        super().__init__(f"interrupted by {by}; the state is saved, the same command continues")


def cause(error: BaseException) -> str:
    """Describe an exception in one line: a LotteryError's whole message, type and first line of any other."""
    if isinstance(error, LotteryError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    kind = type(error).__name__
    return f"{kind}: {first}" if first else kind


def reported(work: Callable[[], int], what: str = "") -> int:
    """Run `work`, and return its exit status. Print an exception as one line on stderr, which begins with `what`.

    The traceback of a failed run is in its study.log; HYDRA_FULL_ERROR=1 prints it, too.
    """
    try:
        status = work()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of stdout is gone, as with `| head`: print and flush nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        line, status = cause(error), error.exit_status if isinstance(error, LotteryError) else 1
        if isinstance(error, KeyboardInterrupt):
            line = "interrupted at once; the same command continues from the last saved state"
            status = 128 + signal.SIGINT
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        say(f"lottery: {what and what + ': '}{line}{notes}", error=True)
        return status


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ` (did you mean 'train.steps'?)` where one of the words is close to `word`, else ""."""
    found = closest(word, words)
    return f" (did you mean {found!r}?)" if found else ""


def closest(word: str, words: Iterable[str]) -> str | None:
    """Return the closest of the words, or None where none is close.

    A dotted key is also found by its last part (`lr`), a name by its beginning (`lenett` for lenet_300_100).
    """
    known = [name for name in words if name != word]
    last = {key.rpartition(".")[2]: key for key in reversed(known)}  # the first of several keys with the same last part
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    close = close or [last[name] for name in difflib.get_close_matches(word, last, n=1, cutoff=0.6)]
    if not close and len(word) > 3:
        close = [name for name in known if name.startswith(word[: max(3, len(word) - 2)])]
    return close[0] if close else None
