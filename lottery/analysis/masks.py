"""Mask snapshots and stored states as numpy arrays, for comparisons. Torch-free."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lottery.errors import LotteryError


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A mask's bits as its file has them, and the shape of each tensor, in the network's order."""

    bits: dict[str, NDArray[np.uint8]]
    shapes: dict[str, tuple[int, ...]]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights of each tensor."""
        return {name: prod(shape) for name, shape in self.shapes.items()}


def read_mask(path: Path) -> PackedMask:
    """A snapshot of `masks/`. LotteryError where it is not one, or not as it was written."""
    found, metadata = _tensors(path)
    try:
        shapes = json.loads(metadata["shapes"])
        bits = {name: found[name] for name in shapes}
    except (KeyError, ValueError) as error:
        raise LotteryError(f"{path}: not a mask snapshot") from error
    hasher = hashlib.sha256(metadata["shapes"].encode())
    for packed in bits.values():
        hasher.update(packed.data)
    if hasher.hexdigest() != metadata.get("digest"):
        raise LotteryError(f"{path}: damaged, its content does not match its digest")
    return PackedMask(bits, {name: tuple(shape) for name, shape in shapes.items()})


def check_alike(one: PackedMask, other: PackedMask) -> None:
    """Raise LotteryError, naming the first difference, unless both mask tensors of the same names and shapes."""
    for name in (*one.shapes, *other.shapes):
        ours, theirs = one.shapes.get(name), other.shapes.get(name)
        if ours is None or theirs is None:
            raise LotteryError(f"masks of different networks: only one of them has {name!r}")
        if ours != theirs:
            raise LotteryError(f"masks of different networks: {name!r} is {list(ours)} and {list(theirs)}")


def read_state(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a state file. LotteryError where it cannot be read."""
    return _tensors(path)[0]


def _tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise LotteryError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise LotteryError(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from error
