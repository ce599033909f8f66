"""What W&B may not do to a study's process, its disk and its user's home: its traces are undone."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

from lottery.errors import cause
from lottery.tracking.guard import within

LOG = logging.getLogger("lottery")


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
    """W&B keeps its files in `folder`, its wandb/, and out of the user's home, prints and reports nothing of its own.

    At the end the environment is as before, and so are the hooks that W&B wraps anew for each study of a process.
    """
    ours = {
        "WANDB_DIR": str(folder.resolve().parent),
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
