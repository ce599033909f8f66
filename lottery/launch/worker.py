"""A worker of the local launcher: one process that runs one study after the other of those that nobody has taken."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lottery.launch.job import study
from lottery.launch.record import Sweep
from lottery.run import stop_on_signals
from lottery.stages.lease import start_time


@dataclass
class Worker:
    """What submitit pickles for the worker's process."""

    sweep: str  # the sweep's folder

    def __call__(self) -> int:
        """Run studies until none is left, or a signal comes. How they ended is in the sweep's outcomes."""
        from lottery.sweep import Composer

        with stop_on_signals() as stop:
            sweep, done = Sweep.read(Path(self.sweep)), 0
            compose, worker = Composer(sweep.config_dir), os.environ["SUBMITIT_LOCAL_JOB_ID"]  # its controller's number
            worker = f"{worker} {start_time(int(worker))}"
            preload()
            for number, job in enumerate(sweep.jobs):
                if stop:
                    break
                if sweep.claim(number, worker):
                    with output_to(sweep.log(number)), threads_given_back():
                        outcome = study(job.overrides, compose, job.label, stop)
                    if outcome.status < 128:
                        sweep.end(number, outcome)
                    done += 1
            return done


def preload() -> None:
    """Import what studies need. Python's search for garbage, which there is none of then, would take a second more.

    What cannot be imported is left to the studies, which say so.
    """
    gc.disable()
    with suppress(Exception):
        import matplotlib.backends.backend_agg  # noqa: F401

        import lottery.study  # noqa: F401
    gc.freeze()
    gc.enable()


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """What this process prints goes to this file, whoever prints it."""
    path.parent.mkdir(exist_ok=True)
    former = os.dup(1), os.dup(2)
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
    _point_at(file, file)
    os.close(file)
    try:
        yield
    finally:
        _point_at(*former)
        for number in former:
            os.close(number)


def _point_at(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


@contextmanager
def threads_given_back() -> Iterator[None]:
    """A study's trainer.threads is not for the next one."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
