"""A sweep (`-m`): a study for each combination of values, all of them checked before the first one starts.

The studies run one after the other, here, or with a launcher of Hydra's (hydra/launcher=NAME) wherever that puts them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from lottery.compose import checked, composed, explained, hydra_opened, is_hydra
from lottery.errors import ConfigError
from lottery.run import reported, run, stop_on_signals
from lottery.training.signals import StopFlag

Job = list[str]  # the overrides of one study


def sweep(overrides: Sequence[str], config_dir: str | None, stop: StopFlag) -> int:
    """Run the studies of a sweep. A failed one stops no other; the exit status is the highest of theirs.

    Raises ConfigError, before anything is written, if any of the configurations is wrong.
    """
    jobs, hydra = planned(overrides, config_dir)
    studies = [[override for override in job if not is_hydra(override)] for job in jobs]
    configs = [composed(study, config_dir) for study in studies]
    if not hydra.launcher._target_.endswith("BasicLauncher"):
        return launched(overrides, config_dir)
    for override in overrides:
        if is_hydra(override) and not override.startswith(("hydra/launcher", "hydra.sweeper.params")):
            raise ConfigError(f"{override}: has no effect without a launcher; run folders are set by paths.runs")
    return in_turn(labels(studies), configs, stop)


def planned(overrides: Sequence[str], config_dir: str | None) -> tuple[list[Job], DictConfig]:
    """The jobs, and Hydra's own configuration."""
    with hydra_opened(config_dir), explained(overrides, config_dir):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(list(overrides))
        first = compose("config", overrides=combinations(parsed)[0], return_hydra_config=True)
        given = {override.get_key_element() for override in parsed}
        params: dict[str, Any] = first.hydra.sweeper.get("params") or {}
        added = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in given])
        return combinations([*added, *parsed]), first.hydra


def combinations(overrides: Sequence[Override]) -> list[Job]:
    """Every combination of the swept values, the last override changing fastest, as Hydra's own sweeper orders them."""
    values = []
    for override in overrides:
        if not override.is_sweep_override():
            values.append([override.input_line or ""])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            values.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ConfigError(f"{override.input_line}: a sweep needs values one by one, such as seed=0,1,2 or range(3)")
    return [list(job) for job in product(*values)]


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
    """Let Hydra's launcher run the jobs, each a process of its own."""
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
    """One study under a launcher; its exit status."""
    with stop_on_signals() as stop:
        return reported(lambda: run(checked(cfg), stop))
