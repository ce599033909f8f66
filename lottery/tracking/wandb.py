"""W&B, through Lightning's logger: a mirror of the run folder, which a study can lose and go on.

Offline unless the user is logged in or asks for online. Whatever happens to W&B (it cannot be imported, its service is
killed or hangs, its disk is full, the network is gone) costs one line of warning, and the mirror.
"""

from __future__ import annotations

import logging
import netrc
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lottery.config import Tracker
from lottery.errors import cause
from lottery.tracking.sink import Figures, MaskFile, Recorded, RunInfo
from lottery.tracking.wandb_guard import check_room, end_service, process_state
from lottery.tracking.wandb_log import contents, recorded

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger
    from wandb import Run, Settings

LOG = logging.getLogger("lottery")

CONNECT_SECONDS = 30.0  # how long an online run may take to begin; WANDB_INIT_TIMEOUT overrides it
UPLOAD_SECONDS = 120.0  # how long its end may wait for uploads; `wandb sync` sends what is left
FLUSH_SECONDS = 5.0  # how long the end waits for the last rows to be in W&B's file; ten times its interval


class WandbSink:
    """One W&B run a study, its id the study's key; each time the study ran is a segment of it, a folder in wandb/."""

    label = "W&B"
    patience = CONNECT_SECONDS + UPLOAD_SECONDS + 30.0

    def __init__(self, options: Tracker, key: str, folder: Path) -> None:
        self.options, self.key, self.folder = options, key, folder
        self.keeps = True
        self._logger: WandbLogger | None = None
        self._process = ExitStack()
        self._own_service = False

    @property
    def logger(self) -> WandbLogger:
        """Lightning's logger, once the run is open."""
        assert self._logger is not None, "open() comes first"
        return self._logger

    # -- the sink's calls -------------------------------------------------------------------------------------------

    def enter(self) -> None:
        self._own_service = "WANDB_SERVICE" not in os.environ  # W&B's own sign of a session that somebody else began
        self._process.enter_context(process_state(self.folder))

    def recorded(self) -> Recorded:
        return recorded(self.folder, self.key, self.options.project, self.options.entity)

    def open(self, run: RunInfo) -> None:
        from pytorch_lightning.loggers import WandbLogger
        from pytorch_lightning.utilities.rank_zero import rank_zero_only

        # A study is one process; Lightning would take a task of `srun -n 4` for a worker that must not log.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        opened = self._open_run(run)
        self.keeps = not opened.disabled
        # Given a run, the logger does not make trainer/global_step the axis of everything.
        self._logger = WandbLogger(experiment=opened)
        self.logger.log_hyperparams(run.config)
        opened.define_metric("round")
        opened.define_metric("round/*", step_metric="round")
        opened.define_metric("curve/total_step")
        opened.define_metric("curve/*", step_metric="curve/total_step")
        opened.define_metric("search/step")
        opened.define_metric("search/*", step_metric="search/step")

    def metrics(self, figures: Figures) -> None:
        self.logger.log_metrics(figures)

    def image(self, key: str, path: Path) -> None:
        import wandb

        self.logger.experiment.log({key: wandb.Image(str(path))})

    def artifact(self, mask: MaskFile, metadata: dict[str, Any]) -> None:
        """W&B makes no copy of the file: the run folder has it."""
        import wandb

        artifact = wandb.Artifact(mask.artifact, type="mask", metadata=metadata)
        artifact.add_file(str(mask.path.resolve()), name=mask.path.name, policy="immutable", skip_cache=True)
        self.logger.experiment.log_artifact(artifact, aliases=["latest", mask.alias])
        self._check_room()

    def summary(self, figures: Figures) -> None:
        self.logger.experiment.summary.update(dict(figures))

    def close(self, exit_code: int) -> None:
        """W&B's own finish() returns before the last rows are in the file."""
        run = self.logger.experiment
        run.finish(exit_code=exit_code)
        until = monotonic() + FLUSH_SECONDS
        while self.keeps and contents(Path(run.settings.sync_file))["exit"] is None and monotonic() < until:
            sleep(0.05)
        self._check_room()

    def leave(self, seconds: float) -> None:
        if self._own_service and sys.modules.get("wandb"):
            end_service(seconds)
        self._process.close()

    # -- what they are made of --------------------------------------------------------------------------------------

    def _open_run(self, run: RunInfo) -> Run:
        """The study's run; recorded offline if the server cannot be reached."""
        import wandb

        # Where its file cannot be written, each line of W&B's log would be a traceback on the terminal.
        own_log = logging.getLogger("wandb")
        self._process.callback(own_log.setLevel, own_log.level)
        own_log.setLevel(logging.CRITICAL + 1)
        mode = run_mode(self.options.mode, wandb.setup().settings)

        def init(mode: Any) -> Run:
            return wandb.init(
                id=run.key, resume="allow", mode=mode, settings=run_settings(), dir=str(self.folder.parent),
                name=run.name, group=run.group, tags=run.tags,
                project=self.options.project, entity=self.options.entity,
            )  # fmt: skip

        try:
            return init(mode)
        except Exception as error:
            if mode != "online":
                raise
            LOG.warning("W&B: %s; recorded offline, `python -m lottery sync` sends it later", cause(error))
            if self._own_service:  # in the old one the run's id is taken
                wandb.teardown()
            return init("offline")

    def _check_room(self) -> None:
        if self.keeps:
            check_room(self.folder)


def run_settings() -> Settings:
    """What W&B may record of this machine, and how long it may take."""
    import wandb

    return wandb.Settings(
        console="off", silent=True, save_code=False, disable_code=True, disable_git=True, x_disable_meta=True,
        x_disable_machine_info=True, x_disable_stats=True, x_save_requirements=False,
        reinit="create_new",  # a run that the user has open in this process is left alone
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", CONNECT_SECONDS)),
        finish_timeout=UPLOAD_SECONDS, finish_timeout_raises=True,
        x_transaction_log_flush_interval=0.5,  # seconds of figures that a kill may lose
    )  # fmt: skip


def run_mode(wanted: str, settings: Any) -> str:
    """W&B's mode for `tracker.mode`; `auto` is what WANDB_MODE or `wandb offline` say, else online if logged in."""
    key = logged_in(settings)
    if wanted == "auto":
        said = "WANDB_MODE" in os.environ or settings.mode != "online"
        wanted = settings.mode if said else "online" if key else "offline"
    if wanted == "online" and not key:  # W&B would ask for the key and wait for an answer
        LOG.warning("W&B: not logged in (`wandb login` or WANDB_API_KEY), recorded offline")
        return "offline"
    return wanted


def logged_in(settings: Any) -> bool:
    """Whether a key for the W&B server is at hand; looked up without network."""
    if settings.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
    return logins.authenticators(urlsplit(settings.base_url).netloc) is not None
