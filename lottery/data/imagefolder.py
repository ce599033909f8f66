"""ImageNet-like trees, too large for memory: `folder/{train,val}/CLASS/*.jpg`, decoded by worker processes."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lottery.data.dataset import Batch
from lottery.data.options import Data
from lottery.data.order import WHOLE, Indices, Order, Share, Split
from lottery.data.sample import sampled, subset
from lottery.data.scaling import Scaler, from_pixels, scaler, to_pixels
from lottery.errors import ConfigError, LotteryError
from lottery.seeding import derive

Sample = tuple[str, int]  # path of an image, label
Item = int | tuple[int, int, int]  # image; or image, seed, epoch


def imagefolder(options: Data, folder: Path) -> Tree:
    """The tree `folder/options.folder` (default: `options.name`). Its "val" half is the test set.

    Training images: a random crop of 8 to 100 % of the area, aspect 3/4 to 4/3, resized to `shape`, mirrored with
    probability 1/2 if `flip` (the ImageNet recipe). Evaluation: shorter side to `resize`, then the central crop.
    """
    if len(options.shape) != 3 or options.shape[0] != 3:
        raise ConfigError.of("data.shape", list(options.shape), "[3, H, W]: image folders are read in colour")
    if options.crop:
        raise ConfigError.of("data.crop", options.crop, "0: images from a folder are cropped by area, not by padding")
    if not options.resize:
        raise ConfigError.of("data.resize", 0, "the shorter side before the centre crop, such as 256")
    root = folder / (options.folder or options.name)
    train, classes = _scan(root / "train")
    test, test_classes = _scan(root / "val")
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise LotteryError(f"{root}: train and val have different classes, such as {odd[0]!r}")
    if len(classes) != options.classes:
        raise LotteryError(f"{root}: got {len(classes)} class folders, expected data.classes={options.classes}")
    return Tree(root, tuple(classes), train, test)


def _scan(root: Path) -> tuple[list[Sample], list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(root))
    except OSError as error:
        line = " ".join(str(error).split())
        raise LotteryError(f"{root}: expected a folder of images for each class ({line})") from error
    return found.samples, found.classes


@dataclass(frozen=True, eq=False)
class Tree:
    """What a scan of the tree found."""

    root: Path
    classes: tuple[str, ...]
    train: list[Sample]
    test: list[Sample]

    @property
    def train_size(self) -> int:
        return len(self.train)

    def digest(self) -> str:
        """sha256 (hex) over the class names and the sorted relative names and sizes of the files: not their bytes."""
        sha = hashlib.sha256(json.dumps(self.classes).encode())
        for path in sorted(path for path, _ in self.train + self.test):
            sha.update(json.dumps([Path(path).relative_to(self.root).as_posix(), os.stat(path).st_size]).encode())
        return sha.hexdigest()

    def dataset(self, options: Data, split: Split) -> FolderDataset:
        indices = {"train": split.train, "validation": split.validation}
        splits = {name: Images(self.train, index, options) for name, index in indices.items()}
        splits["test"] = Images(self.test, None, options)
        return FolderDataset(options, splits, self.digest(), torch.device("cpu"))


class Images(TorchDataset):
    """Some images of a list, decoded on demand, a batch at a time, in this or in a worker process.

    In a list of items, `i` is image i as it is evaluated, and `(i, seed, epoch)` as it is trained on in that epoch.
    """

    def __init__(self, samples: list[Sample], indices: Indices | None, options: Data) -> None:
        self._samples, self._indices = samples, indices
        self._size, self._resize, self._flip = options.shape[1:], options.resize, options.flip

    def __len__(self) -> int:
        return len(self._samples if self._indices is None else self._indices)

    @property
    def labels(self) -> Indices:
        """int64 [N]; nothing is decoded for them."""
        labels = np.array([label for _, label in self._samples], np.int64)
        return labels if self._indices is None else labels[self._indices]

    def __getitem__(self, items: Sequence[Item]) -> Batch | LotteryError:
        """Images uint8 [B, 3, H, W] and labels; or an error, which raised here would drag the worker's traceback."""
        try:
            images, labels = zip(*(self._read(item) for item in items), strict=True)
        except LotteryError as error:
            return error
        return torch.stack(images), torch.tensor(labels)

    def _read(self, item: Item) -> tuple[Tensor, int]:
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor

        index, *draw = (item,) if isinstance(item, int) else item
        position = index if self._indices is None else int(self._indices[index])
        path, label = self._samples[position]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for a broken file
            raise LotteryError(f"{path}: cannot be read as an image ({error})") from error
        image = self._augmented(image, derive(draw[0], "augment", draw[1], position)) if draw else self._central(image)
        return pil_to_tensor(image), label

    def _central(self, image: Any) -> Any:
        from torchvision.transforms.functional import center_crop, resize

        return center_crop(resize(image, [self._resize]), list(self._size))

    def _augmented(self, image: Any, seed: int) -> Any:
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.functional import hflip, resized_crop

        # torchvision draws from the global generator: lend it the image's own seed, and put its state back after.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            area = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            mirror = self._flip and bool(torch.rand(()) < 0.5)
        image = resized_crop(image, *area, list(self._size))
        return hflip(image) if mirror else image


