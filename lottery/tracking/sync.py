"""`python -m lottery sync RUN...`: send to W&B what was recorded offline, and what each study took from others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.tracking.lineage import Study, makers_under
from lottery.tracking.remote import Remote, WandbRemote
from lottery.tracking.sending import Job, Say

END_SECONDS = 10.0  # what W&B's service may take to end
ABOUT = """\
Send to Weights & Biases what studies recorded offline: their rows, figures and masks, and as lineage the masks and the
weights that they took from other studies. What was sent is not sent again. RUN: a run folder, or a folder of them."""


def sync(args: list[str]) -> int:
    """The command. Exit status 1 where a study runs, and could not be sent for that."""
    parser = CommandParser("sync", ABOUT)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent; needs no network and no login")
    parser.add_argument("--project", help="default: the study's tracker.project")
    parser.add_argument("--entity", help="default: the study's tracker.entity, else your own")
    asked = parser.parse_args(args)
    studies = list(dict.fromkeys(study for run in asked.runs for study in studies_in(run)))
    makers = {runs: makers_under(runs) for runs in {study.folder.parents[1] for study in studies}}
    jobs = [Job.of(study, makers[study.folder.parents[1]], asked.project, asked.entity) for study in studies]
    if asked.dry_run:
        for job in jobs:
            print(f"{job.study.folder}: {job.outcome(job.left(), 'to send')}")
        return 0
    with session():
        return send(jobs, WandbRemote, print)


@contextmanager
def session() -> Iterator[None]:
    """W&B, logged in, with its own files where they go away again. Raises LotteryError where there is no key."""
    import wandb

    from lottery.tracking.wandb import logged_in
    from lottery.tracking.wandb_guard import end_service, process_state

    with TemporaryDirectory() as folder, process_state(Path(folder) / "wandb"):
        try:
            if not logged_in(wandb.setup().settings):
                raise LotteryError("not logged in to W&B (`wandb login` or WANDB_API_KEY): nothing was sent")
            yield
        finally:
            end_service(END_SECONDS)


def studies_in(run: Path) -> list[Study]:
    """The study of a run folder, or all studies in a folder. Raises ConfigError where there is none."""
    folders = [run] if (run / "config.yaml").is_file() else [path.parent for path in sorted(run.glob("*/config.yaml"))]
    if not folders:
        raise ConfigError.of("RUN", str(run), "a run folder (runs/NAME/KEY), or a folder of them (runs/NAME)")
    return [Study(folder) for folder in folders]


def send(jobs: Sequence[Job], connect: Callable[[str, str | None], Remote], say: Say) -> int:
    """What each study made, then what each took from the others; the exit status.

    A failure is raised at once, as LotteryError; what was sent until then is remembered.
    """
    remotes = {place: connect(*place) for place in dict.fromkeys(job.place for job in jobs if job.left())}
    for remote in remotes.values():
        remote.reach()
    free = []
    for job in jobs:
        with job.study_free(say) as ours:
            if ours:
                free.append(job)
                if job.place in remotes:
                    job.send_made(remotes[job.place])
    for job in free:
        if job.place in remotes:
            job.send_used(remotes[job.place], say)
        say(f"{job.study.folder}: {job.outcome(job.count, 'sent')}")
    return 0 if len(free) == len(jobs) else 1
