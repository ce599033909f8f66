"""Run folders and sweeps as they are now: what their files say, put beside what the scheduler and the processes say.

Reads a few hundred bytes a study, and asks the scheduler once for all of them. Torch-free.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lottery.errors import ConfigError, LotteryError, nearest
from lottery.launch import record, scheduler
from lottery.launch.record import SWEEPS, Outcome
from lottery.launch.scheduler import Answer, Job
from lottery.launch.verdict import verdict
from lottery.stages.lease import kernel
from lottery.tracking.status import Status, duration

SILENT_SECONDS = 600.0  # without news of a process that cannot be looked at
TAIL_BYTES = 64 * 1024  # of rounds.jsonl: the last ticket stands before its controls
KEY = re.compile(r"[0-9a-f]{12}")  # a run folder's name


@dataclass
class Study:
    """One run folder, and the job that a sweep has made for it."""

    label: str
    folder: Path
    planned: record.Job | None = None  # the sweep's
    executor: str = ""  # of the sweep: slurm or local
    outcome: Outcome | None = None  # what the sweep says of its end
    launching: bool | None = None  # of a local sweep: whether the process that starts its workers runs; None: unknown
    taken: float = 0.0  # of a local sweep: when a worker took the study, unix time; 0: none has yet
    recorded: Status | None = None
    row: dict[str, Any] = field(default_factory=dict)  # the latest ticket's line of rounds.jsonl
    state: str = "unknown"
    detail: str = ""
    restarts: int = 0

    def read(self) -> None:
        """What the run folder says."""
        self.recorded = Status.read(self.folder)
        self.row = latest_ticket(self.folder)

    @property
    def job(self) -> str:
        """The scheduler's id; "" outside of SLURM."""
        if self.planned is not None and self.planned.job and self.executor == "slurm":
            return self.planned.job
        return self.recorded.job if self.recorded else ""

    @property
    def ids(self) -> set[str]:
        """The jobs to ask SLURM after: none, once the study is done."""
        if self.recorded is not None and self.recorded.state == "done":
            return set()
        return {id for id in (self.job, self.recorded.job if self.recorded else "") if id}

    def judge(self, answer: Answer, here: str) -> None:
        """Put the state together; `here` is this machine's `lease.kernel()`."""
        recorded = self.recorded
        alive = recorded.alive(here) if recorded is not None and recorded.state == "running" else None
        id, job, gone = self._local_job() if self.executor == "local" else self._slurm_job(answer)
        self.state, self.detail = verdict(recorded, id, job, gone, alive, self.outcome)
        self.restarts = max(job.restarts if job else 0, recorded.restarts if recorded else 0)
        if self.state == "running" and recorded is not None and alive is None and not (job and job.live):
            silent = time.time() - recorded.updated
            if silent > SILENT_SECONDS:
                self.detail = f"no news from {recorded.host} for {duration(silent)}"

    def _slurm_job(self, answer: Answer) -> tuple[str, Job | None, bool]:
        """The job that matters: the sweep's while it lives, else the one that wrote the record."""
        planned, own = self.job, self.recorded.job if self.recorded else ""
        job = answer.jobs.get(planned)
        id = own if own and not (job and job.live) else planned
        job = answer.jobs.get(id)
        return id, job, bool(id) and answer.complete and not (job and job.live)

    def _local_job(self) -> tuple[str, Job | None, bool]:
        """A local sweep as a scheduler would tell of it: its studies wait for a worker, or one has just taken them."""
        state = None
        if self.launching and self.outcome is None and not self.taken:
            state = "PENDING"
        elif self.launching and self.outcome is None and not (self.recorded and self.recorded.updated > self.taken):
            state = "RUNNING"
        return "local", Job("local", state) if state else None, self.launching is False and state is None

    def as_json(self) -> dict[str, Any]:
        """For scripts: plain values; null for what is not known."""
        recorded = self.recorded or Status(state="unknown")
        told = {
            name: getattr(recorded, name) if self.recorded else None
            for name in ("round", "control", "copy", "step", "steps", "trainings_done", "trainings", "seconds_left",
                         "signal", "host", "pid", "updated")
        }  # fmt: skip
        return {
            "label": self.label, "folder": str(self.folder), "state": self.state, "detail": self.detail or None, **told,
            "job": self.job or None, "restarts": self.restarts,
            "log": (self.planned.log if self.planned else "") or None,
            "overrides": self.planned.overrides if self.planned else [], "density": self.row.get("density"),
            "last_round": self.row.get("round"), "test_accuracy": self.row.get("test_accuracy"),
        }  # fmt: skip


