"""The command `python -m lottery sync RUN...`: send offline records to W&B, and the inputs of each study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.printing import say
from lottery.record.folders import runs_below
from lottery.record.names import CONFIG, WANDB
from lottery.tracking.lineage import TrackedRun, makers_under
from lottery.tracking.remote import Remote
from lottery.tracking.sending import Say, Upload

END_SECONDS = 10.0  # timeout for the end of W&B's service
ABOUT = """\
Send to Weights & Biases what studies recorded offline: their rows, figures and masks, and as lineage the masks and the
weights that they took from other studies. What was sent is not sent again. RUN: a run folder, or a folder of them."""


def sync(args: list[str]) -> int:
    """Run `sync ARGS`. Returns 1 where a study could not be sent because it is running."""
    parser = CommandParser("sync", ABOUT)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent; needs no network and no login")
    parser.add_argument("--project", help="default: the study's tracker.project")
    parser.add_argument("--entity", help="default: the study's tracker.entity, else your own")
    asked = parser.parse_args(args)
    runs = list(dict.fromkeys(run for path in asked.runs for run in runs_in(path)))
    makers = {folder: makers_under(folder) for folder in {run.path.parents[1] for run in runs}}
    uploads = [Upload.of(run, makers[run.path.parents[1]], asked.project, asked.entity) for run in runs]
    if asked.dry_run:
        for upload in uploads:
            say(f"{upload.run.path}: {upload.outcome(upload.left(), 'to send')}")
        return 0
    with session():
        return send(uploads, Remote, say)


@contextmanager
def session() -> Iterator[None]:
    """Keep W&B's files in a temporary folder within the context. Raises LotteryError where W&B has no key."""
    import wandb

    from lottery.tracking.wandb import logged_in
    from lottery.tracking.wandb_guard import end_service, process_state

    with TemporaryDirectory() as folder, process_state(Path(folder) / WANDB):
        try:
            if not logged_in(wandb.setup().settings):
                raise LotteryError("not logged in to W&B (`wandb login` or WANDB_API_KEY): nothing was sent")
            yield
        finally:
            end_service(END_SECONDS)


def runs_in(path: Path) -> list[TrackedRun]:
    """Return the runs at or below a folder. Raises ConfigError where there is none."""
    found = [TrackedRun(folder) for folder in runs_below(path) if (folder / CONFIG).is_file()]
    if not found:
        raise ConfigError.of("RUN", str(path), "a run folder (runs/NAME/KEY), or a folder of them (runs/NAME)")
    return found


def send(uploads: Sequence[Upload], connect: Callable[[str, str | None], Remote], say: Say) -> int:
    """Send the items that each study made, then the inputs of each study. Returns the exit status.

    Raises LotteryError at the first failure; the items sent so far stay recorded as sent.
    """
    remotes = {place: connect(*place) for place in dict.fromkeys(upload.place for upload in uploads if upload.left())}
    for remote in remotes.values():
        remote.reach()
    free = []
    for upload in uploads:
        with upload.study_free(say) as ours:
            if ours:
                free.append(upload)
                if upload.place in remotes:
                    upload.send_made(remotes[upload.place])
    for upload in free:
        if upload.place in remotes:
            upload.send_used(remotes[upload.place], say)
        say(f"{upload.run.path}: {upload.outcome(upload.count, 'sent')}")
    return 0 if len(free) == len(uploads) else 1
