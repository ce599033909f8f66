"""A sweep (`-m`): a study for each combination of values, all of them checked before the first one starts.

The studies run one after the other, here, or with a launcher (hydra/launcher=NAME) wherever that puts them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lottery.compose import checked, choose_, composed, explained, groups, hydra_opened, is_hydra
from lottery.errors import ConfigError
from lottery.launch.settings import LAUNCHERS, register
from lottery.run import reported, run, stop_on_signals
from lottery.training.signals import StopFlag

CHOICES = ", ".join(f"hydra/launcher={name}" for name in ("slurm", "slurm_preempt", "local"))

Job = list[str]  # the overrides of one study


def sweep(overrides: Sequence[str], config_dir: str | None, stop: StopFlag) -> int:
    """Run the studies of a sweep. A failed one stops no other; the exit status is the highest of theirs.

    Raises ConfigError, before anything is written, if any of the configurations is wrong.
    """
    jobs, hydra = planned(overrides, config_dir)
    studies = [[override for override in job if not is_hydra(override)] for job in jobs]
    composer = Composer(config_dir)
    configs = [composer(study) for study in studies]
    if hydra.launcher._target_ in LAUNCHERS:
        from lottery.launch.launcher import job_of, launch

        check_hydra(overrides, "has no effect with this launcher: it has hydra.launcher.KEY", "hydra.launcher.")
        planned_jobs = list(map(job_of, labels(studies), studies, configs))
        return launch(hydra, overrides, planned_jobs, configs, config_dir, stop)
    if not hydra.launcher._target_.endswith("BasicLauncher"):
        return launched(overrides, config_dir)
    check_hydra(overrides, "has no effect without a launcher; run folders are set by paths.runs")
    return in_turn(labels(studies), configs, stop)


def check_hydra(overrides: Sequence[str], otherwise: str, *allowed: str) -> None:
    """Raise ConfigError for an override that is about Hydra itself, but for the launcher, the values to sweep over,
    and what begins with one of the words `allowed`."""
    for override in overrides:
        meant = override.lstrip("+~").startswith(("hydra/launcher", "hydra.sweeper.params", *allowed))
        if is_hydra(override) and not meant:
            raise ConfigError(f"{override}: {otherwise}")


def planned(overrides: Sequence[str], config_dir: str | None) -> tuple[list[Job], DictConfig]:
    """The jobs, and Hydra's own configuration."""
    register()
    try:
        with hydra_opened(config_dir), explained(overrides, config_dir):
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            parsed = parser.parse_overrides(list(overrides))
            first = compose("config", overrides=combinations(parsed)[0], return_hydra_config=True)
            given = {override.get_key_element() for override in parsed}
            params: dict[str, Any] = first.hydra.sweeper.get("params") or {}
            added = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in given])
            return combinations([*added, *parsed]), first.hydra
    except ConfigError:
        check_launcher(overrides, config_dir)
        raise


def launcher_of(overrides: Sequence[str], config_dir: str | None) -> str:
    """The `_target_` of the launcher that is chosen, here or by an experiment; its settings are left out."""
    others = [override for override in overrides if not override.lstrip("+~").startswith("hydra.launcher.")]
    return str(planned(others, config_dir)[1].launcher._target_)


def check_launcher(overrides: Sequence[str], config_dir: str | None) -> None:
    """Raise ConfigError where what is wrong is a launcher's setting without a launcher."""
    of_launcher = [override for override in overrides if override.lstrip("+~").startswith("hydra.launcher.")]
    if of_launcher and launcher_of(overrides, config_dir).endswith("BasicLauncher"):
        raise ConfigError(f"{of_launcher[0]}: has no effect without a launcher: {CHOICES}")


def combinations(overrides: Sequence[Override]) -> list[Job]:
    """Every combination of the swept values, the last override changing fastest, as Hydra's own sweeper orders them."""
    values = []
    for override in overrides:
        if not override.is_sweep_override():
            values.append([override.input_line or ""])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            if is_hydra(key):
                raise ConfigError(f"{override.input_line}: a launcher and its settings are the same for a whole sweep")
            values.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ConfigError(f"{override.input_line}: a sweep needs values one by one, such as seed=0,1,2 or range(3)")
    return [list(job) for job in product(*values)]


class Composer:
    """`composed` for many studies that have much in common: Hydra is asked once for each choice of groups.

    Single keys are then set as Hydra sets them. Whatever is out of the ordinary, or wrong, goes to `composed`.
    """

    def __init__(self, config_dir: str | None = None) -> None:
        self.config_dir = config_dir
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The checked configuration of these overrides. Raises ConfigError."""
        try:
            cfg = self._set(overrides)
        except (ConfigError, HydraException, OmegaConfBaseException):
            cfg = None
        return composed(overrides, self.config_dir) if cfg is None else checked(cfg, self.config_dir)

    def _set(self, overrides: Sequence[str]) -> DictConfig | None:
        """The configuration, not yet checked; None where Hydra has to be asked."""
        known, choices, keys = groups(self.config_dir), [], []
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.key_or_group in known:
                if not isinstance(override.value(), str):
                    return None
                choices.append(override.input_line or "")
            elif override.type is not None and override.type.name == "CHANGE" and override.package is None:
                keys.append(override)
            else:
                return None
        cfg = copy.deepcopy(self._base(tuple(choices)))
        for override in keys:
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        choose_(cfg, overrides, self.config_dir)
        return cfg

    def _base(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._bases:
            with hydra_opened(self.config_dir):
                self._bases[choices] = compose("config", overrides=list(choices))
        return self._bases[choices]


def labels(jobs: Sequence[Job]) -> list[str]:
    """What distinguishes each job from the others."""
    common = set(jobs[0]).intersection(*jobs)
    return [" ".join(override for override in job if override not in common) for job in jobs]


def in_turn(names: Sequence[str], configs: Sequence[DictConfig], stop: StopFlag) -> int:
    """One study after the other, in this process."""
    statuses: list[int] = []
    for name, cfg in zip(names, configs, strict=True):
        print(f"[{len(statuses) + 1}/{len(configs)}] {name}".rstrip(), flush=True)
        statuses.append(reported(lambda cfg=cfg: run(cfg, stop), name))  # type: ignore[misc]
        if statuses[-1] >= 128:  # interrupted: the rest too
            break
    print(f"{statuses.count(0)} of {len(configs)} studies done")
    return max(statuses)


def launched(overrides: Sequence[str], config_dir: str | None) -> int:
    """Let a launcher of Hydra's run the jobs, each a process of its own."""
    with hydra_opened(config_dir):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        batches = hydra.multirun("config", launched_job, list(overrides), with_log_configuration=False)
    jobs = [job for batch in batches or [] for job in batch]
    for job in jobs:
        if job.return_value:  # what it printed is in the launcher's log
            logs = job.hydra_cfg.hydra.runtime.output_dir
            print(f"lottery: {' '.join(job.overrides)}: exit status {job.return_value}; see {logs}", file=sys.stderr)
    return max((job.return_value for job in jobs), default=0)


def launched_job(cfg: DictConfig) -> int:
    """One study under a launcher of Hydra's; its exit status."""

    def work() -> int:
        choose_(cfg, HydraConfig.get().overrides.task)
        return run(checked(cfg), stop)

    with stop_on_signals() as stop:
        return reported(work)
