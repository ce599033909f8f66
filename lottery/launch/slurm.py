"""The SLURM launcher: job arrays of `StudyJob`s, submitted by submitit, and what becomes of them. Torch-free."""

from __future__ import annotations

import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict
from io import StringIO
from typing import Any

from lottery.errors import LotteryError, cause
from lottery.launch import scheduler
from lottery.launch.job import StudyJob
from lottery.launch.record import Outcome, Sweep
from lottery.launch.settings import Slurm
from lottery.launch.snapshot import environment, python_held

ARRAY = 1000  # SLURM's own limit of an array, MaxArraySize, is 1001 unless the cluster says otherwise
OURS = {"_target_", "wait", "snapshot", "submitit_folder", "max_num_timeout", "python", "setup"}
# What submitit's executors have in common; all others are called slurm_NAME.
COMMON = {
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout",
}  # fmt: skip
LOOKS = 2  # a job is gone when SLURM says so as many times


def start(sweep: Sweep, settings: Sequence[Slurm]) -> None:
    """Submit the sweep's studies, each with its settings; sweep.json names their jobs.

    Studies with equal settings share an array. Raises LotteryError, in SLURM's words, where it refuses any of them;
    then none is submitted.
    """
    sweep.write()
    for numbers in arrays(settings):
        try:
            with redirect_stderr(StringIO()):  # sbatch's complaint is in the exception too
                submit(sweep, settings[numbers[0]], numbers)
        except Exception as error:  # submitit has several kinds
            withdraw(sweep)
            raise LotteryError(f"hydra/launcher=slurm: {refusal(error)}") from error
        sweep.write()


def withdraw(sweep: Sweep) -> None:
    """Cancel what has been submitted so far."""
    ids = {job.job.partition("_")[0] for job in sweep.jobs if job.job}
    if ids:
        subprocess.run(["scancel", *ids], capture_output=True)
    for job in sweep.jobs:
        job.job = ""


def arrays(settings: Sequence[Slurm]) -> Iterator[list[int]]:
    """The numbers of the studies that go into one job array."""
    left = list(range(len(settings)))
    while left:
        same = [number for number in left if settings[number] == settings[left[0]]][:ARRAY]
        yield same
        left = [number for number in left if number not in set(same)]


def submit(sweep: Sweep, settings: Slurm, numbers: Sequence[int]) -> None:
    """Submit these studies as one job array (or job), and note its ids."""
    from submitit import AutoExecutor

    executor = AutoExecutor(
        sweep.folder / settings.submitit_folder,
        cluster="slurm",
        slurm_python=python_held(settings.python, sweep.folder),
        slurm_max_num_timeout=settings.max_num_timeout,
    )
    executor.update_parameters(**parameters(sweep, settings))
    planned = [(number, sweep.jobs[number]) for number in numbers]
    submitted = executor.submit_array(
        [StudyJob(str(sweep.folder), number, job.overrides, sweep.config_dir, job.label) for number, job in planned]
    )
    for (_, job), its in zip(planned, submitted, strict=True):
        job.job, job.log = its.job_id, str(its.paths.stdout)


def parameters(sweep: Sweep, settings: Slurm) -> dict[str, Any]:
    """The settings by submitit's names."""
    given = {name: value for name, value in asdict(settings).items() if name not in OURS and value not in (None, [])}
    named = {name if name in COMMON else f"slurm_{name}": value for name, value in given.items()}
    code = sweep.folder / "code"
    variables = environment(code if code.exists() else None)
    if settings.cpus_per_task:  # srun no longer takes it from the job, and torch would get one core
        variables["SRUN_CPUS_PER_TASK"] = str(settings.cpus_per_task)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return {**named, "slurm_setup": [*exports, *settings.setup]}


def refusal(error: Exception) -> str:
    """Why SLURM took no job: sbatch's complaints, else whatever went wrong."""
    lines = str(error).splitlines()
    if isinstance(error, subprocess.CalledProcessError):
        lines = str(error.stderr or error).splitlines()
    said = [line.partition("error: ")[2] for line in lines if "sbatch: error: " in line]
    return "; ".join(said) if said else cause(error)


class Watch:
    """Notices the jobs that have ended without saying how: cancelled, killed, or lost with their node."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._gone: Counter[int] = Counter()

    def look(self) -> None:
        """Ask SLURM after the studies that have not ended, and record the end of those whose job is gone."""
        ended = self.sweep.ended()
        left = {number: job.job for number, job in enumerate(self.sweep.jobs) if number not in ended}
        answer = scheduler.ask(left.values())
        if not answer.complete:
            return
        for number, id in left.items():
            job = answer.jobs.get(id)
            self._gone[number] = 0 if job is not None and job.live else self._gone[number] + 1
            if self._gone[number] >= LOOKS and number not in self.sweep.ended():
                self.sweep.end(number, last_word(job.state if job else None))


def last_word(state: str | None) -> Outcome:
    """How a study ended, from SLURM's word for its job's end; None where SLURM has forgotten it."""
    if state == "COMPLETED":  # its own word is on the way: network file systems are late
        return Outcome(0)
    if state is not None and state.startswith("CANCELLED"):
        return Outcome(143, "cancelled")
    return Outcome(1, f"its job ended as {state}" if state else "its job is gone, and SLURM does not know how it ended")
