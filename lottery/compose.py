"""Compose and check a configuration, from overrides or from a run folder's config.yaml. The only place that asks Hydra.

Torch-free, and needs no data; everything that is wrong comes out as a ConfigError of one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lottery.config import Config, check, method_options, register, study_key
from lottery.errors import ConfigError, cause, nearest
from lottery.explain import described, explain, keys, unreadable


def config_folder() -> Path:
    """Where the project's own configs lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.exists() else package.parent / "conf"


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Every config group with its options: the project's, and those of the user's own folder."""
    found: dict[str, set[str]] = {}
    for root in [config_folder(), *([Path(config_dir)] if config_dir else [])]:
        for path in root.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


@contextmanager
def hydra_opened(config_dir: str | None = None) -> Iterator[list[str]]:
    """Hydra over the project's configs and, found before them, the user's own; yields the overrides that this takes."""
    register()
    ours, extra = str(config_folder()), []
    if config_dir is not None:
        check_config_dir(Path(config_dir))
        escaped = ours.replace("\\", "\\\\").replace("'", "\\'")
        ours, extra = str(Path(config_dir).resolve()), [f"hydra.searchpath=['file://{escaped}']"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(ours, version_base="1.3"):
        yield extra


def check_config_dir(folder: Path) -> None:
    """Raise ConfigError where `folder` is not one of config groups."""
    if not folder.is_dir():
        raise ConfigError.of("--config-dir", str(folder), "a folder with configs, such as DIR/exp/NAME.yaml")
    if (folder / "config.yaml").exists():
        raise ConfigError(
            f"--config-dir: {folder} holds a whole configuration, config.yaml, which is run with --config; "
            "your own groups and experiments go in folders without one"
        )


def composed(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """The checked configuration of these overrides; `config_dir` adds a user's own configs.

    Raises ConfigError in one line. Needs neither torch nor data, and takes a fraction of a second.
    """
    with hydra_opened(config_dir) as extra, explained(overrides, extra, config_dir):
        cfg = compose("config", overrides=[*overrides, *extra])
    return checked(cfg, config_dir)


@contextmanager
def explained(overrides: Sequence[str], extra: list[str], config_dir: str | None) -> Iterator[None]:
    """What Hydra raises inside, as a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        known = groups(config_dir)
        chosen = [o for o in overrides if o.partition("=")[0].lstrip("+") in known]
        try:
            base = compose("config", overrides=[*chosen, *extra])
        except Exception:  # the choices are what is wrong
            base = compose("config", overrides=extra)
        raise ConfigError(" ".join(explain(error, overrides, known, base).split())) from error


def checked(cfg: DictConfig, config_dir: str | None = None) -> DictConfig:
    """The configuration complete, every key known and every value in its range. Raises ConfigError."""
    try:
        for key in unknown_keys(cfg):
            raise ConfigError(f"{key}: no such key{nearest(key, set(keys(cfg)) - set(unknown_keys(cfg)))}")
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        check(cfg)
        cfg.method = method_options(cfg.method)
    except (OmegaConfBaseException, RecursionError) as error:
        if isinstance(error, OmegaConfBaseException):
            raise ConfigError(described(error, cfg, groups(config_dir))) from error
        raise ConfigError(f"an interpolation refers to itself: {cause(error)}") from error
    return cfg


def unknown_keys(node: DictConfig, schema: type | None = Config, prefix: str = "") -> Iterator[str]:
    """Keys that `+` added to a dataclass that does not have them."""
    known = {field.name for field in fields(schema)} if schema else set(node)
    for name in node:
        child = node._get_node(name)
        if name not in known:
            yield f"{prefix}{name}"
        elif isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            kind = OmegaConf.get_type(child)
            yield from unknown_keys(child, None if kind is dict else kind, f"{prefix}{name}.")


# -- a saved configuration --------------------------------------------------------------------------------------------


def loaded(path: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """A run folder's config.yaml, with `key=value` overrides: running it again gives the same study key."""
    values = saved(path)
    cfg = OmegaConf.structured(Config)
    try:
        cfg = OmegaConf.merge(cfg, values)
        OmegaConf.set_struct(cfg, True)
        check_belongs(path, checked(cfg))
        follow_again_(cfg)
        for override in single_keys(overrides, cfg):
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(described(error, cfg, groups())) from error
    return checked(cfg)


def saved(path: Path) -> Mapping[str, Any]:
    """The file's content. ConfigError where it cannot be read or is not whole."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"--config: {path}: cannot be read: {' '.join(str(error).split())}") from error
    wanted = [field.name for field in fields(Config)]
    missing = [name for name in wanted if not isinstance(values, dict) or name not in values]
    if missing:
        raise ConfigError(f"--config: {path}: not a whole config.yaml of a run folder, it has no {', '.join(missing)}")
    return values  # type: ignore[return-value]


def check_belongs(path: Path, cfg: DictConfig) -> None:
    """Raise ConfigError where a file in a study's folder is not that study's configuration: damaged or edited."""
    folder = path.resolve().parent.name
    if re.fullmatch(r"[0-9a-f]{12}", folder) and study_key(cfg) != folder:
        raise ConfigError(
            f"--config: {path}: not the configuration of study {folder}: damaged, edited, or of another version of "
            "lottery; to run it as it stands, copy it out of the run folder"
        )


def follow_again_(cfg: DictConfig) -> None:
    """Let values that equal what they follow by default (seeds.init follows seed) follow it again.

    Otherwise `--config FILE seed=1` would change the key of the study and none of its seeds.
    """
    schema = OmegaConf.structured(Config)
    for section in ("seeds", "paths"):
        for name in schema[section]:
            link, written = schema[section]._get_node(name), cfg[section][name]
            if link._is_interpolation():
                cfg[section][name] = link._value()
                if cfg[section][name] != written:
                    cfg[section][name] = written


def single_keys(overrides: Sequence[str], cfg: DictConfig) -> list[Override]:
    """Overrides of single keys, parsed. Raises ConfigError for any other kind."""
    parsed = []
    for text in overrides:
        try:
            [override] = OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            raise ConfigError(unreadable(text)) from error
        key = override.key_or_group
        group = key in groups() and not isinstance(override.value(), dict)
        if group or override.type is None or override.type.name != "CHANGE" or override.is_sweep_override():
            raise ConfigError(f"{text}: with --config only single keys can be changed, such as optim.lr=0.1")
        parsed.append(override)
    return parsed
