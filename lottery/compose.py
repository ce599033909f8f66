"""Compose and check a configuration, from overrides or from a run folder's config.yaml. The only place that asks Hydra.

Torch-free, and needs no data; everything that is wrong comes out as a ConfigError of one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lottery.config import Config, check, method_options, register, study_key
from lottery.errors import ConfigError, cause
from lottery.explain import described, explain, unknown_key, unreadable

# Groups in which a preset sets single keys, and an option chosen on the command line is meant as a whole.
CHOSEN = {"rewind", "optim", "schedule"}


def config_folder() -> Path:
    """Where the project's own configs lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.exists() else package.parent / "conf"


def config_folders(config_dir: str | None) -> list[Path]:
    """Where configs are looked for: first in the user's own folder."""
    return [*([Path(config_dir)] if config_dir else []), config_folder()]


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Every config group with its options: the project's, and those of the user's own folder."""
    found: dict[str, set[str]] = {}
    for root in config_folders(config_dir):
        for path in root.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


def found_in(group: str, option: str, config_dir: str | None = None) -> Path:
    """The file of a group's option."""
    paths = (root / group / f"{option}.yaml" for root in config_folders(config_dir))
    return next(path for path in paths if path.exists())


class OwnConfigs(SearchPathPlugin):
    """Hydra looks for a config in the user's own folder before it looks in the project's."""

    folder: ClassVar[str | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend("own", f"file://{Path(self.folder).resolve()}", anchor="main")


@contextmanager
def hydra_opened(config_dir: str | None = None) -> Iterator[None]:
    """Hydra over the project's configs and the user's own."""
    if config_dir is not None:
        check_config_dir(Path(config_dir))
    register()
    Plugins.instance().register(OwnConfigs)
    GlobalHydra.instance().clear()
    OwnConfigs.folder = config_dir
    try:
        opened = initialize_config_dir(str(config_folder()), version_base="1.3")
    finally:
        OwnConfigs.folder = None
    with opened:
        yield


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
    for override in overrides:
        if is_hydra(override):
            raise ConfigError(f"{override}: launchers and their options are for sweeps: add -m and a launcher")
    with hydra_opened(config_dir), explained(overrides, config_dir):
        cfg = compose("config", overrides=list(overrides))
        choose_(cfg, overrides, config_dir)
    return checked(cfg, config_dir)


def choose_(cfg: DictConfig, overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Let what the command line chooses win over what a preset sets: `rewind=init` means the initial weights.

    Hydra merges a preset's values over any option of the group; a key given by itself (rewind.to=2ep) still wins.
    """
    given, known = dict(override.split("=", 1) for override in overrides if "=" in override), groups(config_dir)
    for group in CHOSEN & set(given):
        if given[group] not in known[group]:  # not an option of the group but values: optim={lr: 0.1}
            continue
        option = OmegaConf.to_container(OmegaConf.load(found_in(group, given[group], config_dir)))
        assert isinstance(option, dict)
        cfg[group].update({key: option[key] for key in map(str, option) if f"{group}.{key}" not in given})


def is_hydra(override: str) -> bool:
    """Whether an override is about Hydra itself, not about the study."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


@contextmanager
def explained(overrides: Sequence[str], config_dir: str | None) -> Iterator[None]:
    """What Hydra raises inside, as a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        known = groups(config_dir)

        def base() -> DictConfig:
            chosen = [o for o in overrides if o.partition("=")[0].lstrip("+") in known]
            try:
                return compose("config", overrides=chosen)
            except Exception:  # the choices are what is wrong
                return compose("config")

        raise ConfigError(explain(error, overrides, known, base)) from error


def checked(cfg: DictConfig, config_dir: str | None = None) -> DictConfig:
    """The configuration complete, every key known and every value in its range. Raises ConfigError."""
    try:
        for key in unknown_keys(cfg):
            raise ConfigError(unknown_key(key, lambda: cfg, groups(config_dir)))
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        check(cfg)
        cfg.method = method_options(cfg.method)
    except (OmegaConfBaseException, RecursionError) as error:
        if isinstance(error, OmegaConfBaseException):
            raise ConfigError(described(error, lambda: cfg, groups(config_dir))) from error
        raise ConfigError(f"an interpolation refers to itself: {cause(error)}") from error
    return cfg


def unknown_keys(node: DictConfig, schema: type | None = Config, prefix: str = "") -> Iterator[str]:
    """Keys that `+` added to a dataclass that does not have them."""
    known = {field.name for field in fields(schema)} if schema else set(node)
    for name in map(str, node):
        child = node._get_node(name)
        if name not in known:
            yield f"{prefix}{name}"
        elif isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            kind = OmegaConf.get_type(child)
            yield from unknown_keys(child, None if kind is dict else kind, f"{prefix}{name}.")


# -- a saved configuration --------------------------------------------------------------------------------------------


def loaded(path: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """A run folder's config.yaml, with `key=value` overrides: running it again gives the same study key."""
    cfg: DictConfig = OmegaConf.structured(Config)
    try:
        cfg.merge_with(saved(path))
        OmegaConf.set_struct(cfg, True)
        check_belongs(path, checked(cfg))
        follow_again_(cfg)
        for override in single_keys(overrides, cfg):
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(described(error, lambda: cfg, groups())) from error
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
