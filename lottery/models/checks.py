"""Checks of option values that the model factories share. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from lottery.errors import ConfigError


def one_of(key: str, got: object, allowed: Iterable[str], shown: int = 12) -> str:
    """`got` if it is among `allowed`, else a ConfigError that lists them, or the nearest few where they are many."""
    names = list(allowed)
    if got in names:
        return str(got)
    near = difflib.get_close_matches(str(got), names, n=5, cutoff=0.5)
    if len(names) <= shown:
        expected = "one of " + ", ".join(names) + (f" (nearest: {near[0]})" if near else "")
    else:
        expected = f"one of {len(names)} names" + (f"; nearest: {', '.join(near)}" if near else "")
    raise ConfigError.of(key, got, expected)


def positive(key: str, got: int) -> int:
    """`got` if it is an integer ≥ 1, else a ConfigError."""
    if isinstance(got, bool) or not isinstance(got, int) or got < 1:
        raise ConfigError.of(key, got, "an integer ≥ 1")
    return got


def probability(key: str, got: float) -> float:
    """`got` if it is in [0, 1), else a ConfigError."""
    if isinstance(got, bool) or not isinstance(got, int | float) or not 0 <= got < 1:
        raise ConfigError.of(key, got, "a number in [0, 1)")
    return got


def blocks_a_stage(depth: int, extra: int) -> int:
    """n of a three-stage residual network of depth 6n + `extra`, else a ConfigError that names the nearest depths."""
    key = "model.depth"
    positive(key, depth)
    blocks, rest = divmod(depth - extra, 6)
    if blocks >= 1 and rest == 0:
        return blocks
    below = max(1, blocks)
    near = f"{6 * below + extra} or {6 * (below + 1) + extra}"
    raise ConfigError.of(key, depth, f"6n + {extra} with n ≥ 1; nearest: {near}")


def image_shape(shape: tuple[int, ...], model: str) -> tuple[int, int, int]:
    """`shape` as (channels, height, width), else a ConfigError: convolutional networks take images only."""
    if len(shape) != 3:
        raise ConfigError(
            f"model: {model} takes images (channels, height, width), the data have shape {tuple(shape)}; "
            "model=mlp and model=lenet_300_100 take any shape"
        )
    return shape