@dataclass
class Sweep:
    """The studies that were launched together."""

    name: str
    executor: str
    command: Sequence[str]
    studies: list[Study]

    @classmethod
    def read(cls, folder: Path, runs: Path) -> Sweep:
        """Raises LotteryError where sweep.json is damaged."""
        found = record.Sweep.read(folder)
        studies = [
            Study(job.label or f"study {number}", runs / job.folder, job, found.executor)
            for number, job in enumerate(found.jobs)
        ]
        for number in found.ended() & set(range(len(studies))):
            studies[number].outcome = found.outcome(number)
        if found.executor == "local":
            taken = claims(folder)
            for number, study in enumerate(studies):
                study.taken = taken.get(number, 0.0)
                study.launching = record.running(found.jobs[number]) if found.kernel == kernel() else None
        return cls(folder.name, found.executor, found.command, studies)


def claims(folder: Path) -> dict[int, float]:
    """When the workers of a local sweep took its studies: number of the study -> unix time."""
    with suppress(OSError):
        return {int(Path(entry).stem): entry.stat().st_mtime for entry in os.scandir(folder / "claims")}
    return {}


def latest_ticket(folder: Path) -> dict[str, Any]:
    """The last complete line of rounds.jsonl that is no control's; empty where there is none."""
    with suppress(OSError), (folder / "rounds.jsonl").open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        for line in reversed(file.read().split(b"\n")[:-1]):
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("control") is None:
                    return row
    return {}


def run_folders(runs: Path) -> Iterator[Path]:
    """Every `<runs>/<name>/<study key>`."""
    for name in sorted(path for path in runs.iterdir() if path.name[0] != "." and path.is_dir()):
        with suppress(OSError):
            yield from (name / entry.name for entry in os.scandir(name) if KEY.fullmatch(entry.name))


def all_studies(runs: Path) -> list[Study]:
    """All run folders, newest first."""
    studies = [Study(f"{path.parent.name}/{path.name}", path) for path in run_folders(runs)]
    for study in studies:
        study.read()
    return sorted(studies, key=newness, reverse=True)


def newness(study: Study) -> float:
    """When a study was last heard of, unix time."""
    with suppress(OSError):
        return study.recorded.updated if study.recorded else (study.folder / "rounds").stat().st_mtime
    return 0.0


def all_sweeps(runs: Path) -> tuple[list[Sweep], list[str]]:
    """Newest first (their names are times); and a line for each that is damaged."""
    sweeps, damaged = [], []
    for name in reversed(sweep_names(runs)):
        try:
            sweeps.append(Sweep.read(runs / SWEEPS / name, runs))
        except LotteryError as error:
            damaged.append(str(error))
    return sweeps, damaged


def sweep_names(runs: Path) -> list[str]:
    """Oldest first."""
    return sorted(path.parent.name for path in (runs / SWEEPS).glob("*/sweep.json"))


def find_sweep(runs: Path, name: str) -> Sweep:
    """The sweep of this name, or the latest. Raises ConfigError where there is none, LotteryError for a damaged one."""
    names = sweep_names(runs)
    if not names:
        raise ConfigError(f"no sweep in {runs / SWEEPS}; --runs DIR looks in another folder than {runs}")
    if name == "latest":
        name = names[-1]
    if name not in names:
        raise ConfigError(f"{name}: no such sweep in {runs / SWEEPS}{nearest(name, names)}; the latest is {names[-1]}")
    return Sweep.read(runs / SWEEPS / name, runs)


def judge(studies: Iterable[Study]) -> str:
    """Ask the scheduler, once, and judge every study; why the scheduler did not answer, "" if it did."""
    studies = list(studies)
    answer = scheduler.ask(sorted({id for study in studies for id in study.ids}))
    here = kernel()
    for study in studies:
        study.judge(answer, here)
    return answer.problem
