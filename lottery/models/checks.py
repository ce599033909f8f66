"""Checks of option values that the model factories share. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from lottery.errors import ConfigError
from lottery.ranges import such_that

SHOWN = 12  # a message lists all allowed names up to this number, else only the nearest

positive = such_that(lambda got: type(got) is int and got >= 1, "an integer ≥ 1")
probability = such_that(
    lambda got: isinstance(got, int | float) and not isinstance(got, bool) and 0 <= got < 1, "a number in [0, 1)"
)


def one_of(key: str, got: object, allowed: Iterable[str]) -> None:
    """Raise ConfigError unless `got` is in `allowed`. The message lists all allowed names, or the nearest of many."""
    names = list(allowed)
    if got in names:
        return
    near = difflib.get_close_matches(str(got), names, n=5, cutoff=0.5)
    if len(names) <= SHOWN:
        expected = "one of " + ", ".join(names) + (f" (nearest: {near[0]})" if near else "")
    else:
        expected = f"one of {len(names)} names" + (f"; nearest: {', '.join(near)}" if near else "")
    raise ConfigError.of(key, got, expected)


def blocks_a_stage(depth: int, extra: int) -> int:
    """Return n of a three-stage residual network of depth 6n + `extra`. ConfigError, with near depths, if none."""
    positive("model.depth", depth)
    blocks, rest = divmod(depth - extra, 6)
    if blocks >= 1 and rest == 0:
        return blocks
    below = max(1, blocks)
    near = f"{6 * below + extra} or {6 * (below + 1) + extra}"
    raise ConfigError.of("model.depth", depth, f"6n + {extra} with n ≥ 1; nearest: {near}")


def image_shape(shape: tuple[int, ...], model: str, least: int = 1) -> tuple[int, int, int]:
    """Return `shape` as (channels, height, width). Raises ConfigError for a side of fewer than `least` pixels."""
    if len(shape) != 3:
        raise ConfigError(
            f"model: {model} takes images (channels, height, width), the data have shape {tuple(shape)}; "
            "model=mlp and model=lenet_300_100 take any shape"
        )
    channels, height, width = shape
    if min(height, width) < least:
        raise ConfigError(f"model: {model} needs at least {least}x{least} pixels, the data have {height}x{width}")
    return channels, height, width
