"""Data sets that fit in memory: four tensors, split, on the training device, gathered one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lottery.config.data import Data
from lottery.data.dataset import Batch, Dataset, Stream
from lottery.data.order import WHOLE, Indices, Order, Share, Split, sampled
from lottery.data.transforms import FlipCrop, Scaler
from lottery.errors import LotteryError
from lottery.state import digest_of


@dataclass(frozen=True, eq=False)
class Arrays:
    """The arrays of an in-memory data set, as its source returns them. `origin`: a file or function, for errors."""

    origin: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    NAMES = ("train_images", "train_labels", "test_images", "test_labels")

    @classmethod
    def of(cls, found: Mapping[str, Tensor | np.ndarray], origin: str) -> Arrays:
        """Create from a mapping of tensors or arrays; ignore other entries. LotteryError where one is missing."""
        missing = [name for name in cls.NAMES if name not in found]
        if missing:
            raise LotteryError(f"{origin}: has no {', '.join(missing)}; expected the tensors {', '.join(cls.NAMES)}")
        return cls(origin, *(torch.as_tensor(found[name]).cpu().contiguous() for name in cls.NAMES))

    @property
    def train_size(self) -> int:
        return len(self.train_images)

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over the names, types, shapes and bytes of the four tensors."""
        return digest_of((name, getattr(self, name)) for name in self.NAMES)

    def check(self, shape: list[int], classes: int, dtypes: tuple[torch.dtype, ...]) -> None:
        """Raise LotteryError, naming origin and tensor, where types, shapes, counts or values are not as declared."""
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if images.dtype not in dtypes or images.dtype != self.train_images.dtype:
                self._fail(f"{part}_images", images.dtype, " or ".join(map(str, dtypes)) + ", the same in both parts")
            if not len(images) or list(images.shape[1:]) != list(shape):
                self._fail(f"{part}_images", f"shape {list(images.shape)}", f"[N, {', '.join(map(str, shape))}], N ≥ 1")
            if images.is_floating_point() and not bool(torch.isfinite(images).all()):
                self._fail(f"{part}_images", "infinite or undefined values", "finite ones")
            if labels.dtype != torch.int64:
                self._fail(f"{part}_labels", labels.dtype, "torch.int64")
            if labels.shape != images.shape[:1]:
                self._fail(f"{part}_labels", f"shape {list(labels.shape)}", f"[{len(images)}], one label an image")
            if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                self._fail(f"{part}_labels", f"labels {int(labels.min())} … {int(labels.max())}", f"0 … {classes - 1}")

    def _fail(self, name: str, got: object, expected: str) -> None:
        raise LotteryError(f"{self.origin}: {name}: got {got}, expected {expected}")

    def dataset(self, options: Data, split: Split) -> TensorDataset:
        """Check the arrays against the options' shape and classes, and split them."""
        self.check(options.shape, options.classes, (torch.uint8, torch.float32))
        training = (self.train_images, self.train_labels)
        indices = {"train": split.train, "validation": split.validation}
        splits = {name: _taken(training, chosen) for name, chosen in indices.items()}
        return TensorDataset(options, {**splits, "test": (self.test_images, self.test_labels)}, self.digest)


def _taken(batch: Batch, indices: Indices) -> Batch:
    """Return the images and labels at these indices, which ascend."""
    images, labels = batch
    if len(indices) == len(labels):  # all rows in order: no copy is needed
        return batch
    chosen = torch.from_numpy(indices).to(labels.device)
    return images[chosen], labels[chosen]


class TensorDataset(Dataset):
    """A data set in memory: for each split images (uint8 or float32) [N, *shape] and labels int64 [N]."""

    def __init__(self, options: Data, splits: dict[str, Batch], digest: str) -> None:
        images, self.splits = splits["test"][0], splits
        sizes = {split: len(labels) for split, (_, labels) in splits.items()}
        super().__init__(options, sizes, digest, images.dtype, images.device)

    def to(self, device: torch.device | str) -> TensorDataset:
        """Return the data set on `device`; tensors that are there already are shared, not copied."""
        splits = {name: (images.to(device), labels.to(device)) for name, (images, labels) in self.splits.items()}
        return TensorDataset(self.options, splits, self.digest)

    def labels(self, split: str) -> Indices:
        return self.splits[split][1].cpu().numpy()

    def stream(self, batch_size: int, seed: int, drop_last: bool = False, share: Share = WHOLE) -> TensorStream:
        return TensorStream(self, Order(self.sizes["train"], batch_size, seed, drop_last, share))

    def sample(self, per_class: int, seed: int, key: str = "criterion.per_class") -> Batch:
        images, labels = self.splits["train"]
        chosen = torch.from_numpy(sampled(self.labels("train"), self.classes, per_class, seed, key)).to(self.device)
        return self.scale(images.index_select(0, chosen)), labels.index_select(0, chosen)

    def _chosen(self, split: str, chosen: Indices, size: int, scale: Scaler, share: Share = WHOLE) -> Iterator[Batch]:
        whole = zip(*(tensor.split(size) for tensor in _taken(self.splits[split], chosen)), strict=True)
        for images, labels in islice(whole, share.rank, None, share.of):
            if len(labels):
                yield scale(images), labels.clone()


class TensorStream(Stream):
    """Batches of a TensorDataset's training split. Holds the random draws of one epoch at a time."""

    def __init__(self, data: TensorDataset, order: Order) -> None:
        super().__init__(order)
        self._images, self._labels = data.splits["train"]
        self._scale, self._epoch = data.scale, -1
        flip, crop = data.options.flip, data.options.crop
        self._augment = (
            FlipCrop(data.shape, flip, crop, data.device, data.options.padding) if flip or crop > 0 else None
        )

    def batch(self, step: int) -> Batch:
        epoch, part = self.order.locate(step)
        if epoch != self._epoch:
            self._begin_(epoch)
        index = self._index[part]
        images = self._images.index_select(0, index)
        if self._augment is not None:
            images = self._augment(images, part)
        return self._scale(images), self._labels.index_select(0, index)

    def _begin_(self, epoch: int) -> None:
        self._index = torch.from_numpy(self.order.permutation(epoch)).to(self._images.device)
        if self._augment is not None:
            self._augment.draw_(self.order.count, self.order.seed, epoch)
        self._epoch = epoch
