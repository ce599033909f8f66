"""ImageNet-like trees, too large for memory: `folder/{train,val}/CLASS/*.jpg`, decoded by worker processes."""

from __future__ import annotations

import atexit
import weakref
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import shared_cache
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lottery.config.data import Data
from lottery.data.dataset import Batch, Dataset, Stream
from lottery.data.digests import json_digest, kept_at, notice, tree_digests
from lottery.data.order import WHOLE, Indices, Order, Share, Split, sampled
from lottery.data.transforms import Scaler
from lottery.data.workers import no_worker_lost, send_errors
from lottery.errors import ConfigError, LotteryError
from lottery.seeding import derive

# At exit, cached storages may outlive the code that frees them ("Exception ignored in StorageWeakRef.__del__").
atexit.register(shared_cache.clear)

Sample = tuple[str, int]  # path of an image, label
Item = int | tuple[int, int, int]  # image; or (image, seed, epoch)


def imagefolder(options: Data, folder: Path) -> Tree:
    """Scan the tree `folder/options.folder` (default: `options.name`). Its "val" half is the test set.

    Training images: a random crop of 8 to 100 % of the area, aspect 3/4 to 4/3, resized to `shape`, mirrored with
    probability 1/2 if `flip` (the ImageNet recipe). Evaluation: shorter side resized to `resize`, then centre crop.
    """
    if len(options.shape) != 3 or options.shape[0] != 3:
        raise ConfigError.of("data.shape", list(options.shape), "[3, H, W]: image folders are read in colour")
    if options.crop:
        raise ConfigError.of("data.crop", options.crop, "0: images from a folder are cropped by area, not by padding")
    if not options.resize:
        raise ConfigError.of("data.resize", 0, "the shorter side before the centre crop, such as 256")
    name = options.folder or options.name
    root = folder / name
    train, classes = _scan(root / "train")
    test, test_classes = _scan(root / "val")
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise LotteryError(f"{root}: train and val have different classes, such as {odd[0]!r}")
    if len(classes) != options.classes:
        raise LotteryError(f"{root}: got {len(classes)} class folders, expected data.classes={options.classes}")
    return Tree(root, tuple(classes), train, test, kept_at(folder, name))


def _scan(root: Path) -> tuple[list[Sample], list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(root))
    except OSError as error:
        reason = " ".join(str(error).split())
        raise LotteryError(f"{root}: expected a folder of images for each class ({reason})") from error
    return found.samples, found.classes


@dataclass(frozen=True, eq=False)
class Tree:
    """The images of a tree, by part. `kept`: the file that keeps the digests of its files."""

    root: Path
    classes: tuple[str, ...]
    train: list[Sample]
    test: list[Sample]
    kept: Path

    @property
    def train_size(self) -> int:
        return len(self.train)

    def digest(self) -> str:
        """Return the sha256 (hex) over the class names, and the relative names and the bytes of all files."""
        groups = defaultdict(list)  # the files of each part and class
        for path in (Path(path) for path, _ in self.train + self.test):
            groups["/".join(path.relative_to(self.root).parts[:2])].append(path)
        found = tree_digests(self.kept, self.root, groups)
        digest = json_digest([self.classes, sorted(found.items())])
        notice(self.kept, self.root, digest)
        return digest

    def dataset(self, options: Data, split: Split) -> FolderDataset:
        splits = {
            "train": Images(self.train, split.train, options),
            "validation": Images(self.train, split.validation, options),
            "test": Images(self.test, np.arange(len(self.test), dtype=np.int64), options),
        }
        return FolderDataset(options, splits, self.digest(), torch.device("cpu"))