class FolderDataset:
    """A Dataset (dataset.py) whose images are read from disk each time."""

    def __init__(self, options: Data, splits: dict[str, Images], digest: str, device: torch.device) -> None:
        self.options, self.splits, self.digest, self.device = options, splits, digest, device
        self.scale = scaler(options, torch.uint8, device)

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
        return {split: len(images) for split, images in self.splits.items()}

    def to(self, device: torch.device | str) -> FolderDataset:
        return FolderDataset(self.options, self.splits, self.digest, torch.device(device))

    def stream(self, batch_size: int, seed: int, drop_last: bool = False, share: Share = WHOLE) -> FolderStream:
        return FolderStream(self, Order(self.sizes["train"], batch_size, seed, drop_last, share))

    def batches(self, split: str, size: int, share: Share = WHOLE, limit: int | None = None) -> Iterator[Batch]:
        count = len(self.splits[split])
        whole = _pieces(range(count) if limit is None else subset(count, limit, split).tolist(), size)
        return self.read(split, islice(whole, share.rank, None, share.of))

    @property
    def class_sizes(self) -> list[int]:
        return np.bincount(self.splits["train"].labels, minlength=self.classes).tolist()

    def sample(self, per_class: int, seed: int, key: str = "criterion.per_class") -> Batch:
        chosen = sampled(self.splits["train"].labels, self.classes, per_class, seed, key).tolist()
        images, labels = zip(*self.read("train", _pieces(chosen, 64)), strict=True)
        return torch.cat(images), torch.cat(labels)

    def pixels(self, split: str, size: int, limit: int | None = None) -> Iterator[Batch]:
        chosen = subset(len(self.splits[split]), limit, split).tolist()
        return self.read(split, _pieces(chosen, size), to_pixels)

    def scaled(self, pixels: Tensor) -> Tensor:
        return from_pixels(self.scale, pixels)

    def read(
        self, split: str, batches: Iterable[Sequence[Item]], scale: Scaler | None = None
    ) -> Generator[Batch, None, None]:
        """Decode batches of items of `split`, ahead of their use where there are workers; scale them on the device.

        `scale` is used instead of the data set's own scaling.
        """
        loader = DataLoader(
            self.splits[split],
            sampler=batches,
            batch_size=None,  # an item of the sampler is a batch already
            num_workers=self.options.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else making an iterator draws from the global one
        )
        for batch in loader:
            if isinstance(batch, LotteryError):
                raise batch
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            yield (scale or self.scale)(images), labels


def _pieces(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class FolderStream:
    """A Stream (dataset.py) over a FolderDataset: any step is right, and steps in sequence are read ahead."""

    def __init__(self, data: FolderDataset, order: Order) -> None:
        self._data, self._order = data, order
        self.steps_per_epoch = order.steps_per_epoch
        self._next_step = -1
        self._batches: Iterator[Batch] = iter(())
        self._close: Callable[[], object] = lambda: None

    def batch(self, step: int) -> Batch:
        self._order.locate(step)  # raises for a step that does not exist
        if step != self._next_step:
            self._start_(step)
        self._next_step = -1  # so that after an error the same step is tried again
        batch = next(self._batches)
        self._next_step = step + 1
        return batch

    def sizes(self, step: int) -> tuple[int, int]:
        return self._order.sizes(step)

    def _start_(self, step: int) -> None:
        self._close()
        self._batches = batches = self._data.read("train", _training_items(self._order, step))
        # Left to the garbage collector as part of a cycle, torch's workers take 5 s each to stop: they miss the call,
        # because their queues are finalised first. So they are stopped from outside when this stream goes.
        self._close = weakref.finalize(self, batches.close)


def _training_items(order: Order, first: int) -> Iterator[list[Item]]:
    """What to read for each step from `first` on, without end."""
    known, permutation = -1, np.empty(0, np.int64)
    for step in count(first):
        epoch, part = order.locate(step)
        if epoch != known:
            known, permutation = epoch, order.permutation(epoch)
        yield [(int(index), order.seed, epoch) for index in permutation[part]]
