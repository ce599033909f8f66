"""The local launcher: `python -m lottery.launch.local SWEEP` starts the workers of a sweep, and new ones for dead ones.

It is a process of its own, in a session of its own, so that neither Ctrl-C nor a terminal that closes reaches the
workers: only it tells them, by SIGTERM, and they save their state. Whoever launched the sweep looks on, or goes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from lottery.launch.record import Outcome, Sweep
from lottery.launch.settings import Local
from lottery.launch.snapshot import environment, python_held
from lottery.launch.worker import Worker
from lottery.run import reported, stop_on_signals
from lottery.stages.lease import start_time
from lottery.training.signals import StopFlag

if TYPE_CHECKING:
    from submitit import LocalJob

POLL_SECONDS = 0.2
YEAR_MINUTES = 60 * 24 * 365
KILLED = "its process was killed (out of memory?); the same command continues it"


def start(sweep: Sweep, settings: Sequence[Local]) -> subprocess.Popen[bytes]:
    """Start the process that starts the workers; sweep.json names it for every study."""
    sweep.settings["gpus_per_worker"] = max(one.gpus_per_worker for one in settings)
    sweep.write()
    code = sweep.folder / "code"
    env = {**os.environ, **environment(code if code.exists() else None)}
    with (sweep.folder / "launcher.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lottery.launch.local", str(sweep.folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True,
        )  # fmt: skip
    for number, job in enumerate(sweep.jobs):
        job.job, job.started, job.log = str(process.pid), start_time(process.pid), str(sweep.log(number))
    sweep.write()
    return process


def serve(folder: Path, stop: StopFlag) -> int:
    """Keep the workers at work until every study has been taken and all of them have ended."""
    sweep = Sweep.read(folder)
    crew = Crew(sweep)
    while crew.at_work(more=not stop):
        if stop:
            crew.tell()
        sleep(POLL_SECONDS)
    return 128 + stop.signum if stop.signum else 0


class Crew:
    """The workers of a sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.settings = Local(**sweep.settings)
        self.workers: list[LocalJob[int]] = []
        self.started = 0
        self.gpus = gpu_count()
        self.useless = 0  # workers that ended without having taken a study

    def at_work(self, more: bool) -> bool:
        """Look after the workers, and start new ones if `more` are wanted; whether any is left."""
        claims = self.sweep.claims()
        for worker in [worker for worker in self.workers if worker.done()]:
            self.workers.remove(worker)
            self._buried(worker.job_id, self.sweep.claims(), interrupted=not more)
        untaken = len(self.sweep.jobs) - len(claims)
        while more and len(self.workers) < min(self.settings.workers, untaken) and not self.useless:
            self.workers.append(self._start())
        return bool(self.workers)

    def tell(self) -> None:
        """Ask the workers to save and end. Their controllers pass it on; said again, as one may just be starting."""
        for worker in self.workers:
            os.kill(int(worker.job_id), 15)

    def _buried(self, worker: str, claims: dict[int, str], interrupted: bool) -> None:
        """A worker has ended: the study that it has left behind, unless it was told to, has failed."""
        own = [number for number, by in claims.items() if by.split()[0] == worker]
        self.useless += not own
        for number in own:
            if not interrupted and self.sweep.outcome(number) is None:
                self.sweep.end(number, Outcome(1, KILLED))

    def _start(self) -> LocalJob[int]:
        """One more worker, by submitit."""
        from submitit import LocalExecutor

        env = worker_environment(self.settings, self.started, os.environ, self.gpus)
        prefix = ["env", "-u", "CUDA_VISIBLE_DEVICES", *(f"{name}={value}" for name, value in env.items())]
        python = f"{shlex.join(prefix)} {python_held(self.settings.python, self.sweep.folder)}"
        executor = LocalExecutor(self.sweep.folder / self.settings.submitit_folder, python=python)
        executor.update_parameters(timeout_min=YEAR_MINUTES, stderr_to_stdout=True)
        self.started += 1
        return executor.submit(Worker(str(self.sweep.folder)))  # type: ignore[return-value]


def worker_environment(settings: Local, number: int, environ: Mapping[str, str], gpus: int) -> dict[str, str]:
    """Variables of the n-th worker: its share of the cores, and of the machine's `gpus`.

    submitit hides all GPUs from its local jobs; a worker sees what this process sees, or its own ones of several.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = settings.cpus_per_task or int(environ.get("OMP_NUM_THREADS") or 0) or max(1, cores // settings.workers)
    found = {"OMP_NUM_THREADS": str(threads)}
    visible, wanted = environ.get("CUDA_VISIBLE_DEVICES"), settings.gpus_per_worker
    names = [str(n) for n in range(gpus)] if visible is None else [name for name in visible.split(",") if name]
    if len(names) > wanted:
        names = [names[(number * wanted + n) % len(names)] for n in range(wanted)]
    if names or visible is not None:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    return found


def gpu_count() -> int:
    """NVIDIA's GPUs of this machine, without importing torch."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def main(folder: str) -> int:
    with stop_on_signals() as stop:
        return reported(lambda: serve(Path(folder), stop))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
