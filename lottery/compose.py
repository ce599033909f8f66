"""Compose and check a configuration, from overrides or a run folder's config.yaml. Needs neither torch nor data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

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

from lottery.config import Config, register, study_key
from lottery.config.check import check, expand_home_
from lottery.errors import ConfigError, LotteryError, cause
from lottery.explain import described, explain, unknown_key, unreadable
from lottery.files import Unreadable
from lottery.imports import importable
from lottery.overrides import as_written, sets_key
from lottery.parts import method_options
from lottery.preset import compose_preset, given, tell
from lottery.saved import kinds, read_saved

# Groups of which a preset sets single keys. An option chosen on the command line replaces these keys.
CHOSEN = {"rewind", "optim", "schedule"}


def config_folder() -> Path:
    """Return the folder of the project's configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.exists() else package.parent / "conf"


def config_files(config_dir: str | None, pattern: str = "*/*.yaml") -> list[Path]:
    """List the config files that match a pattern: first the user's own, then the project's."""
    roots = [*([Path(config_dir)] if config_dir else []), config_folder()]
    return [path for root in roots for path in root.glob(pattern)]


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Map every config group to its options, both the project's and the user's own."""
    found: dict[str, set[str]] = {}
    for path in config_files(config_dir):
        found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


class OwnConfigs(SearchPathPlugin):
    """A Hydra plugin that searches the user's own folder before the project's configs."""

    folder: ClassVar[str | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend("own", f"file://{Path(self.folder).resolve()}", anchor="main")


@contextmanager
def hydra_opened(config_dir: str | None = None) -> Iterator[None]:
    """Initialise Hydra, for the block, with the project's configs and the user's own."""
    if config_dir is not None:
        check_config_dir(Path(config_dir))
        importable(config_dir, Path(config_dir).absolute().parent)
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
    """Raise ConfigError where `folder` does not exist or holds a whole configuration instead of config groups."""
    if not folder.is_dir():
        raise ConfigError.of("--config-dir", str(folder), "a folder with configs, such as DIR/exp/NAME.yaml")
    if (folder / "config.yaml").exists():
        raise ConfigError(
            f"--config-dir: {folder} holds a whole configuration, config.yaml, which is run with --config; "
            "your own groups and experiments go in folders without one"
        )


def composed(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """Return the checked configuration of these overrides. config_dir: a folder of the user's own configs.

    Raises ConfigError, with a message of one line, for any error. Takes a fraction of a second.
    """
    overrides = as_written(overrides)
    for override in overrides:
        if is_hydra(override):
            raise ConfigError(f"{override}: launchers and their options are for sweeps: add -m and a launcher")
    with hydra_opened(config_dir), explained(overrides, config_dir):
        cfg, note = compose_preset(overrides, groups(config_dir))
        choose_(cfg, overrides, config_dir)
    found = checked(cfg, config_dir)
    tell(note)
    return found


def choose_(cfg: DictConfig, overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Let an option chosen on the command line override a preset: `rewind=init` means the initial weights.

    Hydra alone would merge the preset's keys over the option. A key on the command line (rewind.to=2ep) still wins.
    """
    typed, known = given(overrides), groups(config_dir)
    for group in CHOSEN & set(typed):
        if typed[group] not in known[group]:  # a mapping instead of an option's name: optim={lr: 0.1}
            continue
        file = config_files(config_dir, f"{group}/{typed[group]}.yaml")[0]
        option: Any = OmegaConf.to_container(OmegaConf.load(file))
        cfg[group].update({key: option[key] for key in map(str, option) if f"{group}.{key}" not in typed})


