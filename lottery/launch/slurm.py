"""The SLURM launcher: submit job arrays of `StudyJob`s by submitit, and detect jobs that have ended. Torch-free."""

from __future__ import annotations

import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import asdict
from io import StringIO
from typing import Any

from lottery.errors import LotteryError, cause
from lottery.launch import scheduler
from lottery.launch.job import StudyJob
from lottery.launch.record import SUBMITTING, Outcome, Sweep
from lottery.launch.settings import Slurm
from lottery.launch.snapshot import environment, python_blocked

ARRAY = 1000  # jobs in an array; SLURM's limit, MaxArraySize, is 1001 by default
OURS = {"_target_", "wait", "snapshot", "submitit_folder", "max_num_timeout", "python", "setup"}
# The parameters of every submitit executor; all others are called slurm_NAME.
COMMON = {
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout",
}  # fmt: skip
LOOKS = 2  # consecutive answers in which a job must be missing or ended before it counts as gone


def start(sweep: Sweep, settings: Sequence[Slurm]) -> None:
    """Submit the sweep's studies, each with its settings, and record their jobs in sweep.json.

    Studies with equal settings share an array. Raises LotteryError, with SLURM's message, where SLURM refuses any
    study; the jobs submitted so far are then cancelled.
    """
    for numbers in arrays(settings):
        for task, number in enumerate(numbers):
            sweep.jobs[number].job = SUBMITTING + (str(task) if len(numbers) > 1 else "")
        try:
            sweep.write()  # before the submission: if it is killed, `adopt` finds the jobs
            with redirect_stderr(StringIO()):  # the exception has sbatch's message too
                submit(sweep, settings[numbers[0]], numbers)
            sweep.write()
        except Exception as error:  # submitit raises several types
            raise LotteryError(f"hydra/launcher=slurm: {refusal(error)}{withdraw(sweep)}") from error


def withdraw(sweep: Sweep) -> str:
    """Cancel the jobs submitted so far, including those that SLURM accepted without an answer.

    Returns the end of an error message about jobs that could not be cancelled, which stay in sweep.json; "" for none.
    """
    with suppress(scheduler.Silent):
        sweep.adopt()
    ids = sorted({job.job.partition("_")[0] for job in sweep.jobs} - {""})
    try:
        if ids:
            scheduler.cancel(ids)
    except scheduler.Silent as error:
        return f"; the jobs submitted before could not be cancelled ({error}): `scancel {' '.join(ids)}`"
    for job in sweep.jobs:
        job.job = ""
    return ""


def arrays(settings: Sequence[Slurm]) -> Iterator[list[int]]:
    """Yield the numbers of the studies of each job array: at most ARRAY studies with equal settings."""
    left = list(range(len(settings)))
    while left:
        array = [number for number in left if settings[number] == settings[left[0]]][:ARRAY]
        yield array
        left = [number for number in left if number not in set(array)]


def submit(sweep: Sweep, settings: Slurm, numbers: Sequence[int]) -> None:
    """Submit these studies as one job array (or job), and store ids and logs in the sweep's entries."""
    from submitit import AutoExecutor

    executor = AutoExecutor(
        sweep.folder / settings.submitit_folder,
        cluster="slurm",
        slurm_python=python_blocked(settings.python, sweep.folder),
        slurm_max_num_timeout=settings.max_num_timeout,
    )
    executor.update_parameters(**parameters(sweep, settings))
    folder, jobs = str(sweep.folder), sweep.jobs
    work = [StudyJob(folder, n, jobs[n].overrides, sweep.config_dir, jobs[n].label) for n in numbers]
    for number, submitted in zip(numbers, executor.submit_array(work), strict=True):
        jobs[number].job, jobs[number].log = submitted.job_id, str(submitted.paths.stdout)


def parameters(sweep: Sweep, settings: Slurm) -> dict[str, Any]:
    """Return the settings under submitit's names."""
    given = {name: value for name, value in asdict(settings).items() if name not in OURS and value not in (None, [])}
    named = {name if name in COMMON else f"slurm_{name}": value for name, value in given.items()}
    variables = environment(sweep.folder)
    if settings.cpus_per_task:  # newer versions of srun do not inherit it from the job: torch would get one core
        variables["SRUN_CPUS_PER_TASK"] = str(settings.cpus_per_task)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return {**named, "slurm_setup": [*exports, *settings.setup]}


def refusal(error: Exception) -> str:
    """Return why SLURM refused a job: sbatch's error messages, or else the error itself."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else error
    said = [line.partition("error: ")[2] for line in str(text).splitlines() if "sbatch: error: " in line]
    return "; ".join(said) if said else cause(error)


class Watch:
    """Detects jobs that have ended without recording an outcome: cancelled, killed, or lost with their node."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._gone: Counter[int] = Counter()

    def look(self) -> None:
        """Query SLURM for the studies that have not ended, and record outcomes for those whose jobs are gone."""
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
    """Return a study's outcome from SLURM's last state of its job. state: None where SLURM has forgotten the job."""
    if state == "COMPLETED":  # its own outcome will follow: network file systems are slow
        return Outcome(0)
    if state is not None and state.startswith("CANCELLED"):
        return Outcome(143, "cancelled")
    return Outcome(1, f"its job ended as {state}" if state else "its job is gone, and SLURM does not know how it ended")
