"""Record a study in W&B through Lightning's logger. The study continues if W&B fails.

Without a login the study is recorded offline. Any failure of W&B (it cannot be imported, its service is killed or
hangs, its disk is full, the network is gone) costs one line of warning, and the mirror.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from lottery.config import Tracker
from lottery.errors import cause
from lottery.tracking.items import CHARTS, MORE, Artifact, Image, Item, Metrics, RunInfo, Table
from lottery.tracking.wandb_guard import check_room, end_service, process_state
from lottery.tracking.wandb_log import Recorded, contents, place, recorded

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger
    from wandb import Artifact as Logged
    from wandb import Run, Settings

LOG = logging.getLogger("lottery")

Policy = Literal["mutable", "immutable"]

CONNECT_SECONDS = 30.0  # timeout for the start of an online run; WANDB_INIT_TIMEOUT overrides it
UPLOAD_SECONDS = 120.0  # timeout for uploads at the end of a run; `wandb sync` sends the rest
FLUSH_SECONDS = 5.0  # timeout for the last rows to reach W&B's file; ten times its flush interval


class WandbSink:
    """One W&B run a study, whose id is the study's key. Each run of the study adds a segment, a folder in wandb/.

    Call `open` before recording; `leave` may be called at any time. Callers must handle any exception, and hangs, of
    all methods but `leave`, which raises nothing and returns within about its argument's seconds.
    """

    label = "W&B"  # name in warnings
    patience = CONNECT_SECONDS + UPLOAD_SECONDS + 30.0  # seconds after which a call counts as hung

    def __init__(self, options: Tracker, key: str, folder: Path) -> None:
        self.options, self.key, self.folder = options, key, folder
        self.keeps = True  # whether items are recorded; False where W&B is disabled
        self.logger: WandbLogger  # Lightning's, once the run is open
        self._process = ExitStack()
        self._own_service = False

    # -- the sink's calls -------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Prepare this process for W&B (see `process_state`)."""
        self._own_service = "WANDB_SERVICE" not in os.environ  # W&B sets it for a session begun by another process
        self._process.enter_context(process_state(self.folder))

    def recorded(self) -> Recorded:
        """Read the items on record from earlier runs of the study, and those of this run that are on disk."""
        return recorded(self.folder, self.key, self.options.project, self.options.entity)

    def open(self, run: RunInfo) -> None:
        """Begin or continue the study's run."""
        import lottery.training.lightning  # noqa: F401, I001 - before Lightning, in `sync` too
        from pytorch_lightning.loggers import WandbLogger
        from pytorch_lightning.utilities.rank_zero import rank_zero_only

        # A study is one process, but Lightning would take a task of `srun -n 4` for a worker that must not log.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        opened = self._open_run(run)
        self.keeps = not opened.disabled
        # With a given run, the logger does not make trainer/global_step the axis of all figures.
        self.logger = WandbLogger(experiment=opened)
        self.logger.log_hyperparams(run.config)
        for axis, (prefix, _) in CHARTS.items():
            opened.define_metric(axis, hidden=True)
            opened.define_metric(f"{prefix}*", step_metric=axis)
            opened.define_metric(f"{MORE}{prefix}*", step_metric=axis, hidden=True)
        for name in ("curve/step", "curve/round"):
            opened.define_metric(name, step_metric="curve/total_step", hidden=True)

    def take(self, item: Item) -> None:
        """Record an item, without a step: W&B numbers the rows itself."""
        import wandb

        if isinstance(item, Metrics):
            self.logger.log_metrics(item.figures)
        elif isinstance(item, Image):
            self.logger.experiment.log({item.key: wandb.Image(str(item.path))})
        elif isinstance(item, Table):
            self.logger.experiment.log({item.key: wandb.Table(columns=[*item.columns], data=item.rows)})
        else:
            log_artifact(self.logger.experiment, item, "immutable")  # no copy: the run folder has the file
            self._check_room()

    def summary(self, figures: Mapping[str, float]) -> None:
        """Record the figures that summarize the study."""
        self.logger.experiment.summary.update(dict(figures))

    def close(self, exit_code: int) -> None:
        """End the run, and wait up to FLUSH_SECONDS until all is on disk, which is after W&B's finish() returns."""
        run = self.logger.experiment
        run.finish(exit_code=exit_code)
        until = monotonic() + FLUSH_SECONDS
        while self.keeps and contents(Path(run.settings.sync_file))["exit"] is None and monotonic() < until:
            sleep(0.05)
        self._check_room()

    def leave(self, seconds: float) -> None:
        """End W&B's service, by force if it does not answer, and undo W&B's changes to this process."""
        if self._own_service and sys.modules.get("wandb"):
            end_service(seconds)
        self._process.close()

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _open_run(self, run: RunInfo) -> Run:
        """Open the study's run, offline if the server cannot be reached."""
        import wandb

        # If W&B's log file is not writable, each line of the log would cause a traceback on the terminal.
        own_log = logging.getLogger("wandb")
        self._process.callback(own_log.setLevel, own_log.level)
        own_log.setLevel(logging.CRITICAL + 1)
        mode = run_mode(self.options.mode, wandb.setup().settings)

        key, project, entity = place(run.key, self.options.project, self.options.entity)

        def init(mode: Any) -> Run:
            return wandb.init(
                id=key, resume="allow", mode=mode, settings=run_settings(commit()),
                dir=str(self.folder.parent), name=run.name, group=run.group, job_type=run.job, tags=run.tags,
                project=project, entity=entity,
            )  # fmt: skip

        try:
            return init(mode)
        except Exception as error:
            if mode != "online":
                raise
            LOG.warning("W&B: %s; recorded offline, `python -m lottery sync` sends it later", cause(error))
            if self._own_service:  # the run's id is taken in the old service
                wandb.teardown()
            return init("offline")

    def _check_room(self) -> None:
        if self.keeps:
            check_room(self.folder)


