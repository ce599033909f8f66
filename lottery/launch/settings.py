"""The settings of lottery's launchers, as typed dataclasses with their checks. Torch-free.

The files in conf/hydra/launcher/ explain each key. `Slurm` extends the settings of hydra-submitit-launcher 1.2.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import II, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lottery.errors import ConfigError, cause


@dataclass
class Slurm(SlurmQueueConf):
    """Settings of the launcher that runs each study as a SLURM job."""

    _target_: str = "lottery.launch.settings.Slurm"
    wait: bool = True
    snapshot: bool = True
    name: str = II("name")
    submitit_folder: str = ".submitit"
    timeout_min: int = 240
    max_num_timeout: int = 1_000_000
    nodes: int = II("trainer.nodes")
    tasks_per_node: int = II("trainer.devices")
    cpus_per_task: int | None = 4
    mem_gb: float | None = None
    stderr_to_stdout: bool = True
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
        """Raise ConfigError for a setting that cannot work with the study `cfg`, and without SLURM's commands."""
        if missing := [command for command in ("sbatch", "srun", "squeue") if shutil.which(command) is None]:
            remedy = "use hydra/launcher=local, or submit from a login node of the cluster"
            raise ConfigError(f"hydra/launcher=slurm: no {missing[0]} on this machine; {remedy}")
        positive(self, "timeout_min", "signal_delay_s", "nodes", "tasks_per_node", "array_parallelism", "cpus_per_task")
        between, delay = cfg.train.checkpoint_minutes, self.signal_delay_s
        if self.timeout_min <= between + delay / 60:
            why = f"train.checkpoint_minutes={between:g} and hydra.launcher.signal_delay_s={delay}"
            expected = f"more than {between + delay / 60:g} minutes: {why}"
            raise ConfigError.of("hydra.launcher.timeout_min", self.timeout_min, expected)


@dataclass
class Local:
    """Settings of the launcher with workers on this machine, each of which runs one study after the other."""

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
        """Raise ConfigError for a setting that cannot work with the study `cfg`."""
        positive(self, "workers", "cpus_per_task", "gpus_per_worker")
        if cfg.trainer.nodes > 1:
            raise ConfigError.of("trainer.nodes", cfg.trainer.nodes, "1: hydra/launcher=local is this machine")


Settings = Slurm | Local
LAUNCHERS: dict[str, type[Settings]] = {"lottery.launch.settings.Slurm": Slurm, "lottery.launch.settings.Local": Local}


def register() -> None:
    """Register the schemas with Hydra."""
    for name, schema in {"slurm": Slurm, "local": Local}.items():
        ConfigStore.instance().store(group="schema/launcher", name=name, node=schema)


def settings_for(cfg: DictConfig, launcher: DictConfig) -> Any:
    """Return the launcher's checked settings for one study, resolved with the study's values. Raises ConfigError."""
    written = OmegaConf.to_container(launcher)
    root = OmegaConf.create({"hydra": {"launcher": written}})
    for key in re.findall(
        r"\$\{([A-Za-z_][\w.]*)\}", str(written)
    ):  # copying the whole configuration would take a while
        if (value := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(root, key, value)
    try:
        resolved = OmegaConf.to_container(root.hydra.launcher, resolve=True)
        found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LAUNCHERS[launcher._target_]), resolved))
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.launcher: {cause(error).partition(': ')[2]}") from error
    found.check(cfg)
    return found


def positive(settings: Settings, *names: str) -> None:
    """Raise ConfigError for the first of these settings that is set and below 1."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError.of(f"hydra.launcher.{name}", value, "a whole number ≥ 1")
