"""Determine the states of studies from their run folders, the scheduler and running processes. Torch-free.

Reads a few hundred bytes a study, and queries the scheduler once for all studies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lottery.launch import scheduler
from lottery.launch.record import Outcome, Sweep, SweepStudy
from lottery.launch.scheduler import Answer, Job
from lottery.lease import kernel
from lottery.record.folders import keyed_folders
from lottery.record.names import ROUNDS
from lottery.record.run import Run
from lottery.record.status import Status, duration

# In the order of a summary: problems first.
STATES = (
    "failed", "killed", "gone", "cancelled", "interrupted", "running", "waiting", "starting", "queued",
    "unknown", "done",
)  # fmt: skip
SILENT_SECONDS = 600.0  # age of a status after which an unreachable process counts as silent
TOLD = (
    "round", "control", "copy", "step", "steps", "trainings_done", "trainings", "seconds_left", "signal", "host", "pid",
    "updated",
)  # fmt: skip


@dataclass
class StudyStatus:
    """One run folder, and the job that a sweep created for it. `look` sets the last five fields."""

    label: str
    folder: Path
    planned: SweepStudy | None = None  # None outside of a sweep
    executor: str = ""  # of the sweep: slurm or local
    outcome: Outcome | None = None  # recorded in the sweep
    launching: bool | None = None  # local sweep: whether any of its processes runs; None: unknown
    taken: float = 0.0  # local sweep: when a worker claimed the study, unix time; 0: not yet
    recorded: Status | None = None
    row: dict[str, Any] = field(default_factory=dict)  # the latest ticket's
    state: str = "unknown"  # one of STATES
    detail: str = ""
    restarts: int = 0

    @property
    def job(self) -> str:
        """SLURM's id of the job; "" outside of SLURM, and while unknown."""
        if self.executor == "slurm" and self.planned is not None and self.planned.job[:1].isdecimal():
            return self.planned.job
        return self.recorded.job if self.recorded else ""

    @property
    def ids(self) -> set[str]:
        """The jobs to query SLURM for; none once the study is done."""
        if self.recorded is None:
            return {self.job} - {""}
        return set() if self.recorded.state == "done" else {self.job, self.recorded.job} - {""}

    def judge(self, answer: Answer, here: str) -> None:
        """Set state, detail and restarts. here: this machine's `lease.kernel()`."""
        recorded = self.recorded
        alive = recorded.alive(here) if recorded is not None and recorded.state == "running" else None
        id, job, gone = self._local_job() if self.executor == "local" else self._slurm_job(answer)
        self.state, self.detail = verdict(recorded, id, job, gone, alive, self.outcome)
        if self.state == "unknown" and self.executor == "slurm" and not self.job:
            self.detail = "`submit` was cut short before it had a job on record; the same command submits it"
        self.restarts = max(job.restarts if job else 0, recorded.restarts if recorded else 0)
        if self.state == "running" and recorded is not None and alive is None and not (job and job.live):
            silent = time.time() - recorded.updated
            if silent > SILENT_SECONDS:
                self.detail = f"no news from {recorded.host} for {duration(silent)}"

    def _slurm_job(self, answer: Answer) -> tuple[str, Job | None, bool]:
        """Return id, job and `gone` for `verdict`: the sweep's job while live, else the job that wrote the status."""
        id, own = self.job, self.recorded.job if self.recorded else ""
        job = answer.jobs.get(id)
        if own and not (job and job.live):
            id, job = own, answer.jobs.get(own)
        return id, job, bool(id) and answer.complete and not (job and job.live)

    def _local_job(self) -> tuple[str, Job | None, bool]:
        """Return id, job and `gone` for `verdict`: PENDING until a worker claims it, RUNNING until it begins."""
        state = ""
        if self.launching and self.outcome is None:
            begun = self.recorded is not None and self.recorded.updated > self.taken
            state = "PENDING" if not self.taken else "" if begun else "RUNNING"
        return "local", Job("local", state) if state else None, self.launching is False

    def as_json(self) -> dict[str, Any]:
        """Return plain values for scripts; None where unknown."""
        return {
            "label": self.label, "folder": str(self.folder), "state": self.state, "detail": self.detail or None,
            **{name: getattr(self.recorded, name, None) for name in TOLD},
            "job": self.job or None, "restarts": self.restarts,
            "log": (self.planned.log if self.planned else "") or None,
            "overrides": self.planned.overrides if self.planned else [], "density": self.row.get("density"),
            "last_round": self.row.get("round"), "test_accuracy": self.row.get("test_accuracy"),
        }  # fmt: skip


