"""Isolate a study's process, its disk and the user's home from W&B."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from threading import Thread
from typing import TypeVar

from lottery.errors import cause

LOG = logging.getLogger("lottery")
T = TypeVar("T")

# Variables that name a file, without which W&B would not start. A sweep's agent passes the first one to its child
# processes, but removes the file.
NAMED_FILES = ("WANDB_SWEEP_PARAM_PATH", "WANDB_IDENTITY_TOKEN_FILE")


def within(seconds: float, action: Callable[[], T]) -> T:
    """Return or raise the outcome of `action`, run in a thread. TimeoutError after `seconds`; the thread goes on."""
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


def check_room(folder: Path) -> None:
    """Raise OSError where the disk is full, since W&B's service then loses data without an error."""
    probe = folder / ".room"
    try:
        probe.write_bytes(bytes(1 << 16))  # more than the blocks that the service writes
    finally:
        probe.unlink(missing_ok=True)


def end_service(seconds: float) -> None:
    """End W&B's service; kill it if it does not end in `seconds`, because it keeps this process's output open."""
    import wandb
    from wandb.sdk.wandb_setup import singleton  # unlike wandb.setup(), it starts no service

    try:
        service = attrgetter("_connection._proc._process")(singleton())
    except AttributeError:  # no service, or a version of W&B with other attributes
        service = None
    try:
        within(seconds, wandb.teardown)
    except (Exception, SystemExit) as error:  # the service was killed, or hangs; a warning came before
        LOG.debug("W&B: %s", cause(error))
        if service is not None:
            service.kill()


@contextmanager
def process_state(folder: Path) -> Iterator[None]:
    """Make W&B keep its files in `folder` instead of the user's home, and print and report nothing, within the context.

    At the end, restore the environment and the hooks in `sys`, which W&B would wrap again for each study of a process.
    """
    ours = {
        "WANDB_DIR": str(folder.resolve().parent),
        "WANDB_DATA_DIR": str(folder.resolve()),
        "WANDB_CACHE_DIR": str(folder.resolve() / "cache"),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
    }
    before = {name: os.environ.get(name) for name in (*ours, *NAMED_FILES, "WANDB_SERVICE")}
    hooks = sys.exit, sys.excepthook
    os.environ.update(ours)
    for name in NAMED_FILES:
        if (path := os.environ.get(name)) and not os.path.isfile(path):
            LOG.warning("W&B: %s=%s: no such file, recorded without it", name, path)
            del os.environ[name]
    try:
        yield
    finally:
        sys.exit, sys.excepthook = hooks
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
