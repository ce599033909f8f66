"""All random choices of the data: draws, orders, splits, samples. Each is a function of its arguments alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lottery.errors import ConfigError
from lottery.seeding import derive

Indices = NDArray[np.int64]


def draws(count: int, seed: int, *words: str | int) -> NDArray[np.uint64]:
    """Draw `count` uniform 64-bit integers, a function of `seed` and `words` alone.

    Only Philox's raw output is used: NumPy keeps that stream stable, but not those of `permutation` or `integers`.
    """
    return np.random.Philox(key=derive(seed, *words)).random_raw(count)


def permutation(count: int, seed: int, *words: str | int) -> Indices:
    """Draw a uniformly random permutation of 0 … count-1, int64 [count]."""
    return np.argsort(draws(count, seed, *words), kind="stable").astype(np.int64)


def integers(count: int, high: int, seed: int, *words: str | int) -> Indices:
    """Draw `count` uniform integers in [0, high), int64 [count]. The modulo's bias is below high/2^64."""
    return (draws(count, seed, *words) % np.uint64(high)).astype(np.int64)


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process reads, where `of` processes train one network together."""

    rank: int = 0
    of: int = 1


WHOLE = Share()


@dataclass(frozen=True)
class Order:
    """The batches of a training run: which of `count` images, in which order, for any absolute step ≥ 0.

    With a `share`, batches stay the same, and this process gets its part of each; the parts add up to the batch.
    """

    count: int
    batch_size: int
    seed: int
    drop_last: bool = False
    share: Share = WHOLE

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError.of("train.batch_size", self.batch_size, "a number of images ≥ 1")
        if self.steps_per_epoch < 1:
            expected = f"at most the {self.count} training images, as incomplete batches are dropped"
            raise ConfigError.of("train.batch_size", self.batch_size, expected)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last one may be short, unless `drop_last`."""
        whole, rest = divmod(self.count, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def locate(self, step: int) -> tuple[int, slice]:
        """Return the epoch of `step`, and the slice of that epoch's permutation to read for it.

        If this process's share of a short batch is empty (see `sizes`), the slice is the batch's first image, which
        must not be counted: networks refuse empty batches.
        """
        start, _, first, last = self._bounds(step)
        return step // self.steps_per_epoch, slice(first, last) if last > first else slice(start, start + 1)

    def sizes(self, step: int) -> tuple[int, int]:
        """Return how many images of the step's batch belong to this process, and how many the batch has."""
        start, stop, first, last = self._bounds(step)
        return last - first, stop - start

    def _bounds(self, step: int) -> tuple[int, int, int, int]:
        """Return start and stop in the permutation, first of the step's batch, then of this process's share of it."""
        if step < 0:
            raise ValueError(f"step {step} < 0")
        start = step % self.steps_per_epoch * self.batch_size
        stop = min(start + self.batch_size, self.count)
        size, rank, of = stop - start, self.share.rank, self.share.of
        return start, stop, start + size * rank // of, start + size * (rank + 1) // of

    def permutation(self, epoch: int) -> Indices:
        """Return the images of an epoch in training order, int64 [count]: a function of (seed, epoch) alone."""
        return permutation(self.count, self.seed, "order", epoch)


@dataclass(frozen=True, eq=False)
class Split:
    """The indices of a source's training images that are trained on or held out: int64, ascending, disjoint.

    They ascend so that the split seed changes nothing where no image is held out or left out.
    """

    train: Indices
    validation: Indices

    @classmethod
    def draw(cls, count: int, validation: int, limit: int | None, seed: int) -> Split:
        """Hold out `validation` of `count` images at random; train on the rest, or on `limit` of them."""
        if validation >= count:
            raise ConfigError.of("data.validation", validation, f"fewer than the {count} images of the training set")
        left = count - validation
        if limit is not None and limit > left:
            expected = f"at most {left}: {count} training images, less data.validation={validation}"
            raise ConfigError.of("data.limit", limit, expected)
        shuffled = permutation(count, seed, "split")
        return cls(np.sort(shuffled[validation:][:limit]), np.sort(shuffled[:validation]))


def sampled(labels: Indices, classes: int, per_class: int, seed: int, key: str) -> Indices:
    """Choose `per_class` positions of each class in `labels` (int64 [N]), in an order that mixes the classes: int64.

    The k-th images of all classes come together, in an order drawn anew for each k. So every beginning of the sample is
    balanced to within one image per class, and a smaller sample of one seed is the beginning of a larger one. Raises
    ConfigError, naming `key`, where `check_per_class` does.
    """
    check_per_class(np.bincount(labels, minlength=classes).tolist(), per_class, key)
    shuffled = permutation(len(labels), seed, "sample", "images")
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]  # classes ascend; the order within each is random
    first = np.searchsorted(labels[by_class], np.arange(classes))
    table = by_class[first + np.arange(per_class)[:, None]]  # [per_class, classes]
    mixed = np.argsort(draws(table.size, seed, "sample", "classes").reshape(table.shape), axis=1, kind="stable")
    return np.take_along_axis(table, mixed, axis=1).ravel()


def check_per_class(counts: list[int], per_class: int, key: str) -> None:
    """Raise ConfigError, naming `key`, unless `per_class` ≥ 1 and each class has that many training images."""
    if per_class < 1:
        raise ConfigError.of(key, per_class, "a number of images ≥ 1")
    fewest = min(counts)
    if per_class > fewest:
        expected = f"at most {fewest}: class {counts.index(fewest)} has {fewest} training images"
        raise ConfigError.of(key, per_class, expected)


def subset(count: int, limit: int | None, split: str) -> Indices:
    """Return a fixed random choice of `limit` of a split's `count` images, ascending; all if there are no more.

    The first images would be a biased choice: a folder's images are sorted by class.
    """
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(permutation(count, 0, "subset", split)[:limit])
