"""A sweep's folder, `<paths.runs>/.sweeps/<time>/`: its studies, what has become of them, who runs them. Torch-free.

`sweep.json` says what the sweep is, `outcomes/` how each study ended, `claims/` which worker of the local launcher took
it, `logs/` what it printed, `code/` holds the copy of lottery that runs it. Results are not here: they are in the run
folders.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lottery.errors import ConfigError, LotteryError
from lottery.files import write_json
from lottery.stages.lease import kernel, start_time

SWEEPS = ".sweeps"


@dataclass
class Outcome:
    """How a study ended: an exit status, and why if it is not 0."""

    status: int
    cause: str = ""


@dataclass
class Job:
    """One study of a sweep."""

    label: str  # what distinguishes it from the others
    overrides: list[str]
    folder: str  # its run folder, relative to paths.runs
    job: str = ""  # SLURM's id, such as 25_0; of a local sweep the process that starts the workers
    started: str = ""  # of that process: `lease.start_time()`
    log: str = ""


@dataclass
class Sweep:
    """The content of `sweep.json`."""

    folder: Path
    executor: str  # slurm | local
    command: list[str]
    jobs: list[Job]
    config_dir: str | None = None  # the user's own configs, or their copy
    code: dict[str, Any] = field(default_factory=dict)  # `snapshot.described`
    settings: dict[str, Any] = field(default_factory=dict)  # of the launcher
    created: str = ""
    host: str = field(default_factory=socket.gethostname)
    kernel: str = field(default_factory=kernel)  # where process numbers mean something

    @property
    def name(self) -> str:
        return self.folder.name

    def write(self) -> None:
        """Raises LotteryError where the folder cannot be written to."""
        facts = {"name": self.name, **asdict(self)}
        del facts["folder"]
        write_json(self.folder / "sweep.json", facts)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Raises LotteryError where there is no sweep.json that can be understood."""
        try:
            found = json.loads((folder / "sweep.json").read_bytes())
            del found["name"]
            jobs = [Job(**job) for job in found.pop("jobs")]
            return cls(folder.absolute(), jobs=jobs, **found)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise LotteryError(f"{folder / 'sweep.json'}: damaged, cannot be read: {error}") from error

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def outcome(self, number: int) -> Outcome | None:
        """How this study ended; None while it has not, or was interrupted."""
        try:
            return Outcome(**json.loads(self._file("outcomes", number).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def ended(self) -> set[int]:
        """The numbers of the studies that have ended; one look at the folder."""
        with suppress(FileNotFoundError):
            return {int(name[:-5]) for name in os.listdir(self.folder / "outcomes") if name.endswith(".json")}
        return set()

    def end(self, number: int, outcome: Outcome) -> None:
        """Record how a study ended."""
        write_json(self._file("outcomes", number), asdict(outcome))

    def reopen(self, number: int) -> None:
        """The study is run again."""
        self._file("outcomes", number).unlink(missing_ok=True)

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, number: int, worker: str) -> bool:
        """Take a study for this worker, a process and its start; False if another has it. One at most gets True."""
        path = self._file("claims", number)
        path.parent.mkdir(exist_ok=True)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(file, "w") as opened:
            opened.write(worker)
        return True

    def claims(self) -> dict[int, str]:
        """number of a study -> the worker that took it."""
        return {int(path.stem): path.read_text() for path in (self.folder / "claims").glob("*.txt")}

    def processes(self) -> list[int]:
        """Those of a local sweep that run: the one that starts the workers, and the workers' own."""
        known = {(job.job, job.started) for job in self.jobs}
        known |= {(pid, started) for pid, _, started in (by.partition(" ") for by in self.claims().values())}
        return [int(pid) for pid, started in sorted(known) if alive(pid, started)]

    def log(self, number: int) -> Path:
        """Where a worker of the local launcher puts what a study prints."""
        return self.folder / "logs" / f"{number:04d}.log"

    def _file(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number:04d}.{'json' if kind == 'outcomes' else 'txt'}"


def new_folder(runs: Path, now: str) -> Path:
    """Make the folder of a sweep that begins at `now`; two that begin in the same second get two.

    Raises ConfigError where it cannot be made.
    """
    for number in range(1, 1000):
        folder = runs.absolute() / SWEEPS / (now if number == 1 else f"{now}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"paths.runs: cannot write to {folder}: {error.strerror}") from error
    raise ConfigError(f"paths.runs: {runs / SWEEPS} is full of sweeps of {now}")


def running(job: Job) -> bool:
    """Whether the process that starts a local sweep's workers runs on this machine."""
    return alive(job.job, job.started)


def alive(pid: str, started: str) -> bool:
    """Whether this process runs, and not another one that was given its number."""
    return pid.isdecimal() and bool(started) and start_time(int(pid)) == started
