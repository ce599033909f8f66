"""What a user can set of our launchers, as typed dataclasses, and the checks that need neither. Torch-free.

The files of conf/hydra/launcher/ say what each key means. SLURM's are those of hydra-submitit-launcher, and what its
version 1.2 leaves out.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import II, DictConfig, OmegaConf

from lottery.errors import ConfigError

FOREVER = 1_000_000  # how often a job may reach its time limit and be continued


@dataclass
class Slurm(SlurmQueueConf):
    """A SLURM job for each study."""

    _target_: str = "lottery.launch.settings.Slurm"
    wait: bool = True
    snapshot: bool = True
    name: str = II("name")
    submitit_folder: str = ".submitit"
    timeout_min: int = 240
    signal_delay_s: int = 120
    max_num_timeout: int = FOREVER
    nodes: int = II("trainer.nodes")
    tasks_per_node: int = II("trainer.devices")
    cpus_per_task: int | None = 4
    mem_gb: float | None = None
    stderr_to_stdout: bool = True
    array_parallelism: int = 256
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    teardown: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)
    nodelist: str | None = None
    dependency: str | None = None
    exclusive: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    wckey: str | None = None
    python: str | None = None

    executor = "slurm"

    def check(self, cfg: DictConfig) -> None:
        """Raise ConfigError for a setting that cannot work, for the study `cfg`."""
        missing = [command for command in ("sbatch", "srun", "squeue") if shutil.which(command) is None]
        if missing:
            raise ConfigError(
                f"hydra/launcher=slurm: no {missing[0]} on this machine; use hydra/launcher=local, or submit from a "
                "login node of the cluster"
            )
        positive(self, "timeout_min", "signal_delay_s", "nodes", "tasks_per_node", "array_parallelism", "cpus_per_task")
        between, needed = cfg.train.checkpoint_minutes, cfg.train.checkpoint_minutes + self.signal_delay_s / 60
        if self.timeout_min <= needed:
            raise ConfigError.of(
                "hydra.launcher.timeout_min",
                self.timeout_min,
                f"more than {needed:g} minutes: train.checkpoint_minutes={between:g} and "
                f"hydra.launcher.signal_delay_s={self.signal_delay_s}",
            )


@dataclass
class Local:
    """Worker processes on this machine, each of which runs one study after the other."""

    _target_: str = "lottery.launch.settings.Local"
    wait: bool = True
    snapshot: bool = True
    workers: int = 2
    cpus_per_task: int | None = None
    gpus_per_worker: int = II("trainer.devices")
    submitit_folder: str = ".submitit"
    python: str | None = None

    executor = "local"

    def check(self, cfg: DictConfig) -> None:
        """Raise ConfigError for a setting that cannot work, for the study `cfg`."""
        positive(self, "workers", "cpus_per_task", "gpus_per_worker")
        if cfg.trainer.nodes > 1:
            raise ConfigError.of("trainer.nodes", cfg.trainer.nodes, "1: hydra/launcher=local is this machine")


Settings = Slurm | Local
LAUNCHERS: dict[str, type[Settings]] = {"lottery.launch.settings.Slurm": Slurm, "lottery.launch.settings.Local": Local}


def register() -> None:
    """Tell Hydra the schemas."""
    for name, schema in {"slurm": Slurm, "local": Local}.items():
        ConfigStore.instance().store(group="schema/launcher", name=name, node=schema)


def settings_for(cfg: DictConfig, launcher: DictConfig) -> Settings:
    """The launcher's settings for one study, whose values they may refer to. Raises OmegaConfBaseException."""
    written = OmegaConf.to_container(launcher)
    root = OmegaConf.create({"hydra": {"launcher": written}})
    for key in re.findall(r"\$\{([A-Za-z_][\w.]*)\}", str(written)):  # not all of it: that takes a while
        if (value := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(root, key, value)
    resolved = OmegaConf.to_container(root.hydra.launcher, resolve=True)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LAUNCHERS[launcher._target_]), resolved))  # type: ignore[return-value]


def positive(settings: Settings, *names: str) -> None:
    """Raise ConfigError for the first of these settings that is there and below 1."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError.of(f"hydra.launcher.{name}", value, "a whole number ≥ 1")
