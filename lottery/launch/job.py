"""Run a study as a SLURM job, and requeue the job when the study was interrupted.

submitit pickles the `StudyJob`. All its state is in its fields and in files, so that a job restarted by SLURM itself
continues as well. This module imports little, since signals are blocked until the job runs (`blocked.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.errors import cause, reported
from lottery.launch import scheduler
from lottery.launch.record import Outcome, Sweep
from lottery.runner import run_composed
from lottery.signals import HANDLED, StopFlag

if TYPE_CHECKING:
    from omegaconf import DictConfig

Compose = Callable[[Sequence[str]], "DictConfig"]
ASK_SECONDS = 20.0  # a controller busy with many preemptions is slow


@dataclass
class StudyJob:
    """One study of a sweep, as the callable that submitit pickles."""

    sweep: str  # the sweep's folder
    number: int
    overrides: list[str]
    config_dir: str | None
    label: str = ""

    def __call__(self) -> int:
        """Run the study until it ends or a signal comes, and exit with its status unless that is 0.

        So SLURM also reports the job of a failed study as FAILED. Of several tasks only the first records the outcome;
        another task returns normally after an interrupt, since its exit status would end the first one.
        """
        from submitit import JobEnvironment

        preempt = JobEnvironment._usr_sig()
        requeue = signal.getsignal(preempt)  # submitit's handler: it saves the job, requeues it and exits
        stop, first = StopFlag(), os.environ.get("SLURM_PROCID", "0") == "0"
        stop.install()
        sweep = Sweep.read(Path(self.sweep))
        if first:
            sweep.reopen(self.number)
        outcome = study(self.overrides, self._compose, self.label, stop)
        for signum in {*HANDLED, preempt}:
            signal.signal(signum, signal.SIG_IGN)  # a second signal during the requeue would end the job
        interrupted = outcome.status >= 128
        if first and not interrupted:
            sweep.end(self.number, outcome)
        elif first and comes_back(stop.received, preempt, job_state()) and callable(requeue):
            insist(lambda: requeue(preempt, None))
        if outcome.status and (first or not interrupted):
            sys.stdout.flush()
            sys.exit(outcome.status)
        return outcome.status

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        from lottery.compose import composed

        cfg = composed(overrides, self.config_dir)
        if cfg.tracker.mode == "auto":  # nodes have no network, and many jobs would connect at once; WANDB_MODE wins
            os.environ.setdefault("WANDB_MODE", "offline")
        return cfg

    def checkpoint(self) -> Any:
        """Return this job for submitit to run again after a requeue. The state is in the stage store."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def study(
    overrides: Sequence[str],
    compose: Compose,
    label: str,
    stop: StopFlag,
    begins: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run one study and return its outcome. It prints to stdout, and one line to stderr on an error.

    begins: see `lottery.runner.run_composed`.
    """
    causes = []

    def work() -> int:
        try:
            return run_composed(compose(overrides), stop, begins)
        except BaseException as error:
            causes.append(cause(error))
            raise

    return Outcome(reported(work, label), causes[0] if causes else "")


def comes_back(received: set[int], preempt: int, state: str | None) -> bool:
    """Whether an interrupted job has to requeue itself. Never after SIGINT (`scancel --signal=INT`), which ends it.

    state: SLURM's state of the job; None where SLURM does not answer. RUNNING means that the job was neither cancelled
    (then COMPLETING) nor already requeued, so the signal announces a preemption or the time limit. SLURM counts a job
    that exits within the grace time of a preemption as failed, and does not requeue it.
    """
    if signal.SIGINT in received:
        return False
    return state == "RUNNING" or (state is None and preempt in received)


def job_state() -> str | None:
    """Return SLURM's present state of this job; None where SLURM does not answer, and outside of a job."""
    try:
        words = ("scontrol", "show", "job", os.environ["SLURM_JOB_ID"], "--oneliner")
        text = scheduler.output_of(*words, deadline=time.monotonic() + ASK_SECONDS)
        return next(scheduler.parse_lines(text), {}).get("JobState")
    except (scheduler.Silent, KeyError):
        return None


def insist(requeue: Callable[[], None]) -> None:
    """Requeue this job, in up to three attempts, since a job that is not requeued is lost."""
    for seconds in (1.0, 5.0):
        try:
            return requeue()
        except subprocess.CalledProcessError:  # scontrol has printed why on stderr
            time.sleep(seconds)
    requeue()
