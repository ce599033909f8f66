"""A worker of the local launcher: one process that runs one study after the other, until all are claimed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lottery.imports import uncollected
from lottery.launch.job import study
from lottery.launch.record import Process, Sweep
from lottery.signals import stop_on_signals


@dataclass
class Worker:
    """The callable that submitit pickles for the worker's process."""

    sweep: str  # the sweep's folder

    def __call__(self) -> None:
        """Run studies until none is left, or a signal comes, and record their outcomes in the sweep."""
        from lottery.combine import Composer

        with stop_on_signals() as stop:
            sweep = Sweep.read(Path(self.sweep))
            compose = Composer(sweep.config_dir)
            worker = [Process.of(int(os.environ["SUBMITIT_LOCAL_JOB_ID"])), Process.of(os.getpid())]
            for number, job in enumerate(sweep.jobs):
                if not stop and sweep.claim(number, worker):
                    with output_to(sweep.log(number)):
                        outcome = study(job.overrides, compose, job.label, stop, preload)
                    restore_threads()
                    if outcome.status < 128:
                        sweep.end(number, outcome)


def preload() -> None:
    """Import the modules of studies, unless an earlier study needed them. Studies report import errors."""
    if "lottery.study" in sys.modules:
        return
    with uncollected(), suppress(Exception):
        import matplotlib.backends.backend_agg  # noqa: F401

        import lottery.study  # noqa: F401


def restore_threads() -> None:
    """Set torch's own choice of threads again: a study's trainer.threads must not affect the next study."""
    if "lottery.study" in sys.modules:
        import torch

        from lottery.ranks.alone import OWN_THREADS

        torch.set_num_threads(OWN_THREADS)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append the output of this process and of its children to a file, within the context."""
    path.parent.mkdir(exist_ok=True)
    former = os.dup(1), os.dup(2)
    try:
        with path.open("ab") as file:
            _redirect(file.fileno(), file.fileno())
        yield
    finally:
        _redirect(*former)
        for number in former:
            os.close(number)


def _redirect(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)
