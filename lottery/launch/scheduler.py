"""Call SLURM's commands: query jobs and the cluster, cancel jobs. Torch-free.

One call of a command queries all jobs. A controller that does not answer costs a few seconds and one line of output;
without SLURM the answers are empty.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

SECONDS = 5.0  # for all queries together
SCANCEL_SECONDS = 30.0
BROKEN = ("socket", "zero bytes were transmitted", "message receive failure")  # in messages on a broken connection
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"}
# squeue's columns and widths: old versions do not let a caller choose the separator, and values may contain any.
QUEUE = (("JobArrayID", 40), ("State", 20), ("Reason", 60), ("TimeLeft", 20), ("RestartCnt", 12))


class Silent(Exception):
    """Raised where SLURM did not answer. The message is one line and gives the reason."""


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array."""

    id: str  # as squeue shows it: "31", or "25_3" in an array
    state: str  # SLURM's name: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED, NODE_FAIL, ...
    reason: str = ""  # why it is still pending
    seconds_left: int | None = None  # of its time limit
    restarts: int = 0

    @property
    def waiting(self) -> bool:
        """Whether the job is in the queue, for the first time or again."""
        return self.state in WAITING

    @property
    def live(self) -> bool:
        """Whether the job waits or runs; otherwise it has ended."""
        return self.state in WAITING or self.state in RUNNING


@dataclass
class Answer:
    """SLURM's answer to a query of jobs."""

    jobs: dict[str, Job] = field(default_factory=dict)
    complete: bool = False  # if so, a job that is not in `jobs` neither waits nor runs
    problem: str = ""  # why SLURM did not answer, in one line


def available() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("squeue") is not None


def ask(ids: Iterable[str], seconds: float = SECONDS) -> Answer:
    """Query SLURM for these jobs ("31", "25_3", or "25" for all tasks of an array), within `seconds`."""
    wanted = list(dict.fromkeys(id for id in ids if re.fullmatch(r"\d+(_\d+)?", id)))
    if not available():
        return Answer()
    if not wanted:
        return Answer(complete=True)
    deadline, answer = monotonic() + seconds, Answer()
    try:
        answer.jobs = queued(wanted, deadline)
        answer.complete = True
        found = answer.jobs.keys() | {id.partition("_")[0] for id in answer.jobs}
        answer.jobs |= ended([id for id in wanted if id not in found], deadline)
    except Silent as error:
        answer.problem = str(error)
    return answer


def queued(ids: list[str], deadline: float) -> dict[str, Job]:
    """Return the jobs that wait or run, by id. Raises Silent."""
    columns = ",".join(f"{name}:{width}" for name, width in QUEUE)
    text = known("squeue", "-h", "-r", "-j", ",".join(ids), "-O", columns, deadline=deadline)
    return {job.id: job for job in parse_queue(text)}


def ended(ids: list[str], deadline: float) -> dict[str, Job]:
    """Return the jobs that have ended, by id, from accounting, or without it from the controller. Raises Silent."""
    if not ids:
        return {}
    try:
        pairs = [arg for id in ids for arg in ("-j", id)]  # a substitute for sacct may support no other form
        half = (monotonic() + deadline) / 2  # sacct hangs while its data base is down
        text = output_of("sacct", "-X", "-o", "JobID,State,NodeList", "--parsable2", *pairs, deadline=half)
        return {job.id: job for job in parse_accounting(text)}
    except Silent:  # accounting is off; the next query shows whether SLURM answers at all
        pass
    jobs: dict[str, Job] = {}
    for id in dict.fromkeys(id.partition("_")[0] for id in ids):
        text = known("scontrol", "show", "job", id, "--oneliner", deadline=deadline)
        jobs |= {job.id: job for job in parse_jobs(text)}
    return jobs


def known(*command: str, deadline: float) -> str:
    """Like `output_of`; "" where SLURM reports that the job queried has ended or is forgotten."""
    try:
        return output_of(*command, deadline=deadline)
    except Silent as error:
        if "Invalid job id" in str(error):
            return ""
        raise


def submitted_from(folder: Path, deadline: float) -> set[str]:
    """Return the ids of this user's waiting and running jobs and arrays whose script lay in `folder`. Raises Silent."""
    text = output_of("squeue", "-h", "-u", str(os.getuid()), "-O", "ArrayJobID:20,Command:4000", deadline=deadline)
    scripts = [(line[:20].strip(), Path(line[20:].strip())) for line in text.splitlines()]
    return {id for id, script in scripts if script.resolve().is_relative_to(folder.resolve())}


def cancel(ids: Collection[str]) -> None:
    """Cancel these jobs. Raises Silent."""
    output_of("scancel", *ids, deadline=monotonic() + SCANCEL_SECONDS)


