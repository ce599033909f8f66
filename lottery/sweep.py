"""Run a sweep (`-m`): a study for each combination of values, all of them checked before the first one starts.

The studies run one after the other in this process, or under a launcher (hydra/launcher=NAME).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from lottery.analysis.seeds import seed_lines
from lottery.combine import Composer, combinations, labels
from lottery.compose import composed, explained, groups, hydra_opened, is_hydra
from lottery.config import study_key
from lottery.errors import ConfigError, reported
from lottery.launch.settings import LAUNCHERS, register
from lottery.overrides import as_written
from lottery.preset import compose_preset
from lottery.printing import say
from lottery.record.status import finished
from lottery.runner import run_composed
from lottery.signals import StopFlag, stop_on_signals

CHOICES = ", ".join(f"hydra/launcher={name}" for name in ("slurm", "slurm_preempt", "local"))

SWEEPERS = (
    "only Hydra's own sweeper and optuna; list the values (method.rate=0.1,0.2,0.3), or let `wandb agent` choose them"
)


def sweep(overrides: Sequence[str], config_dir: str | None, stop: StopFlag) -> int:
    """Run the studies of a sweep, and return their highest exit status. A failed study does not stop the others.

    Raises ConfigError, before anything is written, if any of the configurations is wrong.
    """
    for override in overrides:
        if override.lstrip("+").startswith("hydra/sweeper=") and not override.endswith(("=basic", "=optuna")):
            raise ConfigError(f"{override}: {SWEEPERS}")
    if any(override.lstrip("+") == "hydra/sweeper=optuna" for override in overrides):
        from lottery.tuning import tuned

        return tuned(overrides, config_dir, stop)
    jobs, hydra = planned(overrides, config_dir)
    studies = [[override for override in job if not is_hydra(override)] for job in jobs]
    names, configs = labels(studies), list(map(Composer(config_dir), studies))
    if hydra.launcher._target_ in LAUNCHERS:
        from lottery.launch.launcher import job_of, launch

        check_hydra(overrides, "has no effect with this launcher: it has hydra.launcher.KEY", "hydra.launcher.")
        status = launch(hydra, overrides, list(map(job_of, names, studies, configs)), configs, config_dir, stop)
        return told_seeds(configs, status)
    if not hydra.launcher._target_.endswith("BasicLauncher"):
        return launched(overrides, config_dir)
    check_hydra(overrides, "has no effect without a launcher; run folders are set by paths.runs=DIR")
    return told_seeds(configs, in_turn(names, configs, stop))


def check_hydra(overrides: Sequence[str], otherwise: str, *allowed: str) -> None:
    """Raise ConfigError for an override of Hydra's own options, except the launcher, the swept values and `allowed`.

    otherwise: end of the error message. allowed: prefixes of further allowed options.
    """
    for override in overrides:
        meant = override.lstrip("+~").startswith(("hydra/launcher", "hydra.sweeper.params", *allowed))
        if is_hydra(override) and not meant:
            raise ConfigError(f"{override}: {otherwise}")


def planned(overrides: Sequence[str], config_dir: str | None) -> tuple[list[list[str]], DictConfig]:
    """Return the overrides of each study, and Hydra's own configuration."""
    register()
    overrides = as_written(overrides)
    try:
        with hydra_opened(config_dir), explained(overrides, config_dir):
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            parsed = parser.parse_overrides(list(overrides))
            first, _ = compose_preset(combinations(parsed)[0], groups(config_dir), hydra=True)
            given = {override.get_key_element() for override in parsed}
            params: dict[str, Any] = first.hydra.sweeper.get("params") or {}
            added = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in given])
            return combinations([*added, *parsed]), first.hydra
    except ConfigError:
        settings = list(filter(sets_launcher, overrides))
        if settings and launcher_of(overrides, config_dir).endswith("BasicLauncher"):
            raise ConfigError(f"{settings[0]}: has no effect without a launcher: {CHOICES}") from None
        raise


def launcher_of(overrides: Sequence[str], config_dir: str | None) -> str:
    """Return the `_target_` of the launcher that the overrides or their experiment choose; ignore its settings."""
    others = [override for override in overrides if not sets_launcher(override)]
    return str(planned(others, config_dir)[1].launcher._target_)


def sets_launcher(override: str) -> bool:
    return override.lstrip("+~").startswith("hydra.launcher.")


def in_turn(names: Sequence[str], configs: Sequence[DictConfig], stop: StopFlag) -> int:
    """Run one study after the other in this process, and return the highest exit status."""
    statuses: list[int] = []
    for name, cfg in zip(names, configs, strict=True):
        print(f"[{len(statuses) + 1}/{len(configs)}] {name}".rstrip(), flush=True)
        statuses.append(reported(lambda cfg=cfg: run_composed(cfg, stop), name))  # type: ignore[misc]
        if statuses[-1] >= 128:  # interrupted: start no further study
            break
    print(f"{statuses.count(0)} of {len(configs)} studies done")
    return max(statuses)


def told_seeds(configs: Sequence[DictConfig], status: int) -> int:
    """Print the statistics over seeds of the finished studies, unless the sweep was interrupted; return the status."""
    folders = dict.fromkeys(Path(cfg.paths.runs) / cfg.name / study_key(cfg) for cfg in configs)
    if status < 128:
        say(*seed_lines([folder for folder in folders if finished(folder)]))
    return status


def launched(overrides: Sequence[str], config_dir: str | None) -> int:
    """Let one of Hydra's launchers run the jobs, each in a separate process; return the highest exit status."""
    with hydra_opened(config_dir):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        job: Any = partial(launched_job, config_dir=config_dir)
        batches = hydra.multirun("config", job, as_written(overrides), with_log_configuration=False)
    jobs = [job for batch in batches or [] for job in batch]
    for job in jobs:
        if job.return_value:  # its output is in the launcher's log
            logs = job.hydra_cfg.hydra.runtime.output_dir
            print(f"lottery: {' '.join(job.overrides)}: exit status {job.return_value}; see {logs}", file=sys.stderr)
    return max((job.return_value for job in jobs), default=0)


def launched_job(_: DictConfig, config_dir: str | None) -> int:
    """Run one study under a launcher of Hydra, composed as on the command line; return its exit status."""

    def work() -> int:
        return run_composed(composed(list(HydraConfig.get().overrides.task), config_dir), stop)

    with stop_on_signals() as stop:
        return reported(work)
