"""How far two masks agree, and how far they would agree by chance. Torch-free; works on packed bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from lottery.errors import LotteryError

Packed = Mapping[str, NDArray[np.uint8]]
"""A mask's bits as in its file: for each parameter `numpy.packbits` of the row-major entries, zero-padded."""


@dataclass(frozen=True)
class Overlap:
    """The number of weights that two masks have in common in a layer. Overlaps of several layers can be added.

    Chance means two independent masks that keep as many weights in each layer, at uniformly random places: the number
    in common is then hypergeometric in each layer.

    size, ours, theirs, common: prunable weights, those that each mask keeps, those that both keep
    expected, variance:         mean and variance of `common` by chance
    """

    size: int = 0
    ours: int = 0
    theirs: int = 0
    common: int = 0
    expected: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, size: int, ours: int, theirs: int, common: int) -> Overlap:
        """Return the overlap in one layer."""
        expected = ours * theirs / size
        spread = (1 - ours / size) * (1 - theirs / size) * size / (size - 1) if size > 1 else 0.0
        return cls(size, ours, theirs, common, expected, expected * spread)

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))

    @property
    def iou(self) -> float:
        """Intersection over union, in [0, 1]; 1 for two empty masks."""
        return self._iou(self.common)

    @property
    def iou_chance(self) -> float:
        """Intersection over union with the intersection that is expected by chance.

        The expected IoU (the mean of the ratio) is higher, by a share of the order 1 / (kept weights).
        """
        return self._iou(self.expected)

    @property
    def hamming(self) -> float:
        """The share of prunable weights that exactly one of the masks keeps, in [0, 1]."""
        return (self.ours + self.theirs - 2 * self.common) / self.size

    @property
    def hamming_chance(self) -> float:
        """The expected `hamming` by chance (exact, since it is linear in the intersection)."""
        return (self.ours + self.theirs - 2 * self.expected) / self.size

    @property
    def surprise(self) -> float | None:
        """How many standard deviations `common` lies above chance; None where chance has no variance."""
        return (self.common - self.expected) / sqrt(self.variance) if self.variance else None

    def _iou(self, common: float) -> float:
        union = self.ours + self.theirs - common
        return common / union if union else 1.0


def overlap_by_layer(ours: Packed, theirs: Packed, sizes: Mapping[str, int]) -> dict[str, Overlap]:
    """Return the overlap in each layer. `sizes`: the number of weights of each layer, in the order of the result.

    Raises LotteryError, naming the first difference, unless both masks cover exactly these layers.
    """
    _check(ours, theirs, sizes)
    found = {}
    for name, size in sizes.items():
        one, other = ours[name], theirs[name]
        found[name] = Overlap.of(size, _count(one), _count(other), _count(one & other))
    return found


def overlap(ours: Packed, theirs: Packed, sizes: Mapping[str, int]) -> Overlap:
    """Return the overlap over all layers together."""
    return sum(overlap_by_layer(ours, theirs, sizes).values(), Overlap())


def _count(packed: NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def _check(ours: Packed, theirs: Packed, sizes: Mapping[str, int]) -> None:
    for name in (*sizes, *ours, *theirs):
        if not (name in sizes and name in ours and name in theirs):
            raise LotteryError(f"masks of different networks: only one of them has {name!r}")
    for name, size in sizes.items():
        expected = ((size + 7) // 8,)
        for packed in (ours[name], theirs[name]):
            if packed.shape != expected:
                got = f"{packed.size} bytes for the {size} weights of {name!r}, expected {expected[0]}"
                raise LotteryError(f"masks of different networks: got {got}")
