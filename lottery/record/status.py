"""The status file of a study in its run folder: its progress, for readers without its terminal. Torch-free to read.

Results never depend on this file, and a study continues where the file cannot be written.
"""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import monotonic

from lottery.errors import Interrupted, LotteryError, cause
from lottery.files import Unreadable, read_json, write_json
from lottery.lease import Holder, start_time
from lottery.record.names import STATUS, STUDY_LOG
from lottery.record.progress import StudyProgress
from lottery.values import record

WRITE_SECONDS = 5.0
LOG_TAIL = 4096  # bytes at the end of the log, searched for its last line


@dataclass(frozen=True)
class Status:
    """The content of the status file."""

    state: str = "running"  # running, done, failed, interrupted
    cause: str | None = None  # why it failed or was interrupted, in one line
    signal: str | None = None  # name of the interrupting signal, such as SIGUSR2
    waiting: str | None = None  # text on the process that computes the next stage, while this one waits for it
    round: int = 0
    control: str | None = None
    copy: int = 0
    step: int = 0  # of the present training, in the steps of the schedule
    steps: int = 0  # last step of the present training; 0 while nothing trains
    trainings_done: int = 0
    trainings: int = 0  # planned; 0 where the method does not say
    seconds_left: float | None = None
    pid: int = 0
    host: str = ""
    kernel: str = ""  # `lease.kernel()`: the system on which `pid` is valid
    started: str = ""  # `lease.start_time()`, since process numbers are reused
    job: str = ""  # SLURM's id, "25_0" in an array; "" outside of SLURM
    restarts: int = 0  # how often SLURM has restarted the job
    updated: float = 0.0  # unix time

    @classmethod
    def read(cls, folder: Path) -> Status | None:
        """Read the status of a run folder; None where it is missing, unreadable or lacks a field."""
        try:
            found = read_json(folder / STATUS)
            return record(cls, found, folder / STATUS) if found.keys() >= {each.name for each in fields(cls)} else None
        except Unreadable:
            return None

    @property
    def done(self) -> bool:
        """Whether the study has done all its rounds."""
        return self.state == "done"

    def fail(self, folder: Path, error: LotteryError) -> None:
        """Write that the study has failed, keeping its progress. For an error before the study was opened again."""
        _write(folder, replace(
            self, state="failed", cause=cause(error), signal=None, restarts=Holder.this_process().restarts,
            updated=time.time(),
        ))  # fmt: skip

    def same_process(self, other: Status) -> bool:
        """Whether one process wrote both statuses."""
        return (self.host, self.kernel, self.pid, self.started) == (other.host, other.kernel, other.pid, other.started)

    def alive(self, here: str) -> bool | None:
        """Whether the writing process still runs; None where that is unknown. here: `lease.kernel()` of the caller."""
        return start_time(self.pid) == self.started if self.kernel and self.kernel == here else None


def _write(folder: Path, status: Status) -> None:
    """Write the status file; errors are ignored, so that a full or absent disk does not stop the study."""
    with suppress(OSError, LotteryError):
        write_json(folder / STATUS, asdict(status))


def finished(run: Path, by_log: bool = True) -> bool:
    """Whether the study of a run folder has done all its rounds, according to its status.

    by_log: read the last line of the log if there is no status (older versions), instead of returning False.
    """
    if (status := Status.read(run)) is not None or not by_log:
        return status is not None and status.done
    try:
        with (run / STUDY_LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
            last = log.read().rstrip().rpartition(b"\n")[2]
    except OSError:
        return False
    return re.match(rb"\S+ \S+  done: ", last) is not None


def job_id() -> str:
    """Return the SLURM id of this process's job, as `squeue` shows it; "" outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def duration(seconds: float) -> str:
    """Format seconds as text such as 12s, 3m05s, 2h10m, 3d04h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class StatusFile:
    """Writer of the status file: at the start, at every change, and every few seconds while something trains."""

    def __init__(self, progress: StudyProgress) -> None:
        self.progress = progress
        self._folder: Path | None = None
        self._written = 0.0  # monotonic
        self._process = Holder.this_process()

    def open(self, folder: Path) -> None:
        """Write the first status. Called when the study begins."""
        self._folder = folder
        self.write()

    def tick(self) -> None:
        """Write the status if WRITE_SECONDS have passed since the last write."""
        if monotonic() - self._written >= WRITE_SECONDS:
            self.write()

    def end(self, error: BaseException | None = None, folder: Path | None = None) -> None:
        """Write the final status: done, or ended by `error`. folder: needed where `open` was never called."""
        self._folder = self._folder or folder
        if isinstance(error, SystemExit):  # Lightning raises it for a KeyboardInterrupt
            error = error.__context__ or error
        if isinstance(error, KeyboardInterrupt):
            error = Interrupted(signal.SIGINT)
        self.progress.waiting = None
        if error is None:
            self.progress.at(*self.progress.latest)
            self.write("done")
        elif self._taken_over():
            return
        elif isinstance(error, Interrupted):
            line = cause(error).partition("; the state is saved")[0]
            self.write("interrupted", line, signal.Signals(error.signum).name)
        else:
            self.write("failed", cause(error))

    def write(self, state: str = "running", cause: str | None = None, signal: str | None = None) -> None:
        """Write the status now."""
        if self._folder is not None:
            self._written = monotonic()
            _write(self._folder, self._status(state, cause, signal))

    def _status(self, state: str = "running", cause: str | None = None, signal: str | None = None) -> Status:
        now, process, shown = self.progress, self._process, self.progress.shown
        left = now.seconds_left if state == "running" else None
        return Status(
            state=state, cause=cause, signal=signal, waiting=now.waiting,
            round=now.round if shown.round is None else shown.round, control=shown.control, copy=shown.copy,
            step=shown.step, steps=shown.steps,
            trainings_done=now.finished_trainings, trainings=now.trainings,
            seconds_left=None if left is None else round(left, 1),
            pid=process.pid, host=process.host, kernel=process.kernel, started=process.started,
            job=job_id(), restarts=process.restarts, updated=time.time(),
        )  # fmt: skip

    def _taken_over(self) -> bool:
        """Whether another process runs this study now, or has finished it; its status then must not be overwritten."""
        found = Status.read(self._folder) if self._folder else None
        if found is None or found.same_process(self._status()):
            return False
        return found.done or (found.state == "running" and found.alive(self._process.kernel) is not False)
