"""Interfaces of data sets, their training batches, and their sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from lottery.data.order import WHOLE, Indices, Order, Share, subset
from lottery.data.transforms import Scaler, check_pixels, scaler, to_pixels

if TYPE_CHECKING:
    from lottery.config.data import Data
    from lottery.data.order import Split

Batch = tuple[Tensor, Tensor]  # images float32 [B, *shape], labels int64 [B]


class Stream(ABC):
    """Training batches by absolute step: shuffled, augmented, and a function of (seed, step) alone.

    `steps_per_epoch`: batches in an epoch; the last one is short where the batch size does not divide the images.
    """

    def __init__(self, order: Order) -> None:
        self.order, self.steps_per_epoch = order, order.steps_per_epoch

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Return the batch of a step ≥ 0, in epoch `step // steps_per_epoch`: fresh tensors on the data set's device.

        A stream created with a share returns that part of the batch, at least one image (`Order.locate`).
        """

    def sizes(self, step: int) -> tuple[int, int]:
        """Return how many images of the step's batch this process trains on (0 … B), and how many the batch has (B)."""
        return self.order.sizes(step)


class Dataset(ABC):
    """A data set, split and on a device.

    name, classes: from the options
    shape:         of one image: (C, H, W), or (C, L) for signals
    digest:        sha256 (hex) of the source before splitting; split, limit, scaling and augmentation have keys of
                   their own
    sizes:         number of images in "train", "validation" (may be 0) and "test"
    """

    def __init__(
        self, options: Data, sizes: dict[str, int], digest: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.options, self.sizes, self.digest, self.dtype, self.device = options, sizes, digest, dtype, device
        self.name, self.classes, self.shape = options.name, options.classes, tuple(options.shape)
        self.scale = scaler(options, dtype, device)

    @abstractmethod
    def to(self, device: torch.device | str) -> Dataset:
        """Return this data set with its batches on `device`."""

    @abstractmethod
    def labels(self, split: str) -> Indices:
        """Return the labels of a split: int64 [N]."""

    @property
    def class_sizes(self) -> list[int]:
        """The number of training images of each class, which may be 0."""
        return np.bincount(self.labels("train"), minlength=self.classes).tolist()

    @abstractmethod
    def stream(self, batch_size: int, seed: int, drop_last: bool = False, share: Share = WHOLE) -> Stream:
        """Return the training batches for `seeds.order = seed`, or a share of each. ConfigError where no batch fits."""

    def batches(self, split: str, size: int, share: Share = WHOLE, limit: int | None = None) -> Iterator[Batch]:
        """Yield all images of "train", "validation" or "test" once, in a fixed order, without augmentation.

        With a share, every `share.of`-th batch (maybe none). With a `limit`, a fixed random choice of that many images.
        """
        return self._chosen(split, subset(self.sizes[split], limit, split), size, self.scale, share)

    def images(self, count: int) -> Tensor:
        """Return (at most) `count` training images [N, *shape], a fixed random choice, without augmentation."""
        return next(self.batches("train", count, limit=count))[0]

    @abstractmethod
    def _chosen(self, split: str, chosen: Indices, size: int, scale: Scaler, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield batches of the chosen images, whose indices are in ascending order."""

    @abstractmethod
    def sample(self, per_class: int, seed: int, key: str = "criterion.per_class") -> Batch:
        """Return `per_class` training images of each class as one batch: scaled, not augmented, on the device.

        The images and their order are a function of `seed` and the training split alone. Every beginning of the batch
        is balanced to within one image per class. Raises ConfigError, naming `key`, where a class has fewer images.
        """

    def pixels(self, split: str, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Like `batches`, with pixels: float32 in [0, 1], not scaled. Raises ConfigError at once for float32 data."""
        check_pixels(self.name, self.dtype)
        return self._chosen(split, subset(self.sizes[split], limit, split), size, to_pixels)

    def scaled(self, pixels: Tensor) -> Tensor:
        """Convert pixels [B, *shape] to network inputs, differentiably. ConfigError where `pixels` raises it."""
        check_pixels(self.name, self.dtype)
        return self.scale(255 * pixels)  # scalers work in place: here on this product, not on `pixels`


class Source(Protocol):
    """Data that were found on disk or computed, and checked, but not split yet."""

    @property
    def train_size(self) -> int:
        """Number of images in the training set, including those to be held out."""

    def dataset(self, options: Data, split: Split) -> Dataset:
        """Split the data. Raises ConfigError or LotteryError, in one line, where the source contradicts the options."""