def output_of(*command: str, deadline: float, env: Mapping[str, str] | None = None) -> str:
    """Run a command of SLURM and return its output.

    Raises Silent where it fails, or has not answered by the deadline (monotonic). When a connection breaks, as happens
    under load, the command is run again until the deadline.
    """
    late = f"SLURM does not answer ({command[0]} took too long)"
    while (left := deadline - monotonic()) > 0:
        try:
            done = subprocess.run(
                command, env=env, capture_output=True, encoding="utf-8", errors="replace", timeout=left
            )
        except subprocess.TimeoutExpired:
            break
        except OSError as error:
            raise Silent(f"{command[0]}: {error.strerror}") from error
        if not done.returncode:
            return done.stdout
        lines = (done.stderr or done.stdout).strip().splitlines()
        line = lines[-1].strip() if lines else f"exit status {done.returncode}"
        late = line if line.startswith(command[0]) else f"{command[0]}: {line}"
        if not any(words in line.lower() for words in BROKEN):
            break
        sleep(0.2)
    raise Silent(late)


# -- SLURM's text ------------------------------------------------------------------------------------------------------


def parse_queue(text: str) -> Iterator[Job]:
    """Parse the output of `squeue -h -r -O` with the columns of QUEUE: a task a line."""
    for line in text.splitlines():
        values = []
        for _, width in QUEUE:
            values.append(line[:width].strip())
            line = line[width:]
        id, state, reason, left, restarts = values
        if id:
            reason = "" if reason == "None" or state not in WAITING else reason
            yield Job(id, state, reason, parse_time(left), number(restarts))


def parse_accounting(text: str) -> Iterator[Job]:
    """Parse the output of `sacct --parsable2`, with its header. Of several runs of a job, the last comes last."""
    header, *lines = text.splitlines() or [""]
    for line in lines:
        row = dict(zip(header.split("|"), line.split("|"), strict=False))
        state = row.get("State", "").split()
        for id in expanded(row.get("JobID", "")):
            if state and "." not in id:  # a dot: a step of a job
                yield Job(id, state[0])


def parse_jobs(text: str) -> Iterator[Job]:
    """Parse the output of `scontrol show job ID --oneliner`: key=value words, a job or task of an array a line."""
    for values in parse_lines(text):
        id, task = values.get("JobId", ""), values.get("ArrayTaskId", "")
        if task:
            id = f"{values.get('ArrayJobId', id)}_{task if task.isdecimal() else f'[{task}]'}"
        state, restarts = values.get("JobState", ""), number(values.get("Restarts", ""))
        reason = values.get("Reason", "") if state in WAITING else ""
        yield from (Job(one, state, reason, None, restarts) for one in expanded(id))


def parse_lines(text: str) -> Iterator[dict[str, str]]:
    """Yield the key=value words of each line; the first value of a repeated key (which may come from a job's name)."""
    for line in text.splitlines():
        values: dict[str, str] = {}
        for word in line.split():
            key, given, value = word.partition("=")
            if given:
                values.setdefault(key, value)
        if values:
            yield values


def expanded(id: str) -> list[str]:
    """Return the tasks in an id: `25_[0-2,7%4]` gives 25_0, 25_1, 25_2 and 25_7."""
    job, _, tasks = id.partition("_[")
    if not tasks:
        return [id] if id else []
    found = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        if bounds := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):  # a long list ends with "..."
            first, last, step = bounds.groups()
            found += [f"{job}_{task}" for task in range(int(first), int(last or first) + 1, int(step or 1))]
    return found


def number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def parse_time(text: str) -> int | None:
    """Convert `4:57`, `1:00:00` or `2-00:00:00` into seconds; None for other text, such as UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# -- the cluster -------------------------------------------------------------------------------------------------------


def settings(deadline: float) -> dict[str, str]:
    """Return `scontrol show config` as a dictionary: KillWait, MaxArraySize, PreemptType ... Raises Silent."""
    pairs = (line.partition("=") for line in output_of("scontrol", "show", "config", deadline=deadline).splitlines())
    return {key.strip(): value.strip() for key, given, value in pairs if given}


def partitions(deadline: float) -> list[dict[str, str]]:
    """Return `scontrol show partition`, a dictionary each: PartitionName, MaxTime, PreemptMode ... Raises Silent."""
    return list(parse_lines(output_of("scontrol", "show", "partition", "--oneliner", deadline=deadline)))


def accounting(deadline: float) -> str:
    """Return why `sacct` does not work; "" where it does."""
    try:
        output_of("sacct", "-X", "-o", "JobID,State,NodeList", "--parsable2", "-j", "1", deadline=deadline)
    except Silent as error:
        return str(error)
    return ""


def job_script(id: str, deadline: float) -> str:
    """Return the script of a job, with its #SBATCH lines. Raises Silent."""
    return output_of("scontrol", "write", "batch_script", id, "-", deadline=deadline)
