"""Read saved configurations, the config.yaml of run folders. They are resolved before writing, never on reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from lottery.errors import ConfigError, LotteryError
from lottery.files import Unreadable, parse_yaml, read_text
from lottery.values import REFERENCE, fits, leaves

PARTS = ("model", "method", "criterion")
# Value of the key `format` in config.yaml and in rows. Where the key is missing, the format is this first one.
FORMAT = "lottery-run/1"


def check_format(where: object, found: Mapping[str, Any]) -> None:
    """Raise LotteryError where a row or a configuration has a format of a newer version of lottery."""
    if found.get("format", FORMAT) != FORMAT:
        raise LotteryError(f"{where}: format {found['format']!r}, expected {FORMAT!r}: update lottery to read this run")


def read_saved(path: Path, remedy: str = "") -> dict[str, Any]:
    """Read a saved configuration. Raises Missing where there is no file, and Unreadable as `parse_saved` does."""
    return parse_saved(read_text(path, remedy), path, remedy)


def parse_saved(text: str, where: object, remedy: str = "") -> dict[str, Any]:
    """Parse the text of a saved configuration that was read from `where`.

    Raises Unreadable where the text is no saved configuration, or a value has an interpolation: OmegaConf would insert
    the reader's own environment, which would then appear in the reader's reports.
    """
    values = parse_yaml(text, where, remedy)
    check_format(where, values)
    try:
        for key, value in leaves(values):
            if isinstance(value, str) and REFERENCE in value:
                raise Unreadable.of(where, f"{key}: got {value!r}, expected a value: saved ones are resolved", remedy)
            if not isinstance(value, str | int | float | None):
                raise Unreadable.of(where, f"{key}: got a {type(value).__name__}, expected a plain value", remedy)
        _check_kinds(values)
    except ConfigError as error:
        raise Unreadable.of(where, str(error), remedy) from error
    return values


def _check_kinds(values: dict[str, Any]) -> None:
    """Raise ConfigError for a value that is not of its key's type. Missing keys are allowed."""
    for name in set(values) & set(PARTS):
        if not isinstance(values[name], dict | None):
            raise ConfigError.of(name, values[name], "its keys and values")
        target = (values[name] or {}).get("_target_", "")
        if not isinstance(target, str):
            raise ConfigError.of(f"{name}._target_", target, "a text")
    for key, hint in kinds().items():
        group, _, name = key.rpartition(".")
        held = values.get(group) or {} if group else values
        if not isinstance(held, dict):
            raise ConfigError.of(group, held, "its keys and values")
        if name in held and not fits(held[name], hint, finite=False):
            raise ConfigError.of(key, held[name], hint.__name__ if isinstance(hint, type) else str(hint))


@cache
def kinds() -> dict[str, Any]:
    """Map every dotted key of a study to the type that its dataclass declares."""
    from lottery.config import Config  # imports Hydra

    found: dict[str, Any] = {}
    for name, hint in get_type_hints(Config).items():
        inside = get_type_hints(hint) if is_dataclass(hint) else {}
        found |= {f"{name}.{inner}": kind for inner, kind in inside.items()} or {name: hint}
    return found
