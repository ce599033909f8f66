"""A study as a SLURM job: run it, and when it was interrupted see to it that the job comes back.

The object is what submitit pickles; everything it needs is in its fields and in files, so that a job which SLURM starts
again by itself continues as well. It imports little: signals are held back until it runs (`held.py`).
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

from lottery.errors import cause
from lottery.launch import scheduler
from lottery.launch.record import Outcome, Sweep
from lottery.run import reported, run
from lottery.training.signals import HANDLED, StopFlag

if TYPE_CHECKING:
    from omegaconf import DictConfig

Compose = Callable[[Sequence[str]], "DictConfig"]
ASK_SECONDS = 20.0  # a controller that is preempting many jobs is slow


@dataclass
class StudyJob:
    """One study of a sweep."""

    sweep: str  # the sweep's folder
    number: int
    overrides: list[str]
    config_dir: str | None
    label: str = ""

    def __call__(self) -> int:
        """Run the study to its end, or to a signal; the process exits with the study's status unless that is 0."""
        from submitit import JobEnvironment

        preempt = JobEnvironment._usr_sig()
        requeue = signal.getsignal(preempt)  # submitit's own handler: it writes the job down, requeues it and exits
        stop, first = StopFlag(), os.environ.get("SLURM_PROCID", "0") == "0"
        stop.install()
        sweep = Sweep.read(Path(self.sweep))
        if first:
            sweep.reopen(self.number)
        outcome = study(self.overrides, self._compose, self.label, stop)
        for signum in {*HANDLED, preempt}:
            signal.signal(signum, signal.SIG_IGN)  # a second one while the job is being requeued would end it
        interrupted = outcome.status >= 128
        if not first:  # of several tasks the first one speaks for all, and must not be ended by another's exit status
            return outcome.status if interrupted else ended(outcome.status)
        if not interrupted:
            sweep.end(self.number, outcome)
        elif comes_back(stop.received, preempt, job_state()) and callable(requeue):
            insist(lambda: requeue(preempt, None))
        return ended(outcome.status)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        from lottery.compose import composed

        cfg = composed(overrides, self.config_dir)
        if cfg.tracker.mode == "auto":  # nodes have no network, and many jobs would ask at once; WANDB_MODE wins
            os.environ.setdefault("WANDB_MODE", "offline")
        return cfg

    def checkpoint(self) -> Any:
        """What submitit runs when the job comes back: the same again. The state is in the stage store."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def study(overrides: Sequence[str], compose: Compose, label: str, stop: StopFlag) -> Outcome:
    """Run one study; how it ended. What it has to say is on stdout, and what went wrong one line on stderr."""
    causes = []

    def work() -> int:
        try:
            return run(compose(overrides), stop)
        except BaseException as error:
            causes.append(cause(error))
            raise

    return Outcome(reported(work, label), causes[0] if causes else "")


def comes_back(received: set[int], preempt: int, state: str | None) -> bool:
    """Whether an interrupted job has to be requeued by itself.

    `state` is what SLURM says of the job, None where it does not answer. While it says RUNNING, nobody has cancelled
    the job (that would be COMPLETING), nor requeued it already: the signal announces a preemption, or the end of the
    time. A job that exits inside the grace time of a preemption has failed, for SLURM, and is not brought back.
    SIGINT (`scancel --signal=INT`) asks for an end.
    """
    if signal.SIGINT in received:
        return False
    return state == "RUNNING" or (state is None and preempt in received)


def job_state() -> str | None:
    """SLURM's word for this job now; None where it cannot be asked."""
    try:
        text = scheduler.told(
            "scontrol", "show", "job", os.environ["SLURM_JOB_ID"], "--oneliner", deadline=time.monotonic() + ASK_SECONDS
        )
        return next(scheduler.parse_lines(text), {}).get("JobState")
    except (scheduler.Silent, KeyError):
        return None


def insist(requeue: Callable[[], None]) -> None:
    """Requeue this job, and do not give up at the first broken connection: a job that is not requeued is lost."""
    for seconds in (1.0, 5.0):
        try:
            return requeue()
        except subprocess.CalledProcessError:  # scontrol has said why, on stderr
            time.sleep(seconds)
    requeue()


def ended(status: int) -> int:
    """0, or the end of the process, so that SLURM too calls a failed study's job FAILED."""
    if status:
        sys.stdout.flush()
        sys.exit(status)
    return status
