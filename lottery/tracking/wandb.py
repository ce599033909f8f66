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
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lottery.config import Config
from lottery.tracking.folder import Row
from lottery.tracking.wandb_guard import cause, check_room, end_service, harmless, process_state
from lottery.tracking.wandb_rows import artifact_name, curve_rows, publishable, round_row, summary, tags

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger
    from wandb import Run, Settings

LOG = logging.getLogger("lottery")

CONNECT_SECONDS = 30.0  # how long an online run may take to begin; WANDB_INIT_TIMEOUT overrides it
UPLOAD_SECONDS = 120.0  # how long its end may wait for uploads; `wandb sync` sends what is left


class WandbTracker:
    """One W&B run a study, its id the study's key: a study that is continued continues its run.

    Keys are fixed and the round is an axis: `round/test_accuracy`, `round/density/LAYER`, `round/probe/NAME`, and of a
    control `round/control/KIND-COPY/test_accuracy`, against `round`. Training curves (`curve/val_loss`,
    `curve/control/KIND-COPY/val_loss`, …) are drawn against `curve/total_step`: the tickets' trainings laid end to end,
    each control beside its ticket. `curve/round` and `curve/step` say which training and which step of it a point is.
    Each ticket's mask is a version, alias `round-007`, of one artifact of type `mask`.
    """

    patience = CONNECT_SECONDS + UPLOAD_SECONDS + 30.0  # seconds after which a call counts as hung

    def __init__(self, config: Config, key: str, folder: Path) -> None:
        self.config = config
        self.key = key
        self.folder = folder
        self.lost = False
        self._logger: WandbLogger | None = None
        self._process = ExitStack()
        self._own_service = False
        self._curve_start = self._curve_end = 0
        self._tickets: list[Row] = []

    @property
    def logger(self) -> WandbLogger:
        """Lightning's logger, once started."""
        assert self._logger is not None, "start() comes first"
        return self._logger

    # -- the tracker's four methods ---------------------------------------------------------------------------------

    def start(self, config_yaml: str) -> None:
        """Open the run, in the run folder's wandb/."""
        self._own_service = "WANDB_SERVICE" not in os.environ  # W&B's own sign of a session that somebody else began
        self._process.enter_context(process_state(self.folder / "wandb"))
        self._start(config_yaml)

    @harmless
    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None:
        """The training curve, the row, and for a ticket its mask."""
        if not row["control"]:
            self._curve_start = self._curve_end
            self._curve_end += max((point[0] for point in curve), default=row["steps"])
            self._tickets.append(row)
        for point in curve_rows(row, curve, self._curve_start):
            self.logger.log_metrics(point)
        self.logger.log_metrics(round_row(row))
        if not row["control"]:
            self._log_mask(row, mask)
        self._check_room()

    @harmless
    def figure(self, path: Path) -> None:
        """A figure, as an image."""
        self.logger.log_image(f"figure/{path.stem}", [str(path)])

    def close(self, status: str) -> None:
        """End the run and W&B's service process, and give back what they changed in this one."""
        self._finish(status)
        if self._own_service and sys.modules.get("wandb"):
            end_service(min(self.patience, 10.0))
        self._process.close()

    # -- what they are made of --------------------------------------------------------------------------------------

    @harmless
    def _start(self, config_yaml: str) -> None:
        from omegaconf import OmegaConf
        from pytorch_lightning.loggers import WandbLogger
        from pytorch_lightning.utilities.rank_zero import rank_zero_only

        # A study is one process; Lightning would take a task of `srun -n 4` for a worker that must not log.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        config = publishable(OmegaConf.to_container(OmegaConf.create(config_yaml), resolve=True))
        run = self._open_run(tags(config, self.config.tracker.tags))
        # Given a run, the logger does not make trainer/global_step the axis of everything.
        self._logger = WandbLogger(experiment=run)
        self.logger.log_hyperparams(config)
        run.define_metric("round")
        run.define_metric("round/*", step_metric="round")
        run.define_metric("curve/total_step")
        run.define_metric("curve/*", step_metric="curve/total_step")

    def _open_run(self, tags: list[str]) -> Run:
        """The study's run; recorded offline if the server cannot be reached."""
        import wandb

        own_log = logging.getLogger(
            "wandb"
        )  # where its file cannot be written, each line is a traceback on the terminal
        self._process.callback(own_log.setLevel, own_log.level)
        own_log.setLevel(logging.CRITICAL + 1)
        options = self.config.tracker
        mode = run_mode(options.mode, wandb.setup().settings)

        def init(mode: Any) -> Run:
            return wandb.init(
                id=self.key, resume="allow", mode=mode, settings=run_settings(), dir=str(self.folder), tags=tags,
                name=f"{self.config.name} seed {self.config.seed} ({self.key})",
                group=options.group or self.config.name, project=options.project, entity=options.entity,
            )  # fmt: skip

        try:
            return init(mode)
        except Exception as error:
            if mode != "online":
                raise
            LOG.warning("W&B: %s; recorded offline, `wandb sync` can send it later", cause(error))
            if self._own_service:  # in the old one the run's id is taken
                wandb.teardown()
            return init("offline")

    def _log_mask(self, row: Row, path: Path) -> None:
        """The mask file as a version of the study's artifact. W&B makes no copy of it: the run folder has it."""
        import wandb

        from lottery.ticket import read_metadata

        header = read_metadata(path)
        metadata = {
            "round": row["round"],
            "density": row["density"],
            "digest": header["digest"],
            "parent": header["parent"] or None,
            "study": header["study"],
        }
        artifact = wandb.Artifact(artifact_name(self.config.name, self.key), type="mask", metadata=metadata)
        artifact.add_file(str(path.resolve()), name=path.name, policy="immutable", skip_cache=True)
        self.logger.experiment.log_artifact(artifact, aliases=["latest", f"round-{row['round']:03d}"])

    @harmless
    def _finish(self, status: str) -> None:
        if self._logger is not None:
            self.logger.experiment.summary.update(summary(self._tickets))
            self.logger.experiment.finish(exit_code=0 if status == "finished" else 1)
            self._check_room()

    def _check_room(self) -> None:
        if (self.folder / "wandb").is_dir():  # there is none where W&B is disabled
            check_room(self.folder / "wandb")


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
