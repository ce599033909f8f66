"""Masks and tickets: value objects, and the mask's file format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from lottery.errors import LotteryError
from lottery.files import replacing
from lottery.state import State, StateRef, digest_of
from lottery.tensor_files import mask_shapes, read_tensors, reading

if TYPE_CHECKING:
    from lottery.recipe import Recipe

MASK_FORMAT = "lottery-mask/1"
_STRINGS = ("format", "shapes", "round", "study", "parent", "digest", "checksum")


class Mask(Mapping[str, Tensor]):
    """The weights that a network keeps: ordered parameter names -> bool tensors on the CPU, True = kept.

    The bits are stored packed: `mask[name]` is a new tensor each time, and changing it does not change the mask.
    Two masks are equal when their names, the order of the names, their shapes and their bits are. The order counts
    because it decides between equal scores when the mask is pruned further.
    """

    def __init__(self, bits: Mapping[str, Tensor]) -> None:
        """bits: one or more bool tensors, none of them empty. Raises LotteryError for anything else."""
        if not bits:
            raise LotteryError("a mask needs at least one tensor")
        for name, kept in bits.items():
            if kept.dtype != torch.bool or kept.numel() == 0:
                raise LotteryError(f"mask {name!r}: got {kept.numel()} entries of {kept.dtype}, expected torch.bool")
        self._shapes = {name: kept.shape for name, kept in bits.items()}
        self._packed = {name: _pack(kept) for name, kept in bits.items()}

    @classmethod
    def ones(cls, shapes: Mapping[str, torch.Size]) -> Mask:
        """Return the dense mask over tensors of these shapes."""
        return cls({name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()})

    def __getitem__(self, name: str) -> Tensor:
        return _unpack(self._packed[name], self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Mask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.kept:,} of {self.size:,} weights kept, {self.density:.2%})"

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each tensor, in order."""
        return dict(self._shapes)

    @cached_property
    def _layer_kept(self) -> dict[str, int]:
        return {name: int(np.count_nonzero(self[name].numpy())) for name in self}

    @property
    def layer_kept(self) -> dict[str, int]:
        """The number of kept weights of each tensor."""
        return dict(self._layer_kept)

    @property
    def packed(self) -> dict[str, np.ndarray]:
        """The bits of each tensor as stored in the file (`numpy.packbits`, row-major), uint8, read-only."""
        return dict(self._packed)

    @property
    def kept(self) -> int:
        """The number of kept weights."""
        return sum(self._layer_kept.values())

    @property
    def size(self) -> int:
        """The number of prunable weights, both kept and pruned."""
        return sum(shape.numel() for shape in self._shapes.values())

    @property
    def density(self) -> float:
        """kept / prunable, in [0, 1]."""
        return self.kept / self.size

    @property
    def layer_density(self) -> dict[str, float]:
        """kept / prunable of each tensor, in [0, 1]."""
        return {name: kept / self._shapes[name].numel() for name, kept in self._layer_kept.items()}

    @property
    def collapsed(self) -> list[str]:
        """The names of the tensors that keep no weight."""
        return [name for name, kept in self._layer_kept.items() if kept == 0]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the names and shapes (as JSON, like the file's header), then of each tensor's packed bits."""
        hasher = hashlib.sha256(self._header.encode())
        for packed in self._packed.values():
            hasher.update(packed.data)
        return hasher.hexdigest()

    @property
    def _header(self) -> str:
        return json.dumps({name: list(shape) for name, shape in self._shapes.items()}, separators=(",", ":"))

    def issubset(self, other: Mask) -> bool:
        """Whether `other` keeps every weight that this mask keeps; False where names or shapes differ."""
        return self._shapes == other._shapes and not any(
            np.any(packed & ~other._packed[name]) for name, packed in self._packed.items()
        )

    def apply(self, state: State) -> State:
        """Return a copy of `state`, sharing no memory with it, in which pruned weights are exactly +0.0.

        state: a state_dict with the mask's parameters, and maybe others; LotteryError where one is missing, or has
            another shape

        >>> mask = lottery.Mask({"weight": torch.tensor([[True, False]])})
        >>> mask.apply({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
        {'weight': tensor([[1., 0.]]), 'bias': tensor([3.])}
        """
        masked = {name: tensor.detach().clone() for name, tensor in state.items()}
        for name in self:
            weight = self._weight(state, name)
            masked[name] = torch.where(self[name].to(weight.device), weight, torch.zeros_like(weight))
        return masked

    def _weight(self, state: State, name: str) -> Tensor:
        """Return the state's tensor `name`, detached. Raises LotteryError where it is missing or of another shape."""
        if name not in state:
            raise LotteryError(f"the mask prunes {name!r}, which the state does not have")
        if state[name].shape != self._shapes[name]:
            shapes = f"{list(self._shapes[name])} in the mask, {list(state[name].shape)} in the state"
            raise LotteryError(f"{name!r} is {shapes}: they belong to different networks")
        return state[name].detach()

    def save(self, path: str | Path, *, round: int, study: str, parent: str | None) -> None:
        """Write the snapshot file, whole or not at all. parent: digest of the mask that this one was pruned from.

        The file has a uint8 tensor for each parameter (`numpy.packbits` of the row-major bits). The header's strings
        are format, shapes, round, study, parent ("" for none), digest, and checksum: sha256 over the other strings.
        """
        metadata = {"format": MASK_FORMAT, "shapes": self._header, "digest": self.digest}
        metadata |= {"round": str(round), "study": study, "parent": parent or ""}
        metadata["checksum"] = _checksum(metadata)
        with replacing(path) as temporary:
            safetensors.numpy.save_file(self._packed, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Mask:
        """Read a snapshot file. Raises LotteryError where it is no snapshot file, or was changed after writing.

        >>> run = lottery.load_run("runs/imp_rewind")
        >>> lottery.Mask.load(run.path / "masks" / "round_001.safetensors") == run.mask(1)
        True
        """
        packed, strings = read_tensors(path, "numpy")
        metadata = _checked(strings, path)
        shapes = {name: torch.Size(shape) for name, shape in mask_shapes(metadata["shapes"], path).items()}
        if not shapes or set(packed) != set(shapes):
            raise LotteryError(f"{path}: damaged, the tensors it holds are not those its header names")
        for name, shape in shapes.items():
            if packed[name].dtype != np.uint8 or packed[name].shape != ((shape.numel() + 7) // 8,):
                raise LotteryError(f"{path}: damaged, {name!r} does not hold one bit for each weight")
        mask = cls({name: _unpack(packed[name], shape) for name, shape in shapes.items()})
        # Packing the bits again must give the bytes of the file; this checks the padding, too.
        if mask.digest != metadata["digest"] or any(np.any(packed[name] != mask._packed[name]) for name in mask):
            raise LotteryError(f"{path}: damaged, its content does not match its digest")
        return mask


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the header strings of a mask file, checked against their checksum. Does not read the bits."""
    with reading(path, "numpy") as file:
        return _checked(dict(file.metadata() or {}), path)


def _checked(metadata: dict[str, str], path: str | Path) -> dict[str, str]:
    if metadata.get("format") != MASK_FORMAT:
        raise LotteryError(f"{path}: its format is {metadata.get('format')!r}, expected {MASK_FORMAT!r}")
    if missing := [key for key in _STRINGS if key not in metadata]:
        raise LotteryError(f"{path}: damaged, its header lacks {', '.join(missing)}")
    if metadata.pop("checksum") != _checksum(metadata):
        raise LotteryError(f"{path}: damaged, its header does not match its checksum")
    return metadata


def _checksum(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _pack(kept: Tensor) -> np.ndarray:
    packed = np.packbits(kept.detach().cpu().contiguous().view(-1).numpy())
    packed.setflags(write=False)
    return packed


def _unpack(packed: np.ndarray, shape: torch.Size) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed, count=shape.numel()).view(np.bool_)).reshape(shape)


def weights_digest(state: State, mask: Mask) -> str:
    """Return the sha256 (hex) over the names and values of the kept weights alone, sorted by name."""
    return digest_of((name, mask._weight(state, name).cpu()[mask[name]]) for name in sorted(mask))


@dataclass(frozen=True)
class Ticket:
    """The start of a sparse training: a mask, the weights, and the positions in schedule and data order.

    step:       position in the learning-rate schedule where training starts, in optimizer steps
    order_step: position in the data order where training starts, in optimizer steps
    steps:      how many optimizer steps to train
    hold_lr:    stay at the schedule's final learning rate (fine-tuning)
    optimizer:  optimizer state to start from; None = fresh
    order_seed: seed of the data order, augmentation and dropout noise; None = the recipe's (a copy has another seed)
    recipe:     how to train; None = the study's recipe (tuning after a search has another one)
    silent:     keep the normalisation of removed filters at zero too, so that their output is zero
    removed:    names of the removed units (`lottery.layers`): the trained network really is shallower
    """

    mask: Mask
    state: StateRef
    step: int
    order_step: int
    steps: int
    hold_lr: bool = False
    optimizer: StateRef | None = None
    order_seed: int | None = None
    recipe: Recipe | None = None
    silent: bool = False
    removed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("step", "order_step", "steps"):
            if getattr(self, name) < 0:
                raise LotteryError(f"ticket {name}: got {getattr(self, name)}, expected a number of steps >= 0")
