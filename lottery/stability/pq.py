"""The PQ index, a measure of sparsity that needs no threshold (Diao et al. 2023; methods.md 7.3). Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lottery.errors import ConfigError
from lottery.stability.distance import Numbers, select


def pq_index(weights: Numbers, p: float = 0.5, q: float = 1.0) -> float | None:
    """1 - d^(1/q - 1/p) |w|_p / |w|_q of d weights, in [0, 1 - d^(1/q - 1/p)]; None where none is other than 0.

    0 where all magnitudes are equal, the upper bound where one weight alone is not zero. Neither scaling the weights
    nor repeating them changes it. ConfigError unless 0 < p < q.
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
    """The PQ index of the kept weights of each layer, pruned ones being no part of it (as in the authors' code)."""
    return {name: pq_index(select(state, name, np.asarray(kept[name])), p, q) for name in kept}


def least_density(index: float, p: float = 0.5, q: float = 1.0, eta: float = 0.0) -> float:
    """r/d = (1 + η)^(-q/(q-p)) (1 - I)^(pq/(q-p)): the share of weights of PQ index I to keep at least, in (0, 1]."""
    return float((1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p)))
