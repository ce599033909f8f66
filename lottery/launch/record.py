"""The folder of a sweep, `<paths.runs>/.sweeps/<time>/`: its studies, their outcomes and their workers. Torch-free.

`sweep.json` describes the sweep. `outcomes/` and `logs/` have the outcome and the output of each study. `code/` is the
copy of lottery that runs it. `workers/` lists the local launcher's workers, and `claims/` which worker took a study.
Results are in the run folders.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

from lottery.errors import ConfigError, LotteryError, nearest
from lottery.files import Missing, Unreadable, read_json, read_text, write_json
from lottery.launch import scheduler
from lottery.lease import kernel, start_time
from lottery.sharing import create
from lottery.values import fits, read_record, record

SWEEPS = ".sweeps"
SUFFIXES = {"outcomes": ".json", "claims": ".txt", "workers": ".txt"}  # folder of a sweep -> suffix of its files
SUBMITTING = "_"  # begins SweepStudy.job during the submission to SLURM; the number of its task follows


@dataclass
class Outcome:
    """The end of a study: its exit status, and the cause if that is not 0."""

    status: int
    cause: str = ""


@dataclass(frozen=True, order=True)
class Process:
    """A process of this machine."""

    pid: str
    started: str  # `lease.start_time()`, since process numbers are reused

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(str(pid), start_time(pid))

    @property
    def alive(self) -> bool:
        """Whether the process runs. A later process with the number does not count."""
        return self.pid.isdecimal() and bool(self.started) and start_time(int(self.pid)) == self.started

    def __str__(self) -> str:
        return f"{self.pid} {self.started}"


@dataclass
class SweepStudy:
    """The entry of one study in sweep.json."""

    label: str  # overrides that distinguish it from the others
    overrides: list[str]
    folder: str  # its run folder, relative to paths.runs
    job: str = ""  # SLURM's id, such as 25_0 (SUBMITTING: not known yet); local: the process that starts the workers
    started: str = ""  # local: `lease.start_time()` of that process
    log: str = ""


@dataclass
class Sweep:
    """The content of `sweep.json`."""

    folder: Path
    executor: str  # slurm | local
    command: list[str]
    jobs: list[SweepStudy]
    config_dir: str | None = None  # the user's own configs, or their copy
    code: dict[str, Any] = field(default_factory=dict)  # `snapshot.described`
    settings: dict[str, Any] = field(default_factory=dict)  # of the launcher
    created: str = ""
    host: str = field(default_factory=socket.gethostname)
    kernel: str = field(default_factory=kernel)  # the system on which the process numbers are valid

    @property
    def name(self) -> str:
        return self.folder.name

    def write(self) -> None:
        """Write sweep.json. Raises LotteryError where the folder is not writable."""
        facts = {"name": self.name, **asdict(self)}
        del facts["folder"]
        write_json(self.folder / "sweep.json", facts)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Read sweep.json. Raises LotteryError where it is missing or damaged."""
        path, remedy = folder / "sweep.json", "the run folders have the results; remove the sweep's folder"
        found = read_json(path, remedy)
        if not fits(found.get("jobs"), list[dict[str, Any]]):
            raise Unreadable.of(path, "damaged, it has no list of jobs", remedy)
        jobs = [record(SweepStudy, job, f"{path}, job {number}", remedy) for number, job in enumerate(found["jobs"])]
        return record(cls, {**found, "folder": folder.absolute(), "jobs": jobs}, path, remedy)

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def outcome(self, number: int) -> Outcome | None:
        """Return the outcome of a study; None while it has not ended, or is interrupted."""
        try:
            return read_record(Outcome, self._file("outcomes", number))
        except Missing:
            return None
        except Unreadable as error:  # None would make callers wait for ever
            return Outcome(1, f"{error}; the same command says how the study ended")

    def ended(self) -> set[int]:
        """Return the numbers of the studies that have ended."""
        return set(self.files("outcomes"))

    def end(self, number: int, outcome: Outcome) -> None:
        """Record the outcome of a study."""
        write_json(self._file("outcomes", number), asdict(outcome))

    def reopen(self, number: int) -> None:
        """Remove the outcome of a study, because it is run again."""
        self._file("outcomes", number).unlink(missing_ok=True)

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, number: int, worker: Sequence[Process]) -> bool:
        """Claim a study for a worker (submitit's process, and the worker's own); False if another worker has it."""
        path = self._file("claims", number)
        path.parent.mkdir(exist_ok=True)
        return create(path, " ".join(map(str, worker)).encode())

    def claims(self) -> dict[int, list[Process]]:
        """Return number of a study -> processes of the worker that claimed it; [] where the claim was cut short."""
        return {number: read_processes(path) for number, path in self.files("claims").items()}

    def free(self) -> None:
        """Remove claims that name no process, left by killed workers. Call it only while no worker runs."""
        for number, worker in self.claims().items():
            if not worker and self.outcome(number) is None:
                self._file("claims", number).unlink(missing_ok=True)

    def hire(self, pid: int) -> None:
        """Record a new worker, which has no study yet, by the number of submitit's process."""
        path = self.folder / "workers" / f"{pid}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(Process.of(pid)), encoding="utf-8")

    def processes(self) -> list[int]:
        """Return the running processes of a local sweep: the one that starts the workers, and the workers."""
        known = {Process(job.job, job.started) for job in self.jobs}
        for kind in ("workers", "claims"):
            known |= {process for path in self.files(kind).values() for process in read_processes(path)}
        return [int(process.pid) for process in sorted(known) if process.alive]

    def terminate(self) -> None:
        """Send SIGTERM to `processes` except for this one; they save their state and end."""
        for pid in self.processes():
            if pid != os.getpid():
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGTERM)

    # -- SLURM --------------------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Find the ids of jobs whose submission was killed before it could record them, by the folder of their script.

        A job that is not found keeps its mark: it was never submitted, or has ended. Raises scheduler.Silent.
        """
        unknown = [job for job in self.jobs if job.job.startswith(SUBMITTING)]
        if not unknown or not scheduler.available():
            return
        known = {job.job.partition("_")[0] for job in self.jobs}
        found = scheduler.submitted_from(self.folder, monotonic() + scheduler.SECONDS) - known
        for job in unknown if found else ():
            job.job = f"{max(found, key=int)}{job.job.rstrip('_')}"

    # -- files --------------------------------------------------------------------------------------------------------

    def log(self, number: int) -> Path:
        """Return the file for a study's output under the local launcher."""
        return self.folder / "logs" / f"{number:04d}.log"

    def files(self, kind: str) -> dict[int, Path]:
        """Return the files in `outcomes`, `claims` (number of a study -> file) or `workers` (process -> file)."""
        paths = (self.folder / kind).glob(f"*{SUFFIXES[kind]}")
        return {int(path.stem): path for path in paths if path.stem.isdecimal()}

    def _file(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number:04d}{SUFFIXES[kind]}"


