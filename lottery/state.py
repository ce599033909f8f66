"""Network states: their digests, their files, and references that load them on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lottery.errors import LotteryError
from lottery.files import replacing

State = dict[str, Tensor]
"""A network's full state_dict, on the CPU."""


@dataclass(frozen=True)
class StateRef:
    """A state known by its digest and loaded when it is needed. Equal when the digests are."""

    digest: str
    load: Callable[[], State] = field(compare=False, repr=False)
    source: str = field(default="the stored state", compare=False)

    @classmethod
    def of(cls, state: State) -> StateRef:
        """A snapshot of `state` in memory: training on, or changing, `state` does not change it."""
        snapshot = copied(state)
        return cls(state_digest(snapshot), lambda: snapshot)

    @classmethod
    def file(cls, path: str | Path, digest: str) -> StateRef:
        """The state in a file of `save_state`, expected to have this digest."""
        return cls(digest, lambda: load_state(path), str(path))

    def tensors(self) -> State:
        """A fresh, private copy at each call; LotteryError if it is not the state that the digest names.

        The copy is why training cannot reach a stored state; the check is why a damaged file, or a state that was
        changed behind our back, is never trained from.
        """
        state = copied(self.load())
        if state_digest(state) != self.digest:
            raise LotteryError(f"{self.source}: changed or damaged, its digest is not {self.digest[:12]}")
        return state


def state_digest(state: State) -> str:
    """sha256 (hex) over each tensor's name, dtype, shape and row-major bytes, in the order of the names."""
    return digest_of((name, state[name]) for name in sorted(state))


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 (hex) over these tensors, in this order: name, dtype, shape and row-major bytes of each."""
    hasher = hashlib.sha256()
    for name, tensor in tensors:
        hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def copied(state: Mapping[str, Tensor]) -> State:
    """Private, contiguous copies on the CPU; LotteryError for an entry that is no tensor."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise LotteryError(f"state {name!r}: got {type(value).__name__}, only tensors can be kept")
    contiguous = torch.contiguous_format
    return {name: t.detach().to("cpu", copy=True, memory_format=contiguous) for name, t in state.items()}


def save_state(state: State, path: str | Path) -> None:
    """Write a state as a safetensors file, all or nothing."""
    with replacing(path) as temporary:
        safetensors.torch.save_file(copied(state), temporary)


def load_state(path: str | Path) -> State:
    """Read a safetensors file into private tensors on the CPU (the file may be replaced or deleted afterwards)."""
    with reading(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


@contextmanager
def reading(path: str | Path, framework: str) -> Iterator[Any]:
    """An open safetensors file, whose defects come out as one line that names it."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError:
        raise LotteryError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LotteryError(f"{path}: cannot be read, it is damaged or of another kind: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
