"""The sources of the in-memory data sets: two that need no file, and the field's four from the data cache."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import numpy as np

from lottery.data.cache import cached
from lottery.data.options import Data
from lottery.data.order import permutation
from lottery.data.tensors import Arrays


def mnist1d(options: Data, folder: Path) -> dict[str, np.ndarray]:
    """MNIST-1D (Greydanus and Kobak 2024, arXiv 2011.14439): 4000 and 1000 signals of 40 floats, ten classes.

    Generated (in a second or two, once a process), never downloaded; float32, mean 0 and variance 1 over everything.
    """
    return _mnist1d()


@cache
def _mnist1d() -> dict[str, np.ndarray]:
    from mnist1d.data import make_dataset

    # The package seeds the global generators; what the caller had drawn from them so far must not be undone.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        made = make_dataset()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    return {
        "train_images": made["x"].astype(np.float32)[:, None],
        "train_labels": made["y"].astype(np.int64),
        "test_images": made["x_test"].astype(np.float32)[:, None],
        "test_labels": made["y_test"].astype(np.int64),
    }


def digits(options: Data, folder: Path) -> dict[str, np.ndarray]:
    """scikit-learn's 1797 hand-written digits, 8x8; grey levels 0 … 16 spread over 0 … 255 and rounded.

    1437 for training and 360 for testing, by one fixed permutation: the file's own order goes through the classes in
    turn and from writer to writer, so neither its end nor every fifth image would be a fair sample.
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


def mnist(options: Data, folder: Path) -> Arrays:
    """MNIST: 60 000 and 10 000 images of 1x28x28, ten classes."""
    return cached("mnist", "MNIST", options, folder)


def fashion_mnist(options: Data, folder: Path) -> Arrays:
    """Fashion-MNIST: 60 000 and 10 000 images of 1x28x28, ten classes."""
    return cached("fashion_mnist", "FashionMNIST", options, folder)


def cifar10(options: Data, folder: Path) -> Arrays:
    """CIFAR-10: 50 000 and 10 000 images of 3x32x32, ten classes."""
    return cached("cifar10", "CIFAR10", options, folder)


def cifar100(options: Data, folder: Path) -> Arrays:
    """CIFAR-100: 50 000 and 10 000 images of 3x32x32, a hundred classes."""
    return cached("cifar100", "CIFAR100", options, folder)
