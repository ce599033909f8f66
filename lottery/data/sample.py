"""Which images are enough where not all are needed: a few of each class, or some of a split. Torch-free."""

from __future__ import annotations

import numpy as np

from lottery.data.order import Indices, draws, permutation
from lottery.errors import ConfigError


def sampled(labels: Indices, classes: int, per_class: int, seed: int, key: str) -> Indices:
    """`per_class` positions in `labels` (int64 [N]) of each class, in an order that mixes the classes, int64.

    The k-th images of all classes come together, in an order drawn anew for each k: every beginning of the sample is
    balanced to within one image a class, and a smaller sample of the same seed is the beginning of a larger one.
    Raises ConfigError, naming `key`, where `check_per_class` does.
    """
    check_per_class(np.bincount(labels, minlength=classes).tolist(), per_class, key)
    shuffled = permutation(len(labels), seed, "sample", "images")
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]  # classes ascend, within each a random order
    first = np.searchsorted(labels[by_class], np.arange(classes))
    table = by_class[first + np.arange(per_class)[:, None]]  # [per_class, classes]
    mixed = np.argsort(draws(table.size, seed, "sample", "classes").reshape(table.shape), axis=1, kind="stable")
    return np.take_along_axis(table, mixed, axis=1).ravel()


def check_per_class(counts: list[int], per_class: int, key: str) -> None:
    """Raise ConfigError, naming `key`, unless each class has `per_class` ≥ 1 of the training images."""
    if per_class < 1:
        raise ConfigError.of(key, per_class, "a number of images ≥ 1")
    fewest = min(counts)
    if per_class > fewest:
        expected = f"at most {fewest}: class {counts.index(fewest)} has {fewest} training images"
        raise ConfigError.of(key, per_class, expected)


def subset(count: int, limit: int | None, split: str) -> Indices:
    """A fixed random choice of `limit` of the `count` images of a split, ascending; all where there are no more.

    Not the first ones: a folder's images are sorted by class.
    """
    return np.sort(permutation(count, 0, "subset", split)[:limit])