def new_folder(runs: Path, now: str) -> Path:
    """Create the folder of a sweep that begins at `now`, with a suffix if the name is taken. ConfigError on failure."""
    for number in count(1):
        folder = runs.absolute() / SWEEPS / (now if number == 1 else f"{now}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"paths.runs: cannot write to {folder}: {error.strerror}") from error
    return folder


def read_processes(path: Path) -> list[Process]:
    """Return the processes that a file lists; [] where it is unreadable."""
    with suppress(Unreadable):
        words = read_text(path).split()
        return [Process(*pair) for pair in zip(words[::2], words[1::2], strict=False)]
    return []


def all_sweeps(runs: Path) -> tuple[list[Sweep], list[str]]:
    """Return the sweeps in `runs`, newest first (their names are times), and a line for each damaged one."""
    sweeps, damaged = [], []
    for name in reversed(sweep_names(runs)):
        try:
            sweeps.append(Sweep.read(runs / SWEEPS / name))
        except LotteryError as error:
            damaged.append(str(error))
    return sweeps, damaged


def sweep_names(runs: Path) -> list[str]:
    """Return the names of the sweeps in `runs`, oldest first."""
    return sorted(path.parent.name for path in (runs / SWEEPS).glob("*/sweep.json"))


def find_sweep(runs: Path, name: str) -> Sweep:
    """Return the sweep of this name, or the "latest". ConfigError where there is none, LotteryError if damaged."""
    names = sweep_names(runs)
    if not names:
        raise ConfigError(f"no sweep in {runs / SWEEPS}; --runs DIR looks in another folder than {runs}")
    if name == "latest":
        name = names[-1]
    if name not in names:
        raise ConfigError(f"{name}: no such sweep in {runs / SWEEPS}{nearest(name, names)}; the latest is {names[-1]}")
    return Sweep.read(runs / SWEEPS / name)
