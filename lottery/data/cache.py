"""The data cache: `<paths.data>/NAME.safetensors`, used as it is where present, otherwise built by torchvision."""

from __future__ import annotations

import logging
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lottery.data.options import Data
from lottery.data.tensors import Arrays
from lottery.errors import LotteryError
from lottery.files import write_atomic

log = logging.getLogger(__name__)

DOWNLOAD_SECONDS = 30.0  # how long a server may say nothing

# What torchvision raises for a refused connection, a broken download or file, a bad checksum, a full disk.
_DOWNLOAD_ERRORS = (RuntimeError, OSError, EOFError, ValueError, HTTPException)


def cached(name: str, torchvision_name: str, options: Data, folder: Path) -> Arrays:
    """The data set of the cache file `folder/name.safetensors`, built first where the file is missing.

    `torchvision_name` is a class of torchvision.datasets. Raises LotteryError, in one line that names the file, where
    it can be neither read nor built, or where its tensors are not those of `options.shape` and `options.classes`.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        build(path, torchvision_name)
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise LotteryError(
            f"{path}: cannot be read ({_line(error)}); delete the file to have it built again"
        ) from error
    arrays = Arrays.of(found, origin=str(path))
    arrays.check(options.shape, options.classes, (torch.uint8,))
    return arrays


def build(path: Path, torchvision_name: str) -> None:
    """Write the cache file from torchvision's files: those that lie beside `path` already, or a fresh download.

    The download goes to a folder of its own, so that jobs that start together cannot read each other's halves.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            arrays = from_torchvision(torchvision_name, folder, download=False)
        except RuntimeError:  # torchvision's way to say that its files are not there
            log.warning("%s is not there: downloading %s through torchvision", path, torchvision_name)
            scratch = tempfile.TemporaryDirectory(dir=folder, prefix=f".{path.stem}.")
            with scratch as place, answering_within(DOWNLOAD_SECONDS):
                arrays = from_torchvision(torchvision_name, Path(place), download=True)
        write_atomic(path, save(arrays))
    except _DOWNLOAD_ERRORS as error:
        raise LotteryError(
            f"{path}: not there, and not to be had from torchvision's {torchvision_name} ({_line(error)}); put the file"
            f" there (tensors {', '.join(Arrays.NAMES)}: images uint8 [N, C, H, W], labels int64 [N]), or point"
            " paths.data to a folder that has it, or run once with a network"
        ) from error


@contextmanager
def answering_within(seconds: float) -> Iterator[None]:
    """A server that accepts and then says nothing is an error after `seconds`, instead of a wait without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def from_torchvision(torchvision_name: str, root: Path, download: bool) -> dict[str, Tensor]:
    """The four tensors of a torchvision data set. RuntimeError where `root` lacks its files and `download` is false."""
    from torchvision import datasets

    tensors = {}
    for part in ("train", "test"):
        with redirect_stdout(sys.stderr):  # torchvision prints, and stdout belongs to the results
            found = getattr(datasets, torchvision_name)(root, train=part == "train", download=download)
        images = torch.as_tensor(np.asarray(found.data))
        # Grey images come as [N, H, W], coloured ones as [N, H, W, C].
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        tensors[f"{part}_images"] = images.contiguous()
        tensors[f"{part}_labels"] = torch.as_tensor(found.targets, dtype=torch.int64)
    return tensors


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
