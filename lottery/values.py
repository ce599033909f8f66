"""Check values of files and options: their declared types, and that they survive writing and reading. Torch-free."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lottery.errors import ConfigError
from lottery.files import Unreadable, read_json
from lottery.printing import printable

LARGEST = 2**63 - 1
UNBOUNDED = {"train.checkpoint_minutes"}  # may be infinite; it enters no key
REFERENCE = "${"  # begins an interpolation

T = TypeVar("T")
_hints = cache(get_type_hints)


def read_record(cls: type[T], path: Path) -> T:
    """Read the dataclass `cls` from a JSON file. Raises Missing and Unreadable, which name the file."""
    return record(cls, read_json(path), path)


def record(cls: type[T], values: Mapping[str, Any], where: object, remedy: str = "") -> T:
    """Build the dataclass `cls` from values that were read from `where`, ignoring values without a field.

    Raises Unreadable for a field without a value, and for a value of another type.
    """
    given = {}
    hints = _hints(cls)  # type: ignore[arg-type]
    for each in fields(cls):  # type: ignore[arg-type]
        if each.name in values:
            value, hint = values[each.name], hints[each.name]
            if not fits(value, hint):
                raise Unreadable.of(where, f"{each.name}: got {str(value)[:80]!r}, expected {each.type}", remedy)
            given[each.name] = value
        elif each.default is MISSING and each.default_factory is MISSING:
            raise Unreadable.of(where, f"it has no {each.name}", remedy)
    return cls(**given)


def fits(value: Any, hint: Any, finite: bool = True) -> bool:
    """Whether a JSON value is of a declared type. Numbers must be below 2**63; finite=False allows any float."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (types.UnionType, Union):
        return any(fits(value, each, finite) for each in inner)
    if kind is list:
        return isinstance(value, list) and all(fits(each, inner[0], finite) for each in value if inner)
    if kind is dict:
        return isinstance(value, dict) and all(fits(each, inner[1], finite) for each in value.values() if inner)
    if kind in (int, float):
        number = type(value) is int or (kind is float and type(value) is float)
        return number and (abs(value) < 2**63 or not (finite or type(value) is int))
    return value is None if kind in (None, types.NoneType) else kind is Any or isinstance(value, kind)


def check_values(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first value of a resolved configuration that does not survive writing and reading."""
    for key, value in leaves(values):
        if isinstance(value, float) and not math.isfinite(value) and not (key in UNBOUNDED and value > 0):
            raise ConfigError.of(key, value, "a finite number")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ConfigError.of(key, value, f"a whole number of 64 bits, at most {LARGEST}")
        if isinstance(value, str) and REFERENCE in value:
            raise ConfigError.of(key, value, f"a text without {REFERENCE}, which begins a reference to another key")
        if isinstance(value, str) and printable(value) != value:
            raise ConfigError.of(key, value, "a text of printable characters")


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value inside mappings and lists, with its dotted key. Raises ConfigError for a key that is no text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"{key or 'the configuration'}: got the key {name!r}, expected a text as a key")
            yield from leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{key}[{number}]")
    else:
        yield key, value
