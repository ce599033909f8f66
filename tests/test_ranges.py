"""Ranges that are declared at the fields of a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from lottery.errors import ConfigError
from lottery.ranges import (
    FRACTION,
    at_least,
    check_options,
    chosen,
    duration,
    each_of,
    length,
    one_of,
    option,
    such_that,
)


@dataclass
class Inner:
    lr: float = option(0.1, at_least(0, "a number ≥ 0"))


@dataclass
class Outer:
    density: float = option(0.5, FRACTION)
    kind: str = option("one", one_of("one", "two"))
    rates: dict[str, float] = option({"a": 0.5}, each_of(FRACTION))
    many: list[int] = option([1], such_that(bool, "some"))
    inner: Inner = field(default_factory=Inner)
    free: str = "anything"


def test_defaults_are_the_fields_own_and_shared_by_nobody() -> None:
    one, two = Outer(), Outer()
    assert (one.density, one.kind, one.rates, one.many) == (0.5, "one", {"a": 0.5}, [1])
    one.many.append(2)
    assert two.many == [1]
    check_options(one)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Outer(density=float("nan")), "method.density: got nan, expected a fraction"),
        (Outer(kind="twoo"), "method.kind: got 'twoo', expected one of one, two (did you mean 'two'?)"),
        (Outer(rates={"a": 1.0, "b": 2.0}), "method.rates.b: got 2.0, expected a fraction"),
        (Outer(many=[]), "method.many: got [], expected some"),
        (Outer(inner=Inner(-1.0)), "method.inner.lr: got -1.0, expected a number ≥ 0"),
        (Outer(density=0.0, kind="three"), "method.density: got 0.0"),
    ],
)
def test_the_first_field_out_of_its_range_is_named(options: Outer, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_options(options)
    assert str(caught.value).startswith(expected)


def test_times_and_choices() -> None:
    duration("steps", "0it")
    length("steps", "2ep")
    chosen("allocation")("method.allocation", {})
    for check, got, expected in (
        (length, "0it", "k: got '0it', expected a time longer than zero"),
        (duration, "2 weeks", "k: got '2 weeks'"),
        (chosen("allocation"), None, "k: nothing chosen; choose one with allocation=NAME"),
    ):
        with pytest.raises(ConfigError) as caught:
            check("k", got)
        assert str(caught.value).startswith(expected)
