"""Check a composed configuration: each option's range, options that contradict each other, and every `_target_`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lottery.config import Config, plain
from lottery.config.data import check as check_data
from lottery.errors import ConfigError
from lottery.parts import has_target, typed_method
from lottery.ranges import check_options
from lottery.steps import Duration
from lottery.values import check_values


def check(cfg: DictConfig) -> None:
    """Raise ConfigError for the first value that is out of its range or contradicts another. Needs no torch, no data.

    Every value must be present and of its type. Checks that need the network or the data come later, in `Study`.
    """
    config: Any = OmegaConf.to_object(cfg)
    check_options(config, "")
    check_times(config)
    if config.optim.name == "sgd" and config.optim.nesterov and not config.optim.momentum:
        raise ConfigError.of("optim.nesterov", True, "false, or optim.momentum > 0")
    trainer = config.trainer
    if trainer.workers not in ("auto", 1) and trainer.devices * trainer.nodes > 1:
        expected = "1 or auto where several processes train one network (trainer.devices, trainer.nodes)"
        raise ConfigError.of("trainer.workers", trainer.workers, expected)
    check_data(config.data)
    for key in ("model", "method", "criterion"):
        if not has_target(cfg[key]):
            raise ConfigError(f"{key}: nothing chosen; choose one with {key}=NAME (--help lists them)")
    if not OmegaConf.is_dict(cfg.probes):
        raise ConfigError.of("probes", cfg.probes, "probes=NAME, or probes=[NAME,NAME] (--help probes lists them)")
    for name, probe in cfg.probes.items():
        if not has_target(probe):
            raise ConfigError.of(f"probes.{name}", probe, "{_target_: package.module.function}")
    typed_method(cfg.method)
    check_values(plain(cfg))


def expand_home_(cfg: DictConfig) -> None:
    """Replace a leading ~ in each folder by the user's home."""
    for group in ("data", "paths"):
        if not isinstance(cfg[group], DictConfig):  # an interpolation may put anything there
            raise ConfigError.of(group, cfg[group], "its keys and values")
    for key in ("paths.runs", "paths.data", "paths.store", "data.folder"):
        given = OmegaConf.select(cfg, key)
        if isinstance(given, str) and given.startswith("~"):
            try:
                OmegaConf.update(cfg, key, str(Path(given).expanduser()))
            except RuntimeError as error:
                raise ConfigError.of(key, given, "a folder; ~ names no home here") from error


def check_times(config: Config) -> None:
    """Raise ConfigError for a warm-up or rewind point after the end of training, or a schedule without its times."""
    total = Duration.parse(config.train.steps)
    for key, got in (("schedule.warmup", config.schedule.warmup), ("rewind.to", config.rewind.to)):
        time = Duration.parse(got)
        # Such a time is later for any length of an epoch. `Recipe` checks the other times, once that length is known.
        if time != total and time.epochs >= total.epochs and time.steps >= total.steps:
            raise ConfigError.of(key, got, f"at most train.steps={config.train.steps}")
    if config.schedule.name == "multistep" and not config.schedule.milestones:
        raise ConfigError.of("schedule.milestones", [], "at least one time, such as [80ep,120ep]")
    if config.schedule.name == "one_cycle" and Duration.parse(config.schedule.warmup) == Duration():
        raise ConfigError.of("schedule.warmup", config.schedule.warmup, "the time of one_cycle's highest rate, above 0")
    if config.train.compile and config.trainer.devices * config.trainer.nodes > 1:
        raise ConfigError.of("train.compile", True, "false where several processes train together (trainer.devices)")
