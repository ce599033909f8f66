"""Compose and check a configuration: Hydra's answers to a wrong key or value, turned into one line each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lottery.config import check, register
from lottery.errors import ConfigError


def config_folder() -> Path:
    """Where the project's own configs lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.exists() else package.parent / "conf"


def composed(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """The checked configuration of these overrides; `config_dir` adds a user's own configs.

    Raises ConfigError in one line. Needs neither torch nor data, and takes a fraction of a second.
    """
    register()
    extra = [] if config_dir is None else [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            cfg = compose("config", overrides=[*overrides, *extra])
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, overrides, extra)) from error
    return checked(cfg)


def loaded(path: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """A run folder's config.yaml, with `key=value` overrides: running it again gives the same study key."""
    register()
    from lottery.config import Config

    try:
        values = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        return checked(OmegaConf.merge(OmegaConf.structured(Config), values))  # type: ignore[arg-type]
    except (OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error


def checked(cfg: DictConfig) -> DictConfig:
    """The same configuration, every value in its range. Raises ConfigError."""
    try:
        check(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(describe(error, cfg)) from error
    return cfg


def explain(error: Exception, overrides: Sequence[str], extra: list[str]) -> str:
    """One line from what Hydra or OmegaConf raised while composing."""
    if isinstance(error, MissingConfigException):
        return missing_config(error, overrides)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value, group=option or +exp=NAME"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    try:
        base = compose("config", overrides=[o for o in overrides if is_choice(o)] + extra)
    except (HydraException, OmegaConfBaseException):
        base = compose("config")
    unknown = re.search(r"Could not (?:override|append to|delete) '?([\w./@]+)", str(error))
    if unknown and ("Key" in str(error) or "No match" in str(error)) and "converted" not in str(error):
        return unknown_key(unknown[1], base)
    return describe(cause, base)


def is_choice(override: str) -> bool:
    """Whether an override picks a group's option rather than setting a value."""
    key = override.partition("=")[0].lstrip("+~")
    return (config_folder() / key).is_dir()


def missing_config(error: MissingConfigException, overrides: Sequence[str]) -> str:
    """A group or an option of a group that does not exist."""
    name = str(error.missing_cfg_file or "")
    group, _, option = name.rpartition("/")
    options = [found for found in (error.options or []) if not found.startswith("schema")]
    if not options and group and (config_folder() / group).is_dir():
        options = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    if not group or not options:
        key = next((o.partition("=")[0].lstrip("+") for o in overrides if name in o or group in o), group or name)
        groups = sorted(path.name for path in config_folder().iterdir() if path.is_dir())
        return f"{key}: no such config group{nearest(key, groups)}; there are {', '.join(groups)}"
    return f"{group}: got {option!r}, expected one of {', '.join(options)}{nearest(option, options)}"


def unknown_key(key: str, base: DictConfig) -> str:
    """A key that no configuration has."""
    groups = [path.name for path in config_folder().iterdir() if path.is_dir()]
    known = [*keys(base), *groups]
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent] if parent else []
    hint = nearest(key, known)
    listing = f"; {parent} has {', '.join(s.rpartition('.')[2] for s in siblings)}" if siblings else ""
    return f"{key}: no such key{hint}{listing}"


def describe(error: Exception, base: DictConfig) -> str:
    """A value of the wrong type, or a missing one, from OmegaConf's several lines."""
    key = getattr(error, "full_key", None) or ""
    text = first_line(error)
    wrong = re.match(r"Value '?(.*?)'? of type '(\w+)' could not be converted to (\w+)", text)
    if wrong:
        kinds = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false", "String": "a text"}
        return f"{key}: got {wrong[1]!r}, expected {kinds.get(wrong[3], wrong[3])}"
    if "not in" in text and "Key" in text:
        return unknown_key(key, base)
    return f"{key}: {text}" if key and key not in text else text


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(word: str, words: Sequence[str]) -> str:
    """", did you mean …?" where something is close."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration."""
    for name in node:
        key = f"{prefix}{name}"
        yield key
        if OmegaConf.is_dict(node) and not OmegaConf.is_missing(node, name):
            value = node._get_node(name)
            if isinstance(value, DictConfig) and not value._is_none():
                yield from keys(value, f"{key}.")


__all__ = ["ConfigCompositionException", "composed", "config_folder", "loaded"]
