"""Ranges of options, declared once at the fields of a dataclass and checked by one function.

    density: float = option(0.1, FRACTION)

A range is a function of the option's key and its value that raises ConfigError.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import field, fields, is_dataclass
from typing import Any, ClassVar

from lottery.errors import ConfigError, nearest
from lottery.steps import Duration

Range = Callable[[str, Any], None]


def option(default: Any, allowed: Range) -> Any:
    """Declare a field of a dataclass, with its default and its range."""
    metadata = {"range": allowed}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_options(options: Any, key: str = "method") -> None:
    """Raise ConfigError for the first field that is out of its range. key: prefix of the field's name, or "".

    A dataclass in a field is checked too, by its own `check(key)` where it has one.
    """
    for each in fields(options):
        value, name = getattr(options, each.name), f"{key}.{each.name}".lstrip(".")
        if "range" in each.metadata:
            each.metadata["range"](name, value)
        elif is_dataclass(value):
            own = getattr(value, "check", None)
            own(name) if own else check_options(value, name)


class Checked:
    """Base of dataclasses whose options are checked on creation. of: prefix of the options' names in errors."""

    of: ClassVar[str] = "method"

    def __post_init__(self) -> None:
        check_options(self, self.of)


def such_that(holds: Callable[[Any], bool], expected: str) -> Range:
    """Return the range of values for which `holds` is true; `expected` describes them in the error."""

    def check(key: str, got: Any) -> None:
        if not holds(got):
            raise ConfigError.of(key, got, expected)

    return check


def one_of(*choices: str, expected: str = "") -> Range:
    """Return the range of these names. The error lists them, or says `expected`, and suggests the closest name."""

    def check(key: str, got: Any) -> None:
        if got not in choices:
            raise ConfigError.of(key, got, (expected or f"one of {', '.join(choices)}") + nearest(str(got), choices))

    return check


def at_least(low: int, expected: str) -> Range:
    """Return the range of numbers from `low` on."""
    return such_that(lambda got: got >= low, expected)


def number(low: float, high: float = sys.float_info.max, *, above: bool = False) -> Range:
    """Return the range from `low` to `high`, and None for an option that is not set. above: exclude `low` itself."""

    def check(key: str, got: Any) -> None:
        if got is not None and not (low <= got <= high and not (above and got == low)):
            kind = "a whole number" if isinstance(got, int) else "a number"
            bound = f" and ≤ {high}" if high < sys.float_info.max else ""
            raise ConfigError.of(key, got, f"{kind} {'>' if above else '≥'} {low:g}{bound}")

    return check


def each_of(allowed: Range) -> Range:
    """Return the range of mappings whose values are all in the range `allowed`."""

    def check(key: str, got: Mapping[str, Any]) -> None:
        for name, value in got.items():
            allowed(f"{key}.{name}", value)

    return check


def chosen(group: str) -> Range:
    """Return the range of an option without a default, which `group=NAME` on the command line must choose."""

    def check(key: str, got: Any) -> None:
        if got is None:
            raise ConfigError(f"{key}: nothing chosen; choose one with {group}=NAME (--help lists them)")

    return check


def duration(key: str, got: str) -> None:
    """Raise ConfigError unless the option is a time such as "500it" or "2ep"."""
    Duration.parse(got, key)


def length(key: str, got: str) -> None:
    """Raise ConfigError unless the option is a time longer than zero."""
    if Duration.parse(got, key) == Duration():
        raise ConfigError.of(key, got, 'a time longer than zero, such as "500it" or "2ep"')


FRACTION = such_that(lambda got: 0 < got <= 1, "a fraction of the weights, above 0 and at most 1")
