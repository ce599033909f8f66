"""What SLURM says of jobs and of itself. Only asks; torch-free.

All jobs are asked after in one call a command, whatever their number. A controller that does not answer costs a few
seconds and one line, and where there is no SLURM the answers are empty.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic, sleep

SECONDS = 5.0  # for all questions together
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"}
# squeue's columns, cut by their widths: old versions have no separators of one's own, and a value may hold any.
QUEUE = (("JobArrayID", 40), ("State", 20), ("Reason", 60), ("TimeLeft", 20), ("RestartCnt", 12), ("NodeList", 60))


class Silent(Exception):
    """SLURM did not answer: why, in one line."""


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array."""

    id: str  # as squeue shows it: "31", or "25_3" in an array
    state: str  # SLURM's own word: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED, NODE_FAIL, ...
    reason: str = ""  # why it is still pending
    seconds_left: int | None = None  # of its time limit
    restarts: int = 0
    nodes: str = ""

    @property
    def waiting(self) -> bool:
        """Whether it is in the queue, for the first time or again."""
        return self.state in WAITING

    @property
    def live(self) -> bool:
        """Whether it waits or runs; otherwise it has ended."""
        return self.state in WAITING or self.state in RUNNING


@dataclass
class Answer:
    """What SLURM knows of the jobs that it was asked after."""

    jobs: dict[str, Job] = field(default_factory=dict)
    complete: bool = False  # it answered: a job that is not among them is neither waiting nor running
    problem: str = ""  # why it did not, in one line


def available() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("squeue") is not None


def ask(ids: Iterable[str], seconds: float = SECONDS) -> Answer:
    """What SLURM knows of these jobs ("31", "25_3", or "25" for all tasks of an array)."""
    wanted = list(dict.fromkeys(id for id in ids if re.fullmatch(r"\d+(_\d+)?", id)))
    if not wanted or not available():
        return Answer()
    deadline, answer = monotonic() + seconds, Answer()
    try:
        answer.jobs = queued(wanted, deadline)
        answer.complete = True
        tasks = {id.partition("_")[0] for id in answer.jobs}
        missing = [id for id in wanted if id not in answer.jobs and not ("_" not in id and id in tasks)]
        answer.jobs |= ended(missing, deadline)
    except Silent as error:
        answer.problem = str(error)
    return answer


def queued(ids: list[str], deadline: float) -> dict[str, Job]:
    """Those of the jobs that wait or run."""
    columns = ",".join(f"{name}:{width}" for name, width in QUEUE)
    try:
        text = told("squeue", "-h", "-r", "-j", ",".join(ids), "-O", columns, deadline=deadline)
    except Silent as error:
        if "Invalid job id" in str(error):  # said of a single one that has ended
            return {}
        raise
    return {job.id: job for job in parse_queue(text)}


def ended(ids: list[str], deadline: float) -> dict[str, Job]:
    """Those of the jobs that have ended, as far as it is remembered: by accounting, or else for a while by SLURM."""
    if not ids:
        return {}
    try:
        pairs = [arg for id in ids for arg in ("-j", id)]  # a stand-in for sacct may not know any other form
        half = (monotonic() + deadline) / 2  # where the data base is down, sacct hangs
        text = told("sacct", "-X", "-o", "JobID,State,NodeList", "--parsable2", *pairs, deadline=half)
        return {job.id: job for job in parse_accounting(text)}
    except Silent:  # accounting is off; whether SLURM is there at all, the next question shows
        pass
    jobs: dict[str, Job] = {}
    for id in dict.fromkeys(id.partition("_")[0] for id in ids):
        try:
            text = told("scontrol", "show", "job", id, "--oneliner", deadline=deadline)
        except Silent as error:
            if "Invalid job id" in str(error):  # forgotten
                continue
            raise
        jobs |= {job.id: job for job in parse_jobs(text)}
    return jobs


def told(*command: str, deadline: float) -> str:
    """What a command prints. Raises Silent where it fails, or has not answered by the deadline (monotonic).

    A connection that breaks, as happens under load, is no answer: it is tried again while there is time.
    """
    late = f"SLURM does not answer ({command[0]} took too long)"
    while (left := deadline - monotonic()) > 0:
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=left)
        except subprocess.TimeoutExpired:
            break
        except OSError as error:
            raise Silent(f"{command[0]}: {error.strerror}") from error
        if not done.returncode:
            return done.stdout
        lines = (done.stderr or done.stdout).strip().splitlines()
        line = lines[-1].strip() if lines else f"exit status {done.returncode}"
        late = line if line.startswith(command[0]) else f"{command[0]}: {line}"
        if "socket" not in line.lower():
            break
        sleep(0.2)
    raise Silent(late)


