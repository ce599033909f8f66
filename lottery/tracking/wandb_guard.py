"""What keeps W&B from harming a study: a failure or a hang is told once, and its traces in the process are undone."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import wraps
from operator import attrgetter
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, TypeVar

LOG = logging.getLogger("lottery")
T = TypeVar("T")


class Mirror(Protocol):
    """What `harmless` needs to know of an object whose methods it guards."""

    lost: bool
    patience: float  # seconds after which a call counts as hung
    folder: Path  # where the results are in any case


def harmless(method: Callable[..., None]) -> Callable[..., None]:
    """What a mirror's method raises, or that it hangs, is told once; after that the mirror does nothing.

    The method runs in a thread of its own: a service that is stopped, or waits for a disk, blocks whoever calls it.
    """

    @wraps(method)
    def guarded(self: Mirror, *args: Any) -> None:
        if self.lost:
            return
        try:
            within(self.patience, lambda: method(self, *args))
        except (Exception, SystemExit) as error:
            self.lost = True
            LOG.warning(
                "W&B failed (%s): the study goes on without it, all results are in %s", cause(error), self.folder
            )

    return guarded


def within(seconds: float, action: Callable[[], T]) -> T:
    """What `action` returns or raises; TimeoutError, and the action left to itself, when it takes longer."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # SystemExit too: it must reach the caller, not end this thread unseen
            outcome.set_exception(error)

    thread = Thread(target=work, daemon=True, name="lottery-wandb")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")
    return outcome.result()


def cause(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def check_room(folder: Path) -> None:
    """OSError where the disk is full: W&B's service loses what it cannot write there without a word."""
    probe = folder / ".room"
    try:
        probe.write_bytes(bytes(1 << 16))  # more than the blocks that the service writes
    finally:
        probe.unlink(missing_ok=True)


def end_service(seconds: float) -> None:
    """End W&B's service process; by force if it does not answer, because it holds this process's output open."""
    import wandb
    from wandb.sdk.wandb_setup import singleton  # unlike wandb.setup(), it starts nothing

    try:
        service = attrgetter("_connection._proc._process")(singleton())
    except AttributeError:  # there is none, or another version of W&B keeps it elsewhere
        service = None
    try:
        within(seconds, wandb.teardown)
    except (Exception, SystemExit) as error:  # of a service that was killed, or hangs: told before
        LOG.debug("W&B: %s", cause(error))
        if service is not None:
            service.kill()


@contextmanager
def process_state(folder: Path) -> Iterator[None]:
    """W&B keeps its files in `folder` and out of the user's home, prints nothing, and reports nothing about itself.

    At the end the environment is as before, and so are the hooks that W&B wraps anew for each study of a process.
    """
    ours = {
        "WANDB_DATA_DIR": str(folder.resolve()),
        "WANDB_CACHE_DIR": str(folder.resolve() / "cache"),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
    }
    before = {name: os.environ.get(name) for name in (*ours, "WANDB_SERVICE")}
    hooks = sys.exit, sys.excepthook
    os.environ.update(ours)
    try:
        yield
    finally:
        sys.exit, sys.excepthook = hooks
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
