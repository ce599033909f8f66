"""Mask snapshots and stored states as numpy arrays, for comparisons. Torch-free."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lottery.errors import LotteryError
from lottery.tensor_files import mask_shapes, read_tensors


@dataclass(frozen=True, eq=False)
class PackedMask:
    """The packed bits of a mask as stored in its file, and the shape of each tensor, in the network's order."""

    bits: dict[str, NDArray[np.uint8]]
    shapes: dict[str, tuple[int, ...]]
    digest: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights of each tensor."""
        return {name: prod(shape) for name, shape in self.shapes.items()}


def read_mask(path: Path) -> PackedMask:
    """Read a mask snapshot. Raises LotteryError where the file is not one, or is damaged."""
    found, metadata = read_tensors(path, "numpy")
    try:
        shapes = mask_shapes(metadata["shapes"], path)
        bits = {name: found[name] for name in shapes}
    except KeyError as error:
        raise LotteryError(f"{path}: not a mask snapshot") from error
    hasher = hashlib.sha256(metadata["shapes"].encode())
    for packed in bits.values():
        hasher.update(packed.data)
    if hasher.hexdigest() != metadata.get("digest"):
        raise LotteryError(f"{path}: damaged, its content does not match its digest")
    for name, shape in shapes.items():
        if bits[name].dtype != np.uint8 or bits[name].shape != ((prod(shape) + 7) // 8,):
            raise LotteryError(f"{path}: damaged, {name!r} does not hold one bit for each weight")
    return PackedMask(bits, shapes, metadata["digest"])


def check_alike(one: PackedMask, other: PackedMask) -> None:
    """Raise LotteryError, naming the first difference, unless both masks have tensors of equal names and shapes."""
    for name in (*one.shapes, *other.shapes):
        ours, theirs = one.shapes.get(name), other.shapes.get(name)
        if ours is None or theirs is None:
            raise LotteryError(f"masks of different networks: only one of them has {name!r}")
        if ours != theirs:
            raise LotteryError(f"masks of different networks: {name!r} is {list(ours)} and {list(theirs)}")


def read_state(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a state file. Raises LotteryError where it cannot be read."""
    return read_tensors(path, "numpy")[0]
