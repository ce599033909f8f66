"""`status.json` of a run folder: how far the study is, for those who do not see its terminal. Torch-free to read.

It is a notice, not a record: results never depend on it, and a study goes on when it cannot be written.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from lottery.errors import Interrupted, LotteryError, cause
from lottery.files import write_json
from lottery.stages.lease import Holder, start_time

if TYPE_CHECKING:
    from lottery.ticket import Ticket

NAME = "status.json"
WRITE_SECONDS = 5.0


@dataclass(frozen=True)
class Status:
    """The content of `status.json`."""

    state: str = "running"  # running, done, failed, interrupted
    cause: str | None = None  # why it failed or was interrupted, in one line
    signal: str | None = None  # by which it was interrupted, such as SIGUSR2
    waiting: str | None = None  # for whom, while somebody else computes what the study needs next
    round: int = 0
    control: str | None = None
    copy: int = 0
    step: int = 0  # of the present training: absolute, as the schedule counts
    steps: int = 0  # where it ends; 0 while nothing trains
    trainings_done: int = 0
    trainings: int = 0  # planned; 0 where the method does not say
    seconds_left: float | None = None
    pid: int = 0
    host: str = ""
    kernel: str = ""  # `lease.kernel()`: where the process number means something
    started: str = ""  # `lease.start_time()`: process numbers are used again
    job: str = ""  # SLURM's id, "25_0" in an array; "" outside of SLURM
    restarts: int = 0  # how often SLURM has started that job again
    updated: float = 0.0  # unix time

    @classmethod
    def read(cls, folder: Path) -> Status | None:
        """What a run folder says; None where it says nothing that can be understood."""
        try:
            found = json.loads((folder / NAME).read_bytes())
            return cls(**{field.name: _checked(found[field.name], str(field.type)) for field in fields(cls)})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def same_process(self, other: Status) -> bool:
        return (self.host, self.kernel, self.pid, self.started) == (other.host, other.kernel, other.pid, other.started)

    def alive(self, here: str) -> bool | None:
        """Whether its process runs; None where that cannot be told. `here` is `lease.kernel()` of who asks."""
        return start_time(self.pid) == self.started if self.kernel and self.kernel == here else None


def _checked(value: Any, kind: str) -> Any:
    """A value read, of the type that its field is annotated with; TypeError where it is of another."""
    if (value is None and "None" in kind) or isinstance(value, str if "str" in kind else int | float):
        return value
    raise TypeError(f"got {value!r}, expected {kind}")


def job_id() -> str:
    """SLURM's id of the job that this process is part of, as `squeue` shows it; "" outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def duration(seconds: float) -> str:
    """Such as 12s, 3m05s, 2h10m, 3d04h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Progress:
    """Where a study is, and an estimate of the time that it will still take."""

    def __init__(self, trainings: int = 0) -> None:
        self.trainings = trainings  # planned; 0 = unknown
        self.done = 0
        self.round = self.copy = 0
        self.control: str | None = None
        self.step = self.steps = 0  # of the present training: see Status
        self.share = 0.0  # of it
        self.latest: tuple[int, str | None, int] = (0, None, 0)  # finished
        self.waiting: str | None = None
        self._fresh: list[float] = []  # wall seconds of the trainings that were not cached
        self._began = monotonic()
        self._first: tuple[float, float] | None = None  # time and share at the present training's first tick

    def at(self, round: int, control: str | None = None, copy: int = 0) -> None:
        """The next training is that of this round and control."""
        self.round, self.control, self.copy = round, control, copy
        self._nothing_trains()

    @property
    def where(self) -> str:
        """Such as `round 2 reinit 0`."""
        return f"round {self.round}" + (f" {self.control} {self.copy}" if self.control else "")

    def tick(self, ticket: Ticket, step: int) -> None:
        """The present training has come to `step`."""
        if self.waiting:  # that time was no training
            self.waiting, self._began = None, monotonic()
        self.step, self.steps = step, ticket.step + ticket.steps
        self.share = (step - ticket.step) / max(1, ticket.steps)
        self._first = self._first or (monotonic(), self.share)

    def finished(self, cached: bool) -> None:
        """A training is done, or was found."""
        self.done += 1
        self.latest = self.round, self.control, self.copy
        if not cached:
            self._fresh.append(monotonic() - self._began)
        self.waiting, self._began = None, monotonic()
        self._nothing_trains()

    def _nothing_trains(self) -> None:
        self.step, self.steps, self.share, self._first = 0, 0, 0.0, None

    @property
    def seconds_left(self) -> float | None:
        """For the rest of the present training, and those after it; None while nothing is known.

        From the mean of the trainings so far. During the first one from its pace since its first tick, which need not
        be its first step: an interrupted training continues in the middle.
        """
        mean = sum(self._fresh) / len(self._fresh) if self._fresh else self._pace()
        if not self.trainings or mean is None:
            return None
        return mean * (max(1 - self.share, 0) + max(self.trainings - self.done - 1, 0))

    def _pace(self) -> float | None:
        """Seconds for a whole training, from the share done since the first tick."""
        if self._first is None or self.share <= self._first[1]:
            return None
        return (monotonic() - self._first[0]) / (self.share - self._first[1])


class StatusFile:
    """Writes `status.json`: at the start, at every change, and every few seconds while something trains."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._folder: Path | None = None
        self._written = 0.0  # monotonic
        self._process = Holder.this_process()

    def open(self, folder: Path) -> None:
        """The study has begun."""
        self._folder = folder
        self.write()

    def tick(self) -> None:
        """Write if it is time."""
        if monotonic() - self._written >= WRITE_SECONDS:
            self.write()

    def end(self, error: BaseException | None = None, folder: Path | None = None) -> None:
        """The study is over: done, or by this error; `folder` where it ended before it was opened."""
        self._folder = self._folder or folder
        if isinstance(error, SystemExit):  # what Lightning makes of a KeyboardInterrupt
            error = error.__context__ or error
        if isinstance(error, KeyboardInterrupt):
            error = Interrupted(signal.SIGINT)
        self.progress.waiting = None
        if error is None:
            self.progress.at(*self.progress.latest)
            self.write("done")
        elif not self._taken_over():
            interrupted = isinstance(error, Interrupted)
            by = signal.Signals(error.signum).name if isinstance(error, Interrupted) else None
            line = cause(error).partition("; the state is saved")[0] if interrupted else cause(error)
            self.write("interrupted" if interrupted else "failed", line, by)

    def write(self, state: str = "running", cause: str | None = None, signal: str | None = None) -> None:
        """Write now. A disk that is full or away costs the notice, never the study."""
        if self._folder is None:
            return
        self._written = monotonic()
        with suppress(OSError, LotteryError):
            write_json(self._folder / NAME, asdict(self._status(state, cause, signal)))

    def _status(self, state: str, cause: str | None, signal: str | None) -> Status:
        now, process = self.progress, self._process
        left = now.seconds_left if state == "running" else None
        return Status(
            state=state, cause=cause, signal=signal, waiting=now.waiting,
            round=now.round, control=now.control, copy=now.copy, step=now.step, steps=now.steps,
            trainings_done=now.done, trainings=now.trainings, seconds_left=None if left is None else round(left, 1),
            pid=process.pid, host=process.host, kernel=process.kernel, started=process.started,
            job=job_id(), restarts=process.restarts, updated=time.time(),
        )  # fmt: skip

    def _taken_over(self) -> bool:
        """Whether another process runs this study now, or has finished it: what ended us is no news of the study."""
        found = Status.read(self._folder) if self._folder else None
        if found is None or found.same_process(self._status("running", None, None)):
            return False
        return found.state == "done" or (found.state == "running" and found.alive(self._process.kernel) is not False)
