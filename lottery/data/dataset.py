"""What the rest of the project may ask of a data set, and what a source has to offer: three protocols."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lottery.data.order import WHOLE, Share

if TYPE_CHECKING:
    from lottery.data.options import Data
    from lottery.data.order import Split

Batch = tuple[Tensor, Tensor]  # images float32 [B, *shape], labels int64 [B]


class Stream(Protocol):
    """Training batches by absolute step: shuffled, augmented, and a function of (seed, step) alone."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last one is short where the batch size does not divide the training images."""

    def batch(self, step: int) -> Batch:
        """The batch of any step ≥ 0, of epoch `step // steps_per_epoch`; fresh tensors on the data set's device.

        A stream that was asked for with a share gives that part of it, at least one image (`Order.locate`).
        """

    def sizes(self, step: int) -> tuple[int, int]:
        """How many images of the step's batch are this process's own (0 … B), and how many there are (B)."""


class Dataset(Protocol):
    """A data set, split and on a device."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (C, H, W), or (C, L) for signals."""

    @property
    def digest(self) -> str:
        """sha256 (hex) of the source, before splitting: split, limit, scaling and augmentation are keyed apart."""

    @property
    def sizes(self) -> dict[str, int]:
        """Images in "train", "validation" (may be 0) and "test"."""

    @property
    def class_sizes(self) -> list[int]:
        """How many training images each class has; it may be none."""

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set, with its batches on `device`."""

    def stream(self, batch_size: int, seed: int, drop_last: bool = False, share: Share = WHOLE) -> Stream:
        """The training batches of `seeds.order = seed`, or a share of each. ConfigError where no batch fits."""

    def batches(self, split: str, size: int, share: Share = WHOLE, limit: int | None = None) -> Iterator[Batch]:
        """All images of "train", "validation" or "test" once, in a fixed order, without augmentation.

        With a share, every so many-th of these batches; there may be none. With a `limit`, a fixed random choice of
        that many of the images.
        """

    def sample(self, per_class: int, seed: int, key: str = "criterion.per_class") -> Batch:
        """`per_class` training images of each class as one batch: scaled, not augmented, on the device.

        Which ones, and their order, is a function of `seed` and of the training split alone; every beginning of the
        batch is balanced to within one image a class. ConfigError, naming `key`, where a class has fewer.
        """

    def pixels(self, split: str, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Like `batches`, but the images are pixels: float32 in [0, 1], not scaled.

        With a `limit`, a fixed random choice of that many of the images. ConfigError, at once, where the values have no
        known range (float32 data).
        """

    def scaled(self, pixels: Tensor) -> Tensor:
        """Network inputs from such pixels [B, *shape], differentiable. ConfigError where there are none."""


class Source(Protocol):
    """What was found on disk or computed, checked, and not yet split."""

    @property
    def train_size(self) -> int:
        """Images in the training set, those to be held out included."""

    def dataset(self, options: Data, split: Split) -> Dataset:
        """Split it. ConfigError or LotteryError, in one line, where the source is not what the options say."""