class Images(TorchDataset):
    """Some images of a list, decoded on demand, one batch at a time, in this or in a worker process.

    In a list of items, `i` is image i for evaluation, and `(i, seed, epoch)` is image i for training in that epoch.
    """

    def __init__(self, samples: list[Sample], indices: Indices, options: Data) -> None:
        self._samples, self._indices = samples, indices
        self._size, self._resize, self._flip = options.shape[1:], options.resize, options.flip

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labels(self) -> Indices:
        """Labels, int64 [N], found without decoding images."""
        return np.array([label for _, label in self._samples], np.int64)[self._indices]

    def __getitem__(self, items: Sequence[Item]) -> Batch | LotteryError:
        """Return images uint8 [B, 3, H, W] and labels, or an error (raising it would add the worker's traceback)."""
        try:
            images, labels = zip(*(self._read(item) for item in items), strict=True)
        except LotteryError as error:
            return error
        return torch.stack(images), torch.tensor(labels)

    def _read(self, item: Item) -> tuple[Tensor, int]:
        from PIL import Image
        from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

        index, *draw = (item,) if isinstance(item, int) else item
        position = int(self._indices[index])
        path, label = self._samples[position]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # PIL raises these for a broken file
            raise LotteryError(f"{path}: cannot be read as an image ({error})") from error
        if draw:
            image = self._augmented(image, derive(draw[0], "augment", draw[1], position))
        else:
            image = center_crop(resize(image, [self._resize]), list(self._size))
        return pil_to_tensor(image), label

    def _augmented(self, image: Any, seed: int) -> Any:
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.functional import hflip, resized_crop

        # torchvision draws from the global generator: seed it for this image, and restore its state afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            area = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            mirror = self._flip and bool(torch.rand(()) < 0.5)
        image = resized_crop(image, *area, list(self._size))
        return hflip(image) if mirror else image


class FolderDataset(Dataset):
    """A data set whose images are read from disk each time."""

    def __init__(self, options: Data, splits: dict[str, Images], digest: str, device: torch.device) -> None:
        self.splits = splits
        super().__init__(options, {split: len(images) for split, images in splits.items()}, digest, torch.uint8, device)

    def to(self, device: torch.device | str) -> FolderDataset:
        return FolderDataset(self.options, self.splits, self.digest, torch.device(device))

    def labels(self, split: str) -> Indices:
        return self.splits[split].labels

    def stream(self, batch_size: int, seed: int, drop_last: bool = False, share: Share = WHOLE) -> FolderStream:
        return FolderStream(self, Order(self.sizes["train"], batch_size, seed, drop_last, share))

    def sample(self, per_class: int, seed: int, key: str = "criterion.per_class") -> Batch:
        chosen = sampled(self.labels("train"), self.classes, per_class, seed, key)
        images, labels = zip(*self._chosen("train", chosen, 64, self.scale), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _chosen(self, split: str, chosen: Indices, size: int, scale: Scaler, share: Share = WHOLE) -> Iterator[Batch]:
        pieces = (chosen[start : start + size].tolist() for start in range(0, len(chosen), size))
        return self.read(split, islice(pieces, share.rank, None, share.of), scale)

    def read(self, split: str, batches: Iterable[Sequence[Item]], scale: Scaler) -> Generator[Batch, None, None]:
        """Decode batches of items of `split`, ahead of their use if there are workers, and scale them on the device."""
        loader = DataLoader(
            self.splits[split],
            sampler=batches,
            batch_size=None,  # an item of the sampler is a batch already
            num_workers=self.options.workers,
            worker_init_fn=send_errors if self.options.workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # otherwise a new iterator draws from the global generator
        )
        for batch in no_worker_lost(loader):
            if isinstance(batch, LotteryError):
                raise batch
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            yield scale(images), labels


class FolderStream(Stream):
    """Batches of a FolderDataset's training split. Any step may be asked for; consecutive steps are read ahead."""

    def __init__(self, data: FolderDataset, order: Order) -> None:
        super().__init__(order)
        self._data, self._next_step = data, -1
        self._batches: Iterator[Batch] = iter(())
        self._close: Callable[[], object] = lambda: None

    def batch(self, step: int) -> Batch:
        self.order.locate(step)  # raises for a step that does not exist
        if step != self._next_step:
            self._start_(step)
        self._next_step = -1  # so that a step that failed can be tried again
        batch = next(self._batches)
        self._next_step = step + 1
        return batch

    def _start_(self, step: int) -> None:
        self._close()
        self._batches = batches = self._data.read("train", _training_items(self.order, step), self._data.scale)
        # Garbage-collected in a cycle, each of torch's workers takes 5 s to stop: the queue of its stop signal is
        # finalised first. So this finalizer stops the workers when the stream goes.
        self._close = weakref.finalize(self, batches.close)


def _training_items(order: Order, first: int) -> Iterator[list[Item]]:
    permutation = lru_cache(1)(order.permutation)
    for step in count(first):
        epoch, part = order.locate(step)
        yield [(int(index), order.seed, epoch) for index in permutation(epoch)[part]]