def log_artifact(run: Run, artifact: Artifact, policy: Policy = "mutable") -> Logged:
    """Log an artifact as made by a run, under its alias."""
    return run.log_artifact(package(artifact, policy), aliases=["latest", artifact.alias])


def package(artifact: Artifact, policy: Policy = "mutable") -> Logged:
    """Build W&B's artifact, of the mask's file or a JSON file of facts. W&B copies mutable files before the upload."""
    import wandb

    made = wandb.Artifact(artifact.name, type=artifact.type, metadata=artifact.metadata())
    if artifact.path:
        made.add_file(str(artifact.path.resolve()), name=artifact.path.name, policy=policy, skip_cache=True)
    else:
        with made.new_file(f"{artifact.type}.json", encoding="utf-8") as file:
            file.write(json.dumps(artifact.facts, indent=1, sort_keys=True) + "\n")
    return made


def commit() -> str | None:
    """Return the git commit of the current folder, or of lottery's own checkout; None without git."""
    for folder in (Path.cwd(), Path(__file__).parent):
        with suppress(OSError, subprocess.SubprocessError):
            command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
            return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=5).stdout.strip()
    return None


def run_settings(git_commit: str | None = None) -> Settings:
    """Return settings that keep facts on this machine out of W&B's records, and limit its waiting times.

    The load of processor, memory and GPU is recorded, and the git commit, but neither its remote nor changed files.
    """
    import wandb

    return wandb.Settings(
        console="off", silent=True, save_code=False, disable_code=True, disable_git=True, git_commit=git_commit,
        x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
        reinit="create_new",  # leave alone a run that the user has open in this process
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", CONNECT_SECONDS)),
        finish_timeout=UPLOAD_SECONDS, finish_timeout_raises=True,
        x_transaction_log_flush_interval=0.5,  # seconds of data that a kill may lose
    )  # fmt: skip


def run_mode(wanted: str, settings: Any) -> str:
    """Return W&B's mode for `tracker.mode`. `auto`: by WANDB_MODE or `wandb offline`, else online if logged in."""
    key = logged_in(settings)
    if wanted == "auto":
        said = "WANDB_MODE" in os.environ or settings.mode != "online"
        wanted = settings.mode if said else "online" if key else "offline"
    if wanted == "online" and not key:  # W&B would ask for the key and wait for an answer
        LOG.warning("W&B: not logged in (`wandb login` or WANDB_API_KEY), recorded offline")
        return "offline"
    return wanted


def logged_in(settings: Any) -> bool:
    """Whether a key for the W&B server is available on this machine; uses no network."""
    if settings.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
    return logins.authenticators(urlsplit(settings.base_url).netloc) is not None
