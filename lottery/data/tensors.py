"""Data sets that fit in memory: four tensors, split, on the training device, gathered a batch at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lottery.data.augment import FlipCrop
from lottery.data.dataset import Batch
from lottery.data.options import Data
from lottery.data.order import WHOLE, Indices, Order, Share, Split
from lottery.data.sample import sampled, subset
from lottery.data.scaling import Scaler, check_pixels, from_pixels, scaler, to_pixels
from lottery.errors import LotteryError


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a source of an in-memory data set yields. `origin` (a file, or a function) is what errors name."""

    origin: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    NAMES = ("train_images", "train_labels", "test_images", "test_labels")

    @classmethod
    def of(cls, found: Mapping[str, Tensor | np.ndarray], origin: str) -> Arrays:
        """From a mapping of tensors or arrays; further entries are ignored. LotteryError where one is missing."""
        missing = [name for name in cls.NAMES if name not in found]
        if missing:
            raise LotteryError(f"{origin}: has no {', '.join(missing)}; expected the tensors {', '.join(cls.NAMES)}")
        return cls(origin, *(torch.as_tensor(found[name]).cpu().contiguous() for name in cls.NAMES))

    @property
    def train_size(self) -> int:
        return len(self.train_images)

    def digest(self) -> str:
        """sha256 (hex) over the names, types, shapes and bytes of the four tensors."""
        sha = hashlib.sha256()
        for name in self.NAMES:
            tensor: Tensor = getattr(self, name)
            sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            sha.update(tensor.numpy().data)
        return sha.hexdigest()

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
        """Check against the options' shape and classes, and split."""
        self.check(options.shape, options.classes, (torch.uint8, torch.float32))
        splits = {
            "train": (_take(self.train_images, split.train), _take(self.train_labels, split.train)),
            "validation": (_take(self.train_images, split.validation), _take(self.train_labels, split.validation)),
            "test": (self.test_images, self.test_labels),
        }
        return TensorDataset(options, splits, self.digest())


def _take(tensor: Tensor, indices: Indices) -> Tensor:
    # A split's indices ascend: as many as there are rows means every row in its place, and no copy is needed.
    return tensor if len(indices) == len(tensor) else tensor[torch.from_numpy(indices).to(tensor.device)]


class TensorDataset:
    """A Dataset (dataset.py) in memory: for each split images (uint8 or float32) [N, *shape] and labels int64 [N]."""

    def __init__(self, options: Data, splits: dict[str, Batch], digest: str) -> None:
        images, _ = splits["test"]
        self.options, self.splits, self.digest, self.device = options, splits, digest, images.device
        self.scale = scaler(options, images.dtype, images.device)

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def classes(self) -> int:
        return self.options.classes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.options.shape)

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(labels) for split, (_, labels) in self.splits.items()}

    def to(self, device: torch.device | str) -> TensorDataset:
        """The same data set on `device`; tensors that are there already are shared, not copied."""
        splits = {name: (images.to(device), labels.to(device)) for name, (images, labels) in self.splits.items()}
        return TensorDataset(self.options, splits, self.digest)

    def stream(self, batch_size: int, seed: int, drop_last: bool = False, share: Share = WHOLE) -> TensorStream:
        return TensorStream(self, Order(self.sizes["train"], batch_size, seed, drop_last, share))

    def batches(self, split: str, size: int, share: Share = WHOLE, limit: int | None = None) -> Iterator[Batch]:
        images, labels = self.splits[split]
        if limit is not None:
            chosen = subset(len(labels), limit, split)
            images, labels = _take(images, chosen), _take(labels, chosen)
        return _batches((images, labels), size, self.scale, share)

    @property
    def class_sizes(self) -> list[int]:
        return torch.bincount(self.splits["train"][1], minlength=self.classes).tolist()

    def sample(self, per_class: int, seed: int, key: str = "criterion.per_class") -> Batch:
        images, labels = self.splits["train"]
        chosen = torch.from_numpy(sampled(labels.cpu().numpy(), self.classes, per_class, seed, key)).to(self.device)
        return self.scale(images.index_select(0, chosen)), labels.index_select(0, chosen)

    def pixels(self, split: str, size: int, limit: int | None = None) -> Iterator[Batch]:
        images, labels = self.splits[split]
        check_pixels(self.options, images.dtype)
        chosen = subset(len(labels), limit, split)
        return _batches((_take(images, chosen), _take(labels, chosen)), size, to_pixels)

    def scaled(self, pixels: Tensor) -> Tensor:
        check_pixels(self.options, self.splits["test"][0].dtype)
        return from_pixels(self.scale, pixels)


def _batches(of: Batch, size: int, scale: Scaler, share: Share = WHOLE) -> Iterator[Batch]:
    whole = zip(*(tensor.split(size) for tensor in of), strict=True)
    for images, labels in islice(whole, share.rank, None, share.of):
        if len(labels):
            yield scale(images), labels.clone()


class TensorStream:
    """A Stream (dataset.py) over a TensorDataset's training split; holds the draws of one epoch at a time."""

    def __init__(self, data: TensorDataset, order: Order) -> None:
        self._images, self._labels = data.splits["train"]
        self._scale = data.scale
        self._order, self._epoch = order, -1
        self.steps_per_epoch = order.steps_per_epoch
        options = data.options
        augmented = options.flip or options.crop > 0
        self._augment = FlipCrop(data.shape, options.flip, options.crop, data.device) if augmented else None

    def batch(self, step: int) -> Batch:
        epoch, part = self._order.locate(step)
        if epoch != self._epoch:
            self._begin_(epoch)
        index = self._index[part]
        images = self._images.index_select(0, index)
        if self._augment is not None:
            images = self._augment(images, part)
        return self._scale(images), self._labels.index_select(0, index)

    def sizes(self, step: int) -> tuple[int, int]:
        return self._order.sizes(step)

    def _begin_(self, epoch: int) -> None:
        self._index = torch.from_numpy(self._order.permutation(epoch)).to(self._images.device)
        if self._augment is not None:
            self._augment.draw_(self._order.count, self._order.seed, epoch)
        self._epoch = epoch