def is_hydra(override: str) -> bool:
    """Whether an override sets an option of Hydra itself, not of the study."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


@contextmanager
def explained(overrides: Sequence[str], config_dir: str | None) -> Iterator[None]:
    """Turn any exception that Hydra raises in the block into a ConfigError with a message of one line."""
    try:
        yield
    except LotteryError:
        raise
    except Exception as error:  # Hydra does not catch every wrong value itself: optim=[null] is a TypeError
        known = groups(config_dir)

        def base() -> DictConfig:
            try:
                return compose("config", overrides=[o for o in overrides if o.partition("=")[0].lstrip("+") in known])
            except Exception:  # one of the choices is wrong
                return compose("config")

        raise ConfigError(explain(error, overrides, known, base)) from error


def checked(cfg: DictConfig, config_dir: str | None = None) -> DictConfig:
    """Complete and check a configuration: every key known, every value in its range. Raises ConfigError."""
    try:
        for key in unknown_keys(cfg):
            raise ConfigError(unknown_key(key, lambda: cfg, groups(config_dir)))
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        expand_home_(cfg)
        check(cfg)
        cfg.method = method_options(cfg.method)
    except OmegaConfBaseException as error:
        raise ConfigError(described(error, lambda: cfg, groups(config_dir))) from error
    except RecursionError as error:
        raise ConfigError(f"an interpolation refers to itself: {cause(error)}") from error
    return cfg


def unknown_keys(node: DictConfig, schema: type | None = Config, prefix: str = "") -> Iterator[str]:
    """Yield the keys that `+` added to a dataclass without such a field."""
    known = {field.name for field in fields(schema)} if schema else set(map(str, node))
    for key in node:
        name, child = str(key), node._get_node(key)
        if name not in known:
            yield f"{prefix}{name}"
        elif isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            kind = OmegaConf.get_type(child)
            yield from unknown_keys(child, None if kind is dict else kind, f"{prefix}{name}.")


# -- a saved configuration --------------------------------------------------------------------------------------------


def loaded(path: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a run folder's config.yaml, and set `key=value` overrides. Without any, the study key is unchanged."""
    cfg: DictConfig = OmegaConf.structured(Config)
    try:
        cfg.merge_with(saved(path))
        OmegaConf.set_struct(cfg, True)
        check_belongs(path, checked(cfg))
        follow_again_(cfg)
        for override in single_keys(overrides):
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(described(error, lambda: cfg, groups())) from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:  # OmegaConf.update: a list has no key x
        raise ConfigError(f"{' '.join(overrides)}: cannot be set: {cause(error)}") from error
    return checked(cfg)


def saved(path: Path) -> Mapping[str, Any]:
    """Return the values of the file. Raises ConfigError where it is unreadable, incomplete or not resolved."""
    try:
        values = read_saved(path)
    except Unreadable as error:
        raise ConfigError(f"--config: {error}") from error
    if missing := [field.name for field in fields(Config) if field.name not in values]:
        raise ConfigError(f"--config: {path}: not a whole config.yaml of a run folder, it has no {', '.join(missing)}")
    for name in dict.fromkeys(key.partition(".")[0] for key in kinds() if "." in key):
        if not isinstance(values[name], dict):
            raise ConfigError(f"--config: {path}: {name}: got {values[name]!r}, expected its keys and values")
    return values


def check_belongs(path: Path, cfg: DictConfig) -> None:
    """Raise ConfigError where a file in a run folder does not give that folder's study key: damaged or edited."""
    folder = path.resolve().parent.name
    if re.fullmatch(r"[0-9a-f]{12}", folder) and study_key(cfg) != folder:
        raise ConfigError(
            f"--config: {path}: not the configuration of study {folder}: damaged, edited, or of another version of "
            "lottery; to run it as it stands, copy it out of the run folder"
        )


def follow_again_(cfg: DictConfig) -> None:
    """Restore the default reference of a value that equals its target (seeds.init follows seed).

    Otherwise `--config FILE seed=1` would change the key of the study but none of its seeds.
    """
    schema = OmegaConf.structured(Config)
    for section in ("seeds", "paths"):
        for name in schema[section]:
            link, written = schema[section]._get_node(name), cfg[section][name]
            if link._is_interpolation():
                cfg[section][name] = link._value()
                if cfg[section][name] != written:
                    cfg[section][name] = written


def single_keys(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides of single keys. Raises ConfigError for any other kind of override."""
    parsed = []
    for text in as_written(overrides):
        try:
            [override] = OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            raise ConfigError(unreadable(text)) from error
        chooses = override.key_or_group in groups() and not isinstance(override.value(), dict)
        if chooses or not sets_key(override):
            raise ConfigError(f"{text}: with --config only single keys can be changed, such as optim.lr=0.1")
        parsed.append(override)
    return parsed
