"""What keeps a mirror of the results from harming a study: a failure or a hang is told once, then it is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, TypeVar

from lottery.errors import cause

LOG = logging.getLogger("lottery")
T = TypeVar("T")


class Guarded(Protocol):
    """What `harmless` needs to know of an object whose methods it guards."""

    lost: bool
    patience: float  # seconds after which a call counts as hung
    folder: Path  # where the results are in any case

    @property
    def label(self) -> str:
        """What a warning calls it."""


def harmless(method: Callable[..., None]) -> Callable[..., None]:
    """What a mirror's method raises, or that it hangs, is told once; after that the mirror does nothing.

    The method runs in a thread of its own: a service that is stopped, or waits for a disk, blocks whoever calls it.
    """

    @wraps(method)
    def guarded(self: Guarded, *args: Any) -> None:
        if self.lost:
            return
        try:
            within(self.patience, lambda: method(self, *args))
        except (Exception, SystemExit) as error:
            self.lost = True
            what = f"{self.label} failed ({cause(error)})"
            LOG.warning("%s: the study goes on without it, all results are in %s", what, self.folder)

    return guarded


def within(seconds: float, action: Callable[[], T]) -> T:
    """What `action` returns or raises; TimeoutError, and the action left to itself, when it takes longer."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # SystemExit too: it must reach the caller, not end this thread unseen
            outcome.set_exception(error)

    thread = Thread(target=work, daemon=True, name="lottery-mirror")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")
    return outcome.result()
