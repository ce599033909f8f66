"""Compute digests of a file and of the state in it, in bounded memory. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lottery.files import Unreadable, parse_json

PIECE = 1 << 20  # bytes read at once
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit

# safetensors types -> torch's names of them, which are part of a state's digest.
DTYPES = {
    "BOOL": "torch.bool", "U8": "torch.uint8", "I8": "torch.int8", "I16": "torch.int16", "I32": "torch.int32",
    "I64": "torch.int64", "U16": "torch.uint16", "U32": "torch.uint32", "U64": "torch.uint64",
    "F16": "torch.float16", "BF16": "torch.bfloat16", "F32": "torch.float32", "F64": "torch.float64",
    "F8_E4M3": "torch.float8_e4m3fn", "F8_E5M2": "torch.float8_e5m2", "C64": "torch.complex64",
}  # fmt: skip


@dataclass(frozen=True)
class Hashed:
    """The digests of one file."""

    file: str  # sha256 of its bytes
    state: str = ""  # `lottery.state.state_digest` of its tensors; "" if it is no safetensors file
    metadata: dict[str, Any] | None = None
    flaw: str = ""  # why a safetensors file cannot be read


def hashed(path: Path) -> Hashed:
    """Compute the digests of a file. Raises OSError.

    A safetensors file is read twice (the second time mostly from the system's cache), because a state's digest takes
    the tensors in the order of their names, which is not their order in the file.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix != ".safetensors":
            return Hashed(digest)
        try:
            state, metadata = _state(file.fileno())
        except (Unreadable, ValueError, TypeError, LookupError, AttributeError) as error:
            return Hashed(digest, flaw=str(error) if type(error) is ValueError else "its header is damaged")
        return Hashed(digest, state, metadata)


def _state(file: int) -> tuple[str, dict[str, Any]]:
    """Return the digest of the state in an open file, and its metadata. Raises ValueError and others if damaged."""
    size = os.fstat(file).st_size
    if size < 8:
        raise ValueError("cut short")
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if length > min(size - 8, LONGEST_HEADER):
        raise ValueError("cut short, or its header is damaged")
    tensors = parse_json(os.pread(file, length, 8), "its header")
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("its header is damaged")
    at = 0
    for begin, end in sorted(tensor["data_offsets"] for tensor in tensors.values()):
        if begin != at:
            raise ValueError("its header is damaged: there are gaps between the tensors")
        at = end
    if 8 + length + at != size:
        raise ValueError("longer than its header says" if 8 + length + at < size else "cut short")
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hasher.update(json.dumps([name, DTYPES[tensor["dtype"]], tensor["shape"]]).encode())
        begin, end = (8 + length + offset for offset in tensor["data_offsets"])
        while begin < end:
            piece = os.pread(file, min(PIECE, end - begin), begin)
            if not piece:
                raise ValueError("cut short")
            hasher.update(piece)
            begin += len(piece)
    return hasher.hexdigest(), metadata
