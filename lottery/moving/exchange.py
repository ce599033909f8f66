"""Which weights go and which come: exact numbers, on flat arrays. Of equal scores the earlier entry goes first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lottery.pruning.prune import highest

Flags = NDArray[np.bool_]


def without_lowest(kept: Flags, scores: NDArray, number: int) -> Flags:
    """Return the kept entries without the `number` lowest-scored ones. Entries that are not kept take no part."""
    left = kept.copy()
    values = scores[kept]
    left[kept] = highest(values, values.size - number)[0]
    return left


def with_highest(kept: Flags, scores: NDArray, number: int, free: Flags) -> Flags:
    """Return the kept entries and the `number` highest-scored of the free ones."""
    more = kept.copy()
    more[free] = highest(scores[free], number)[0]
    return more


def together(layers: list[NDArray]) -> NDArray:
    """Return all layers as one array."""
    return np.concatenate(layers)


def apart(joined: NDArray, layers: list[Flags]) -> list[NDArray]:
    """Return one array as an array a layer, of the sizes of `layers`."""
    return np.split(joined, np.cumsum([layer.size for layer in layers])[:-1])
