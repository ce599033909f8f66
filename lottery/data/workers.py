"""Worker processes that read images: a lost one is an error at once, where torch might wait for ever."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lottery.errors import LotteryError, cause

SHM = Path("/dev/shm")  # memory shared between processes, by torch and Python


def send_errors(worker: int) -> None:
    """Make a worker report a batch that it cannot send. Python would print a traceback, and the reader would wait."""

    def send_error(queue: Queue[Any], error: Exception, item: Any) -> None:
        if not isinstance(item, tuple):  # the pipe itself is broken
            os._exit(1)
        queue.put((item[0], lost(error)))  # item: (number of the batch, batch)

    Queue._on_queue_feeder_error = send_error  # type: ignore[attr-defined]


def no_worker_lost(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the loader's batches. Raises LotteryError where its worker processes cannot be started, or one dies."""
    with explained(loader.num_workers), former_child_handler():
        if loader.num_workers:
            multiprocessing.Lock()  # fails early if SHM does: torch's half-built iterator would complain when collected
        batches = iter(loader)
    while True:
        with explained(loader.num_workers):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def explained(workers: int) -> Iterator[None]:
    """Turn torch's and the system's errors about worker processes into a one-line LotteryError with the remedy."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not workers or "in DataLoader worker process" in str(error):  # an error of the code that reads the images
            raise
        raise lost(error) from error


def lost(error: Exception) -> LotteryError:
    """Return the error for a worker process that is lost, or cannot hand over a batch."""
    try:
        usage = shutil.disk_usage(SHM)
        room = f"{SHM} has {usage.free / 2**20:,.0f} of {usage.total / 2**20:,.0f} MB free"
    except OSError:
        room = f"{SHM} is missing"
    return LotteryError(
        f"data.workers: a process that reads images was lost ({cause(error)}); {room}; use data.workers=0, a larger "
        f"{SHM} (docker: --shm-size), or `ulimit -n 4096` where too many files are open"
    )


@contextmanager
def former_child_handler() -> Iterator[None]:
    """Keep the handler of SIGCHLD: torch's raises amid a training step, and dead workers are noticed without it."""
    if threading.current_thread() is not threading.main_thread():  # torch installs none in other threads
        yield
        return
    former = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if former is not None:  # None: it was not installed by Python
            signal.signal(signal.SIGCHLD, former)