# -- which studies there are -------------------------------------------------------------------------------------------


def studies_of(sweep: Sweep, runs: Path) -> list[StudyStatus]:
    """Return the studies of a sweep, in the order in which they were submitted."""
    with suppress(scheduler.Silent):  # `look` queries SLURM again, and reports the problem
        sweep.adopt()
    taken: dict[int, float] = {}
    launching, ended = None, sweep.ended()
    if sweep.executor == "local":
        with suppress(OSError):
            taken = {number: path.stat().st_mtime for number, path in sweep.files("claims").items()}
        launching = bool(sweep.processes()) if sweep.kernel == kernel() else None
    return [
        StudyStatus(
            job.label or f"study {number}", runs / job.folder, job, sweep.executor,
            sweep.outcome(number) if number in ended else None, launching, taken.get(number, 0.0),
        )
        for number, job in enumerate(sweep.jobs)
    ]  # fmt: skip


def all_studies(runs: Path) -> list[StudyStatus]:
    """Return a study for each run folder."""
    return [StudyStatus(f"{path.parent.name}/{path.name}", path) for path in keyed_folders(runs)]


def newness(study: StudyStatus) -> float:
    """Return when a study last wrote its status, or else a round; unix time, 0 if never."""
    with suppress(OSError):
        return study.recorded.updated if study.recorded else (study.folder / ROUNDS).stat().st_mtime
    return 0.0


# -- their states ------------------------------------------------------------------------------------------------------


def look(studies: Sequence[StudyStatus]) -> str:
    """Read each run folder and query the scheduler once, and set all states. Returns the scheduler's problem, or ""."""
    read: dict[Path, tuple[Status | None, dict[str, Any]]] = {}
    for study in studies:
        if study.folder not in read:
            read[study.folder] = Status.read(study.folder), Run(study.folder).latest_ticket()
        study.recorded, study.row = read[study.folder]
    answer = scheduler.ask(sorted({id for study in studies for id in study.ids}))
    here = kernel()
    for study in studies:
        study.judge(answer, here)
    return answer.problem


def verdict(
    recorded: Status | None, id: str, job: Job | None, gone: bool, alive: bool | None, outcome: Outcome | None = None
) -> tuple[str, str]:
    """Return the state of a study (one of STATES), and its cause or other detail.

    The recorded status alone does not show that a study was killed, since a killed process writes nothing, nor that
    its job waits in the queue, for the first time or again.

    id: the scheduler's latest job for the study; "" if none. job: its state, if known. gone: whether the job certainly
    neither waits nor runs. alive: whether the process that wrote `recorded` still runs; None if unknown here.
    outcome: the one recorded in the sweep.
    """
    if recorded is None:
        return never_began(job, gone, outcome)
    now = ("waiting", recorded.waiting) if recorded.waiting else ("running", "")
    if recorded.state == "done":
        return "done", ""
    if recorded.state == "running" and alive:
        return now
    if job is not None and job.waiting:
        return "queued", job.reason
    own = bool(id) and recorded.job == id
    if job is not None and job.live and not (own and recorded.restarts >= job.restarts):
        return "starting", ""  # a later run than the one that wrote the status
    if job is not None and job.state == "CANCELLED" and own:
        return "cancelled", recorded.cause or ""
    if recorded.state == "interrupted" and outcome is not None and outcome.status:
        return "failed", outcome.cause  # in a later run, which ended before it could write its status
    if recorded.state != "running":
        return recorded.state, recorded.cause or ""
    if alive is False or (gone and own):
        said = outcome.cause if outcome else ""
        return "killed", said or (f"its job ended as {job.state}" if job and not job.live else "its process is gone")
    return now


def never_began(job: Job | None, gone: bool, outcome: Outcome | None) -> tuple[str, str]:
    """Return the verdict on a study that has written no status."""
    if job is not None and job.live:
        return ("queued", job.reason) if job.waiting else ("starting", "")
    if outcome is not None:
        return ("failed", outcome.cause) if outcome.status else ("done", "")
    if job is None:
        return ("gone", "its job has ended, and it never began") if gone else ("unknown", "")
    if job.state == "CANCELLED":
        return "cancelled", "before it began"
    return "failed", f"its job ended as {job.state} before it began"
