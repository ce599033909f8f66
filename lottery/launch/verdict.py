"""What has become of a study, judged from its status.json, its process and its job. Pure functions.

The record alone cannot say that a study was killed: whoever is killed writes nothing. And it says nothing of a job that
still waits in the queue, for the first time or again.
"""

from __future__ import annotations

from lottery.launch.record import Outcome
from lottery.launch.scheduler import Job
from lottery.tracking.status import Status

# What is wrong first, as a summary counts them.
STATES = (
    "failed", "killed", "gone", "cancelled", "interrupted", "running", "waiting", "starting", "queued",
    "unknown", "done",
)  # fmt: skip

Verdict = tuple[str, str]  # one of STATES, and why


def verdict(
    recorded: Status | None, id: str, job: Job | None, gone: bool, alive: bool | None, outcome: Outcome | None = None
) -> Verdict:
    """The state of a study, and what there is to say about it.

    `id` names the scheduler's latest job for the study ("" if there is none), `job` is what is known of it, `gone`
    whether it certainly neither waits nor runs. `alive` says whether the process that wrote `recorded` still runs, None
    where that cannot be told from here. `outcome` is what its sweep says of its end.
    """
    if recorded is not None and recorded.state == "done":
        return "done", ""
    if recorded is None:
        return never_began(job, gone, outcome)
    if recorded.state == "running" and alive:
        return ("waiting", recorded.waiting) if recorded.waiting else ("running", "")
    if job is not None and job.waiting:
        return "queued", job.reason
    own = bool(id) and recorded.job == id
    if job is not None and job.live and not (own and recorded.restarts >= job.restarts):
        return "starting", ""  # a later run than the one that wrote the record
    if job is not None and job.state == "CANCELLED" and own:
        return "cancelled", recorded.cause or ""
    if recorded.state == "interrupted" and outcome is not None and outcome.status:
        return "failed", outcome.cause  # in a later run, which did not come to the point of saying so itself
    if recorded.state != "running":
        return recorded.state, recorded.cause or ""
    if alive is False or (gone and own):
        said = outcome.cause if outcome else ""
        return "killed", said or (f"its job ended as {job.state}" if job and not job.live else "its process is gone")
    return ("waiting", recorded.waiting) if recorded.waiting else ("running", "")


def never_began(job: Job | None, gone: bool, outcome: Outcome | None) -> Verdict:
    """Of a study that has written nothing."""
    if job is not None and job.live:
        return ("queued", job.reason) if job.waiting else ("starting", "")
    if outcome is not None:
        return ("failed", outcome.cause) if outcome.status else ("done", "")
    if job is None:
        return ("gone", "its job has ended, and it never began") if gone else ("unknown", "")
    if job.state == "CANCELLED":
        return "cancelled", "before it began"
    return "failed", f"its job ended as {job.state} before it began"
