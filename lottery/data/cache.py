"""The data cache `<paths.data>/NAME.safetensors`: read where it exists, otherwise built through torchvision."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from http.client import HTTPException
from pathlib import Path
from time import time

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from lottery.config.data import Data
from lottery.data.digests import kept_at, notice
from lottery.data.tensors import Arrays
from lottery.errors import LotteryError
from lottery.files import write_atomic
from lottery.tensor_files import read_tensors

log = logging.getLogger(__name__)

DOWNLOAD_SECONDS = 30.0  # time-out of a server that accepts a connection and sends nothing
LOCK = "lock"  # lock file in the folder of a download
STALE_SECONDS = 3600.0  # no write takes longer

# Raised by torchvision for a refused connection, a broken download or file, a bad checksum, a full disk.
_DOWNLOAD_ERRORS = (RuntimeError, OSError, EOFError, ValueError, HTTPException)


def cached(name: str, torchvision_name: str, options: Data, folder: Path) -> Arrays:
    """Read the data set of the cache file `folder/name.safetensors`, which is built first if missing.

    `torchvision_name`: a class of torchvision.datasets. Raises LotteryError, in one line that names the file, where it
    can be neither read nor built, or does not fit `options.shape` and `options.classes`.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        build(path, torchvision_name)
    found, _ = read_tensors(path, "pt", "delete the file to have it built again")
    arrays = Arrays.of(found, origin=str(path))
    arrays.check(options.shape, options.classes, (torch.uint8,))
    notice(kept_at(folder, name), path, arrays.digest)
    return arrays


def generated(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Return arrays that take long to make, from a file in the user's cache folder, or make them and the file.

    A file that is damaged is made again. Without a folder that can be written to, each process makes its own.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(os.path.expanduser(home)) / "lottery" / f"{name}.safetensors"
    with suppress(LotteryError):
        found, header = read_tensors(path, "pt")
        arrays = Arrays.of(found, origin=name)
        if header.get("digest") == arrays.digest:
            return arrays
    arrays = make()
    with suppress(OSError, LotteryError):
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {part: getattr(arrays, part) for part in Arrays.NAMES}
        write_atomic(path, save(tensors, {"digest": arrays.digest}))
    return arrays


def build(path: Path, torchvision_name: str) -> None:
    """Write the cache file from torchvision's files: those beside `path` if they exist, otherwise a fresh download.

    The download goes to a temporary folder, so that jobs that start together cannot read each other's partial files.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            arrays = from_torchvision(torchvision_name, folder, download=False)
        except RuntimeError:  # raised by torchvision if its files are missing
            log.warning("%s is not there: downloading %s through torchvision", path, torchvision_name)
            remove_left(path)
            with scratch(path) as place, ExitStack() as stack:
                stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
                socket.setdefaulttimeout(DOWNLOAD_SECONDS)
                arrays = from_torchvision(torchvision_name, place, download=True)
        write_atomic(path, save(arrays))
    except _DOWNLOAD_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LotteryError(
            f"{path}: not there, and not to be had from torchvision's {torchvision_name} ({reason}); put the file"
            f" there (tensors {', '.join(Arrays.NAMES)}: images uint8 [N, C, H, W], labels int64 [N]), or point"
            " paths.data to a folder that has it, or run once with a network"
        ) from error


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Create a temporary folder beside `path`, locked while this process lives and removed at the end."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as name:
        place = Path(name)
        with (place / LOCK).open("w", encoding="utf-8") as lock:
            with suppress(OSError):  # a file system without locks: nobody else can take this lock either
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield place


def remove_left(path: Path) -> None:
    """Remove what killed processes left beside `path`: unlocked downloads, and anything else older than an hour."""
    for left in path.parent.glob(f".{path.stem}.*"):
        with suppress(OSError):  # it belongs to another process or user
            old = time() - left.stat().st_mtime > STALE_SECONDS
            if (left / LOCK).exists():
                with (left / LOCK).open("a", encoding="utf-8") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
            elif old and left.is_dir():
                shutil.rmtree(left)
            elif old:
                left.unlink()


def from_torchvision(torchvision_name: str, root: Path, download: bool) -> dict[str, Tensor]:
    """Return the four tensors of a torchvision data set. RuntimeError if files are missing, unless `download`."""
    from torchvision import datasets

    tensors = {}
    for part in ("train", "test"):
        with redirect_stdout(sys.stderr):  # torchvision prints, and stdout is for results
            found = getattr(datasets, torchvision_name)(root, train=part == "train", download=download)
        images = torch.as_tensor(np.asarray(found.data))
        # Grey images come as [N, H, W], coloured ones as [N, H, W, C].
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        tensors[f"{part}_images"] = images.contiguous()
        tensors[f"{part}_labels"] = torch.as_tensor(found.targets, dtype=torch.int64)
    return tensors
