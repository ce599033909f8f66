"""The sources of the in-memory data sets: two that need no file, and four common ones from the data cache."""

from __future__ import annotations

from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lottery.config.data import Data
from lottery.data.cache import cached, generated
from lottery.data.order import permutation
from lottery.data.tensors import Arrays
from lottery.seeding import seeded


@cache
def _mnist1d() -> Arrays:
    return generated(f"mnist1d-{version('mnist1d')}", make_mnist1d)


def mnist1d(options: Data, folder: Path) -> Arrays:
    """Return MNIST-1D (Greydanus and Kobak 2024, arXiv 2011.14439): 4000 and 1000 signals of 40 floats, ten classes.

    float32, with mean 0 and variance 1 over everything. To generate them takes longer than to import torch, so they
    are kept in the user's cache folder.
    """
    return _mnist1d()


def make_mnist1d() -> Arrays:
    """Generate MNIST-1D."""
    from mnist1d.data import make_dataset

    with seeded(0):  # the package seeds the global generators; this restores the caller's state
        made = make_dataset()
    parts = {
        "train_images": made["x"].astype(np.float32)[:, None],
        "train_labels": made["y"].astype(np.int64),
        "test_images": made["x_test"].astype(np.float32)[:, None],
        "test_labels": made["y_test"].astype(np.int64),
    }
    return Arrays.of(parts, origin="lottery.data.sources.mnist1d")


def digits(options: Data, folder: Path) -> dict[str, np.ndarray]:
    """Return scikit-learn's 1797 hand-written digits, 8x8; grey levels 0 … 16 are scaled to 0 … 255 and rounded.

    1437 are for training and 360 for testing, by one fixed permutation: the file is ordered by class and writer, so
    neither its end nor every fifth image would be a fair sample.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = found.target.astype(np.int64)
    order = permutation(len(labels), 0, "digits", "test")
    test, train = np.sort(order[:360]), np.sort(order[360:])
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }


mnist = partial(cached, "mnist", "MNIST")  # 60 000 and 10 000 images of 1x28x28, ten classes
fashion_mnist = partial(cached, "fashion_mnist", "FashionMNIST")  # 60 000 and 10 000 images of 1x28x28, ten classes
cifar10 = partial(cached, "cifar10", "CIFAR10")  # 50 000 and 10 000 images of 3x32x32, ten classes
cifar100 = partial(cached, "cifar100", "CIFAR100")  # 50 000 and 10 000 images of 3x32x32, a hundred classes
