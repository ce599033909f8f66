"""Where all randomness of the data comes from: draws that are functions of their key alone, never of a global state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lottery.errors import ConfigError
from lottery.seeding import derive

Indices = NDArray[np.int64]


def draws(count: int, seed: int, *words: str | int) -> NDArray[np.uint64]:
    """`count` uniform 64-bit integers, a function of `seed` and `words` alone.

    Only Philox's raw output is used: NumPy promises to keep that stream, and not those of `permutation` or `integers`.
    """
    return np.random.Philox(key=derive(seed, *words)).random_raw(count)


def permutation(count: int, seed: int, *words: str | int) -> Indices:
    """A uniformly random permutation of 0 … count-1, int64 [count]."""
    return np.argsort(draws(count, seed, *words), kind="stable").astype(np.int64)


def integers(count: int, high: int, seed: int, *words: str | int) -> Indices:
    """`count` uniform integers in [0, high), int64 [count]; the modulo's bias is below high/2^64."""
    return (draws(count, seed, *words) % np.uint64(high)).astype(np.int64)


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process reads, where `of` processes train one network between them."""

    rank: int = 0
    of: int = 1


WHOLE = Share()


@dataclass(frozen=True)
class Order:
    """The batches of a training run: which images of `count`, in which order, for any absolute step ≥ 0.

    With a `share` the batches are the same and one process's part of each is given, `batch_size` or less in all.
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
        """The epoch that `step` belongs to, and which part of that epoch's permutation is to be read for it.

        A process whose share of a short batch is empty (`sizes` says so) reads the batch's first image, since networks
        refuse empty batches; it has to count for nothing.
        """
        epoch, start, stop = self._batch(step)
        first, last = self._part(start, stop)
        return epoch, slice(first, last) if last > first else slice(start, start + 1)

    def sizes(self, step: int) -> tuple[int, int]:
        """How many images of the step's batch are this process's own, and how many there are."""
        _, start, stop = self._batch(step)
        first, last = self._part(start, stop)
        return last - first, stop - start

    def _batch(self, step: int) -> tuple[int, int, int]:
        if step < 0:
            raise ValueError(f"step {step} < 0")
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return epoch, start, min(start + self.batch_size, self.count)

    def _part(self, start: int, stop: int) -> tuple[int, int]:
        size, rank, of = stop - start, self.share.rank, self.share.of
        return start + size * rank // of, start + size * (rank + 1) // of

    def permutation(self, epoch: int) -> Indices:
        """The images of epoch `epoch` in training order, int64 [count]: a function of (seed, epoch) alone."""
        return permutation(self.count, self.seed, "order", epoch)


@dataclass(frozen=True, eq=False)
class Split:
    """Which images of a source's training set are trained on, and which are held out: int64, ascending, disjoint.

    Ascending, so that with nothing held out or left out the split seed changes nothing at all.
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
