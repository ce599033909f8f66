"""Measures of the weights that a mask keeps: distance between two networks, and inequality within one. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import atan2, degrees, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lottery.errors import ConfigError, LotteryError

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """The distance between two weight vectors (Stabilizing the LTH, section 2).

    l2:           Euclidean distance
    angle:        angle between the vectors, in degrees [0, 180]; None where a vector is zero
    sign_changes: share of weights whose sign (-, 0, +) differs, in [0, 1]
    """

    l2: float
    angle: float | None
    sign_changes: float


def distance(one: Mapping[str, Any], other: Mapping[str, Any], kept: Mapping[str, Any]) -> Distance | None:
    """Measure the distance over all kept weights, taken as one vector; None where nothing is kept.

    The arguments map parameter names to tensors or arrays: two states, and the mask (bool). Sums are in float64, one
    layer at a time. The angle is Kahan's 2 atan2(|u - v|, |u + v|) of the unit vectors: exactly 0 for equal ones, where
    the arc cosine of the scalar product would lose half of the digits. LotteryError as in `select`.
    """
    count = changed = 0
    squares = [0.0, 0.0, 0.0]
    for a, b in _pairs(one, other, kept):
        squares = [so_far + _square(vector) for so_far, vector in zip(squares, (a, b, a - b), strict=True)]
        changed += int(np.count_nonzero(np.sign(a) != np.sign(b)))
        count += a.size
    if not count:
        return None
    norm_a, norm_b, apart = map(sqrt, squares)
    angle = None
    if norm_a > 0 and norm_b > 0:
        difference = total = 0.0
        for a, b in _pairs(one, other, kept):
            u, v = a / norm_a, b / norm_b
            difference, total = difference + _square(u - v), total + _square(u + v)
        angle = degrees(2 * atan2(sqrt(difference), sqrt(total)))
    return Distance(apart, angle, changed / count)


def _pairs(
    one: Mapping[str, Any], other: Mapping[str, Any], kept: Mapping[str, Any]
) -> Iterator[tuple[Numbers, Numbers]]:
    return ((select(one, name, mask), select(other, name, mask)) for name, mask in kept.items())


def select(state: Mapping[str, Any], name: str, kept: Any) -> Numbers:
    """Return the kept weights of a layer, float64 [kept]. LotteryError for a missing layer or one of another shape."""
    if name not in state:
        raise LotteryError(f"the mask prunes {name!r}, which the state does not have")
    value, mask = state[name], np.asarray(kept)
    if hasattr(value, "detach"):  # a tensor, which may be on a GPU, or bfloat16 (unknown to NumPy)
        value = value.detach().cpu().double().numpy()
    if value.shape != mask.shape:
        shapes = f"{list(mask.shape)} in the mask, {list(value.shape)} in the state"
        raise LotteryError(f"{name!r} is {shapes}: they belong to different networks")
    return np.asarray(value, np.float64)[mask]


def _square(vector: Numbers) -> float:
    return float(vector @ vector)


def pq_index(weights: Numbers, p: float = 0.5, q: float = 1.0) -> float | None:
    """Return the PQ index, a measure of sparsity that needs no threshold (Diao et al. 2023).

    It is 1 - d^(1/q - 1/p) |w|_p / |w|_q of d weights, in [0, 1 - d^(1/q - 1/p)]: 0 where all magnitudes are equal, the
    upper bound where a single weight is nonzero. Neither scaling nor repeating the weights changes it. Returns None
    where all weights are zero. Raises ConfigError unless 0 < p < q.
    """
    if not 0 < p < q:
        raise ConfigError.of("p, q", (p, q), "0 < p < q, such as 0.5 and 1")
    magnitudes = np.abs(np.asarray(weights, np.float64)).ravel()
    largest = magnitudes.max(initial=0.0)
    if not largest > 0:
        return None
    magnitudes = magnitudes / largest  # so that no power over- or underflows
    # |w|_p d^(-1/p) is a power mean, which depends on no count.
    means = [float(np.mean(magnitudes**power)) ** (1 / power) for power in (p, q)]
    return 1 - means[0] / means[1]


def pq_by_layer(
    state: Mapping[str, Any], kept: Mapping[str, Any], p: float = 0.5, q: float = 1.0
) -> dict[str, float | None]:
    """Return the PQ index of each layer's kept weights, without the pruned ones (as in the authors' code)."""
    return {name: pq_index(select(state, name, kept[name]), p, q) for name in kept}


def least_density(index: float, p: float = 0.5, q: float = 1.0, eta: float = 0.0) -> float:
    """Return r/d, the least share in (0, 1] of weights to keep at PQ index I: (1 + η)^(-q/(q-p)) (1 - I)^(pq/(q-p))."""
    return float((1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p)))
