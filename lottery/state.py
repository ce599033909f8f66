"""Network states: their digests, their files, and references that load them on demand."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from lottery.errors import LotteryError
from lottery.files import replacing
from lottery.tensor_files import read_tensors

State = dict[str, Tensor]
"""A network's full state_dict, on the CPU."""


@dataclass(frozen=True)
class StateRef:
    """A state known by its digest and loaded when it is needed. References are equal when their digests are."""

    digest: str
    load: Callable[[], State] = field(compare=False, repr=False)
    source: str = field(default="the stored state", compare=False)

    @classmethod
    def of(cls, state: State) -> StateRef:
        """Take a snapshot of `state` in memory, which later changes of `state` do not affect."""
        snapshot = copied(state)
        return cls(state_digest(snapshot), lambda: snapshot)

    @classmethod
    def file(cls, path: str | Path, digest: str) -> StateRef:
        """Refer to the state in a file of `save_state`, which must have this digest."""
        return cls(digest, lambda: load_state(path), str(path))

    def tensors(self) -> State:
        """Load a private copy at each call, so that training cannot change a stored state.

        Raises LotteryError where the digest does not match: nothing is trained from a damaged or changed state.
        """
        state = copied(self.load())
        if state_digest(state) != self.digest:
            raise LotteryError(f"{self.source}: changed or damaged, its digest is not {self.digest[:12]}")
        return state


def state_digest(state: State) -> str:
    """Return the sha256 (hex) over each tensor's name, dtype, shape and row-major bytes, sorted by name."""
    return digest_of((name, state[name]) for name in sorted(state))


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 (hex) over each tensor's name, dtype, shape and row-major bytes, in the given order."""
    hasher = hashlib.sha256()
    for name, tensor in tensors:
        hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def copied(state: Mapping[str, Tensor]) -> State:
    """Return private, contiguous copies on the CPU. Raises LotteryError for an entry that is no tensor."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise LotteryError(f"state {name!r}: got {type(value).__name__}, only tensors can be kept")
    contiguous = torch.contiguous_format
    return {name: t.detach().to("cpu", copy=True, memory_format=contiguous) for name, t in state.items()}


def snapshot(network: nn.Module) -> State:
    """Return a private CPU copy of the network's state_dict."""
    return copied(network.state_dict())


def save_state(state: State, path: str | Path) -> None:
    """Write a state as a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        safetensors.torch.save_file(copied(state), temporary)


def load_state(path: str | Path) -> State:
    """Read a safetensors file into private tensors on the CPU (the file may be replaced or deleted afterwards)."""
    return copied(read_tensors(path, "pt")[0])


def restore_(network: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> _IncompatibleKeys:
    """Load a state into the network, with the modules' versions, which load hooks read and a plain dict lacks.

    The versions are the state's (`_metadata`), or else the network's. A module of which the state lacks a tensor counts
    as of an unknown, older version.
    """
    metadata = getattr(state, "_metadata", None)
    if metadata is None:
        own = network.state_dict()
        partial = {name.rpartition(".")[0] for name in own if name not in state}
        metadata = {path: {} if path in partial else version for path, version in own._metadata.items()}  # type: ignore[attr-defined]
    return network.load_state_dict(with_metadata(state, metadata), strict=strict)


def with_metadata(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None) -> OrderedDict[str, Tensor]:
    """Copy the state, and attach the modules' versions, if any, as `state_dict()` does."""
    found = OrderedDict(state)
    if metadata is not None:
        found._metadata = metadata  # type: ignore[attr-defined]
    return found
