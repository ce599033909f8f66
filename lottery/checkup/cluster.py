"""Check the scheduler: whether it answers, its limits, and how early it warns a job of its end. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from time import monotonic

from lottery.checkup.findings import Finding, note, ok, problem
from lottery.launch import scheduler
from lottery.launch.scheduler import Silent, parse_time
from lottery.record.status import duration, job_id

SECONDS = 5.0
LITTLE_WARNING = 60  # seconds; may be too short to save a state
MANY = 12  # partitions that are listed where nothing is wrong with them


def check_cluster(checkpoint_minutes: float) -> list[Finding]:
    """Return findings about SLURM. checkpoint_minutes: how often a study saves its state."""
    if not scheduler.available():
        text = "no SLURM on this machine: sweeps run here (-m, or several at a time with hydra/launcher=local)"
        return [ok("scheduler", text)]
    deadline = monotonic() + SECONDS
    try:
        settings = scheduler.settings(deadline)
        found = [*about(settings), *partitions(deadline, checkpoint_minutes), *preemption(settings)]
    except Silent as error:
        advice = "is SLURM_CONF set, does `sinfo` answer? Until then sweeps run here: -m with hydra/launcher=local"
        return [problem("scheduler", f"SLURM's commands are here, but {error}", advice)]
    found.append(accounting(deadline, settings))
    if "SLURM_JOB_ID" in os.environ:
        found += this_job(deadline, checkpoint_minutes, settings)
    return found


def about(settings: dict[str, str]) -> Iterator[Finding]:
    """Report SLURM's version, its limits and its signals."""
    array, wait = settings.get("MaxArraySize", "?"), settings.get("KillWait", "?")
    yield ok("scheduler", f"SLURM {settings.get('SLURM_VERSION', '?')}, cluster {settings.get('ClusterName', '?')}")
    if array.isdecimal():
        yield ok("limits", f"an array may have {max(0, int(array) - 1):,} jobs (MaxArraySize), so a sweep too")
    yield ok("signals", f"at its time limit a job gets SIGTERM, and SIGKILL {wait} later (KillWait)")


def partitions(deadline: float, checkpoint_minutes: float) -> list[Finding]:
    """Report each partition, and a problem where none runs a job long enough for a study's first checkpoint."""
    found, all_short = list[Finding](), True
    for partition in scheduler.partitions(deadline):
        limit = parse_time(partition.get("MaxTime", ""))
        text = f"{partition.get('PartitionName', '?')}: {described(partition, limit)}"
        short = limit is not None and limit <= 60 * checkpoint_minutes
        all_short &= short
        if short:
            advice = f"train.checkpoint_minutes={checkpoint_minutes:g} is longer: set it to a part of the time limit"
            found.append(note("partition", text, advice))
        elif partition.get("State", "UP") != "UP":
            found.append(note("partition", text, "it takes or starts no jobs now"))
        else:
            found.append(ok("partition", text))
    if found and all_short:
        advice = "set train.checkpoint_minutes to a part of the time limit"
        found.append(problem("limits", "every partition's time limit is shorter than the checkpoint interval", advice))
    fine = [finding for finding in found if finding.level == "ok"]
    if more := fine[MANY:]:
        wrong = [finding for finding in found if finding.level != "ok"]
        found = [*wrong, *fine[:MANY], ok("partition", f"and {len(more)} more")]
    return found


def described(partition: dict[str, str], limit: int | None) -> str:
    """Describe a partition's size, limits and preemption."""
    default = parse_time(partition.get("DefaultTime", ""))
    text = f"{partition.get('TotalNodes', '?')} nodes, {partition.get('State', '?').lower()}, "
    text += "no time limit" if limit is None else f"up to {span(limit)}"
    text += "" if default is None else f" (where a job does not say, {span(default)})"
    mode = partition.get("PreemptMode", "OFF")
    if mode != "OFF":
        text += f"; its jobs may be preempted ({mode.lower()}, grace {partition.get('GraceTime', '0')} s)"
    return text


def span(seconds: int) -> str:
    """Format a duration without trailing zeros, such as 10m, 2h or 3d."""
    return re.sub("(?<=[mhd])00[smh]$", "", duration(seconds))


def preemption(settings: dict[str, str]) -> Iterator[Finding]:
    """Report what happens to a job that is preempted."""
    kind, mode = settings.get("PreemptType", "preempt/none"), settings.get("PreemptMode", "OFF").upper()
    if kind == "preempt/none" or mode == "OFF":
        yield ok("preemption", "off: jobs run until their time limit")
    elif "CANCEL" in mode:
        text = "a job that must make room is cancelled, not requeued"
        yield note("preemption", text, "submit the sweep again: it continues from the last saved state")
    elif "preempt_send_user_signal" in settings.get("SlurmctldParameters", ""):
        yield ok("preemption", f"{mode.lower()}, announced by the job's own signal (preempt_send_user_signal)")
    else:
        text = "a job that must make room gets SIGTERM alone, and SIGKILL after the partition's grace time"
        advice = "use hydra/launcher=slurm_preempt: the state is saved on SIGTERM, and SLURM itself requeues the job"
        yield note("preemption", text, advice)
    if settings.get("JobRequeue") == "0":
        text = "SLURM requeues only jobs that ask for it (JobRequeue=0)"
        yield note("preemption", text, "the project's launchers ask; in your own job script: #SBATCH --requeue")


def accounting(deadline: float, settings: dict[str, str]) -> Finding:
    """Report whether SLURM keeps records of ended jobs."""
    error = scheduler.accounting(deadline)
    if not error:
        return ok("accounting", "sacct works")
    text = f"{error}; ended jobs are remembered for {settings.get('MinJobAge', '?')} (MinJobAge)"
    return note("accounting", text, "`lottery status` asks scontrol instead, and after that time only the run folders")


def this_job(deadline: float, checkpoint_minutes: float, settings: dict[str, str]) -> Iterator[Finding]:
    """Report on the job that this process is part of: its time left, and how early it is warned of its end."""
    id = job_id()
    job = scheduler.ask([id], max(0.5, deadline - monotonic())).jobs.get(id)
    if job is not None and job.seconds_left is not None:
        again = f", started again {job.restarts} times" if job.restarts else ""
        yield ok("this job", f"{id} has {duration(job.seconds_left)} left{again}")
        if job.seconds_left < 60 * checkpoint_minutes:
            text = f"less than train.checkpoint_minutes={checkpoint_minutes:g} is left of its time"
            yield note("this job", text, "what is saved is then only what the signal before the end lets save")
    try:
        asked = re.search(r"--signal[= ](?:[BR]+:)?(\w+)(?:@(\d+))?", scheduler.job_script(id, deadline))
    except Silent as error:
        yield note("this job", f"its script cannot be looked at ({error})")
        return
    if asked is None:
        text = "no --signal in its script (one given to sbatch itself does not show): SIGTERM, and SIGKILL "
        text += f"{settings.get('KillWait', '?')} later"
        yield note("this job", text, "#SBATCH --signal=USR2@300 gives five minutes to save the state")
    else:
        name, delay = asked[1].removeprefix("SIG"), int(asked[2] or 60)
        text = f"gets SIG{name} {delay} s before its end"
        yield (
            note("this job", text, "a large state may take longer") if delay < LITTLE_WARNING else ok("this job", text)
        )
