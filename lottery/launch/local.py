"""The local launcher: `python -m lottery.launch.local SWEEP` starts the workers of a sweep, and replaces dead ones.

It is a separate process in a separate session, so that neither Ctrl-C nor a closed terminal reaches the workers. It
stops them by SIGTERM, upon which they save their state. The process that launched the sweep may wait or exit.
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

from lottery.errors import reported
from lottery.launch.record import Outcome, Sweep
from lottery.launch.settings import Local
from lottery.launch.snapshot import environment, python_blocked
from lottery.launch.worker import Worker
from lottery.lease import start_time
from lottery.signals import StopFlag, stop_on_signals

if TYPE_CHECKING:
    from submitit import LocalJob

POLL_SECONDS = 0.2
YEAR_MINUTES = 60 * 24 * 365
TRIES = 3  # workers in a row that may end without having taken a study
KILLED = "its process was killed (out of memory?); the same command continues it"


def start(sweep: Sweep, settings: Sequence[Local]) -> subprocess.Popen[bytes]:
    """Start the process that starts the workers, and record it in sweep.json for every study."""
    sweep.settings["gpus_per_worker"] = max(one.gpus_per_worker for one in settings)
    for number, job in enumerate(sweep.jobs):
        job.log = str(sweep.log(number))
    sweep.write()
    env = {**os.environ, **environment(sweep.folder)}
    with (sweep.folder / "launcher.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lottery.launch.local", str(sweep.folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True,
        )  # fmt: skip
    started_by(sweep, process.pid)
    return process


def started_by(sweep: Sweep, pid: int) -> None:
    """Record the process that starts the workers in sweep.json."""
    for job in sweep.jobs:
        job.job, job.started = str(pid), start_time(pid)
    sweep.write()


def serve(folder: Path, stop: StopFlag) -> int:
    """Run workers until all studies are claimed and all workers have ended, or a signal comes. Returns exit status."""
    sweep = Sweep.read(folder)
    started_by(sweep, os.getpid())  # the launching process may have been killed before it wrote this
    crew = Crew(sweep)
    while crew.at_work(more=not stop):
        if stop:
            sweep.terminate()  # repeated, since a worker may just be starting
        sleep(POLL_SECONDS)
    return 128 + stop.signum if stop.signum else 0


class Crew:
    """The workers of a sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.settings = Local(**sweep.settings)
        self.workers: list[LocalJob[None]] = []
        self.started = 0
        self.gpus = gpu_count()
        self.useless = 0  # workers in a row that ended without having taken a study

    def at_work(self, more: bool) -> bool:
        """Remove ended workers, and start new ones if `more`. Returns whether any worker is left."""
        for worker in [worker for worker in self.workers if worker.done()]:
            claims = self.sweep.claims()
            own = {number: by for number, by in claims.items() if by and by[0].pid == worker.job_id}
            if any(by[-1].alive for by in own.values()):  # only submitit's parent process was killed
                continue
            self.workers.remove(worker)
            self.useless = 0 if own else self.useless + 1
            for number in own if more else ():  # a stopped worker has saved its study
                if self.sweep.outcome(number) is None:
                    self.sweep.end(number, Outcome(1, KILLED))
        if more and not self.workers:
            self.sweep.free()
        claims = self.sweep.claims()
        untaken, busy = len(self.sweep.jobs) - len(claims), len(claims.keys() - self.sweep.ended())
        wanted = min(self.settings.workers, busy + untaken) if more and untaken and self.useless < TRIES else 0
        while len(self.workers) < wanted:
            self.workers.append(self._start())
        return bool(self.workers)

    def _start(self) -> LocalJob[None]:
        from submitit import LocalExecutor

        env = worker_environment(self.settings, self.started, os.environ, self.gpus)
        prefix = ["env", "-u", "CUDA_VISIBLE_DEVICES", *(f"{name}={value}" for name, value in env.items())]
        python = f"{shlex.join(prefix)} {python_blocked(self.settings.python, self.sweep.folder)}"
        executor = LocalExecutor(self.sweep.folder / self.settings.submitit_folder, python=python)
        executor.update_parameters(timeout_min=YEAR_MINUTES, stderr_to_stdout=True)
        self.started += 1
        worker = executor.submit(Worker(str(self.sweep.folder)))
        self.sweep.hire(int(worker.job_id))
        return worker  # type: ignore[return-value]


def worker_environment(settings: Local, number: int, environ: Mapping[str, str], gpus: int) -> dict[str, str]:
    """Return environment variables for the n-th worker: its share of the cores, and of the machine's `gpus`.

    They are needed because submitit hides all GPUs from its local jobs. A worker sees the GPUs of this process, or its
    own share where there are more than `gpus_per_worker`.
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
    """Return the number of NVIDIA GPUs of this machine, without importing torch; 0 where nvidia-smi fails."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith(b"GPU ") for line in listed.splitlines())


if __name__ == "__main__":
    with stop_on_signals() as flag:
        sys.exit(reported(lambda: serve(Path(sys.argv[1]), flag)))