# -- SLURM's text ------------------------------------------------------------------------------------------------------


def parse_queue(text: str) -> Iterator[Job]:
    """`squeue -h -r -O` with the columns of QUEUE: a task a line."""
    for line in text.splitlines():
        values, at = [], 0
        for _, width in QUEUE:
            values.append(line[at : at + width].strip())
            at += width
        id, state, reason, left, restarts, nodes = values
        if id:
            reason = "" if reason == "None" or state not in WAITING else reason
            yield Job(id, state, reason, parse_time(left), number(restarts), nodes)


def parse_accounting(text: str) -> Iterator[Job]:
    """`sacct --parsable2`, with its header; of a job that ran several times the last line."""
    header, *lines = text.splitlines() or [""]
    for line in lines:
        row = dict(zip(header.split("|"), line.split("|"), strict=False))
        state = row.get("State", "").split()
        for id in expanded(row.get("JobID", "")):
            if state and "." not in id:  # a dot: a step of a job
                yield Job(id, state[0], nodes=row.get("NodeList", ""))


def parse_jobs(text: str) -> Iterator[Job]:
    """`scontrol show job ID --oneliner`: key=value words, a job or a task of an array a line."""
    for values in parse_lines(text):
        id, task = values.get("JobId", ""), values.get("ArrayTaskId", "")
        if task:
            id = f"{values.get('ArrayJobId', id)}_{task if task.isdecimal() else f'[{task}]'}"
        state, nodes = values.get("JobState", ""), values.get("NodeList", "").replace("(null)", "")
        reason = values.get("Reason", "") if state in WAITING else ""
        for one in expanded(id):
            yield Job(one, state, reason, None, number(values.get("Restarts", "")), nodes)


def parse_lines(text: str) -> Iterator[dict[str, str]]:
    """The key=value words of each line; of a key that comes twice (in a job's name) the first."""
    for line in text.splitlines():
        values: dict[str, str] = {}
        for word in line.split():
            key, given, value = word.partition("=")
            if given:
                values.setdefault(key, value)
        if values:
            yield values


def expanded(id: str) -> list[str]:
    """The tasks that an id stands for: `25_[0-2,7%4]` is 25_0, 25_1, 25_2 and 25_7."""
    job, _, tasks = id.partition("_[")
    if not tasks:
        return [id] if id else []
    found = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if bounds:  # a long list ends with "..."
            first, last, step = (int(bound) if bound else None for bound in bounds.groups())
            assert first is not None
            found += [f"{job}_{task}" for task in range(first, (last or first) + 1, step or 1)]
    return found


def number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def parse_time(text: str) -> int | None:
    """Seconds of `4:57`, `1:00:00` or `2-00:00:00`; None for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# -- the cluster -------------------------------------------------------------------------------------------------------


def settings(deadline: float) -> dict[str, str]:
    """`scontrol show config`: KillWait, MaxArraySize, PreemptType and the rest. Raises Silent."""
    pairs = (line.partition("=") for line in told("scontrol", "show", "config", deadline=deadline).splitlines())
    return {key.strip(): value.strip() for key, given, value in pairs if given}


def partitions(deadline: float) -> list[dict[str, str]]:
    """`scontrol show partition`: PartitionName, MaxTime, DefaultTime, PreemptMode, State, TotalNodes. Raises Silent."""
    return list(parse_lines(told("scontrol", "show", "partition", "--oneliner", deadline=deadline)))


def accounting(deadline: float) -> str:
    """Why `sacct` does not work; "" where it does."""
    try:
        told("sacct", "-X", "-o", "JobID,State,NodeList", "--parsable2", "-j", "1", deadline=deadline)
    except Silent as error:
        return str(error)
    return ""


def job_script(id: str, deadline: float) -> str:
    """The script of a job, with its #SBATCH lines. Raises Silent."""
    return told("scontrol", "write", "batch_script", id, "-", deadline=deadline)
