"""How far two networks lie from each other, over the weights that a mask keeps. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import atan2, degrees, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lottery.errors import LotteryError

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """Between two weight vectors (Stabilizing the LTH, section 2; methods.md 2.2).

    l2:           Euclidean distance
    angle:        between the vectors themselves, in degrees [0, 180]; None where one of them is zero
    sign_changes: the share of weights whose sign (-, 0, +) differs, in [0, 1]
    weights:      how many there are
    """

    l2: float
    angle: float | None
    sign_changes: float
    weights: int


def distance(
    one: Mapping[str, Any], other: Mapping[str, Any], kept: Mapping[str, Any], layers: Iterable[str] | None = None
) -> Distance | None:
    """Over the kept weights of these layers, or of all, taken as one vector; None where nothing is kept.

    The arguments hold tensors or arrays by parameter name: two states, and the mask (bool). Sums are in float64, a
    layer at a time. The angle is Kahan's 2 atan2(|u - v|, |u + v|) of the unit vectors: exactly 0 for equal ones,
    where the arc cosine of the scalar product would lose half of the digits. LotteryError where a state lacks
    a layer or has it in another shape.
    """
    names = list(kept) if layers is None else list(layers)
    count = changed = 0
    squares = [0.0, 0.0, 0.0]
    for a, b in _pairs(one, other, kept, names):
        squares = [so_far + _square(vector) for so_far, vector in zip(squares, (a, b, a - b), strict=True)]
        changed += int(np.count_nonzero(np.sign(a) != np.sign(b)))
        count += a.size
    if not count:
        return None
    norm_a, norm_b, apart = map(sqrt, squares)
    angle = None
    if norm_a > 0 and norm_b > 0:
        difference = total = 0.0
        for a, b in _pairs(one, other, kept, names):
            u, v = a / norm_a, b / norm_b
            difference, total = difference + _square(u - v), total + _square(u + v)
        angle = degrees(2 * atan2(sqrt(difference), sqrt(total)))
    return Distance(apart, angle, changed / count, count)


def _pairs(
    one: Mapping[str, Any], other: Mapping[str, Any], kept: Mapping[str, Any], names: Iterable[str]
) -> Iterator[tuple[Numbers, Numbers]]:
    """The kept weights of both, float64 [kept], layer by layer."""
    for name in names:
        mask = np.asarray(kept[name])
        yield select(one, name, mask), select(other, name, mask)


def select(state: Mapping[str, Any], name: str, kept: NDArray[np.bool_]) -> Numbers:
    """The kept weights of a layer, float64 [kept]; LotteryError where the state has no such layer."""
    if name not in state:
        raise LotteryError(f"the mask prunes {name!r}, which the state does not have")
    value = state[name]
    if hasattr(value, "detach"):  # a tensor, which may be on a GPU, or bfloat16 (unknown to NumPy)
        value = value.detach().cpu().double().numpy()
    if value.shape != kept.shape:
        shapes = f"{list(kept.shape)} in the mask, {list(value.shape)} in the state"
        raise LotteryError(f"{name!r} is {shapes}: they belong to different networks")
    return np.asarray(value, np.float64)[kept]


def _square(vector: Numbers) -> float:
    return float(vector @ vector)
