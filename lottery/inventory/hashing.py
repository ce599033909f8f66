"""The digests of a file, in one reading and bounded memory: of its bytes, and of the state in it. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

PIECE = 1 << 20  # bytes read at once
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit

# As torch prints the types of the safetensors format: they are part of a state's digest.
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
    """Read a file once, and digest it. Raises OSError."""
    with path.open("rb") as file:
        reader = _Reader(file)
        state, metadata, flaw = "", None, ""
        if path.suffix == ".safetensors":
            try:
                state, metadata = _state(reader)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                flaw = str(error) if type(error) is ValueError else "its header is damaged"
        for _ in reader.pieces(None):
            pass
        return Hashed(reader.hasher.hexdigest(), state, metadata, flaw)


class _Reader:
    """A file read from its beginning to its end, and digested on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.hasher = hashlib.sha256()

    def read(self, count: int) -> bytes:
        return b"".join(self.pieces(count))

    def pieces(self, count: int | None) -> Iterator[bytes]:
        """The next `count` bytes, or all to the end. Raises ValueError if there are fewer."""
        while count is None or count > 0:
            piece = self.file.read(PIECE if count is None else min(PIECE, count))
            if not piece:
                if count is None:
                    return
                raise ValueError("cut short")
            self.hasher.update(piece)
            count = None if count is None else count - len(piece)
            yield piece

    def again(self, begin: int, end: int) -> Iterator[bytes]:
        """Bytes that were read before."""
        while begin < end:
            piece = os.pread(self.file.fileno(), min(PIECE, end - begin), begin)
            if not piece:
                raise ValueError("cut short")
            begin += len(piece)
            yield piece


def _header(reader: _Reader) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Tensors by name, metadata, and where the tensors begin."""
    length = int.from_bytes(reader.read(8), "little")
    if length > min(reader.size - 8, LONGEST_HEADER):
        raise ValueError("cut short, or its header is damaged")
    header = json.loads(reader.read(length))
    return header, header.pop("__metadata__", {}), 8 + length


def _state(reader: _Reader) -> tuple[str, dict[str, Any]]:
    """The digest of the state in a file, and the file's metadata.

    A state is digested in the order of the tensors' names; the file has those of wider types first. The few that come
    before their turn (counters, as a rule) are read once more when it has come, so that nothing waits in memory.
    """
    tensors, metadata, base = _header(reader)
    hasher, at, passed = hashlib.sha256(), 0, set()
    turn = deque(sorted(tensors))
    for name in sorted(tensors, key=lambda name: tensors[name]["data_offsets"]):
        begin, end = tensors[name]["data_offsets"]
        if begin != at:
            raise ValueError("its header is damaged: there are gaps between the tensors")
        due = name == turn[0]
        if due:
            hasher.update(_described(name, tensors[name]))
        for piece in reader.pieces(end - begin):
            if due:
                hasher.update(piece)
        at = end
        passed.add(name)
        while turn and turn[0] in passed:
            late = turn.popleft()
            if late != name:
                hasher.update(_described(late, tensors[late]))
                for piece in reader.again(*(base + offset for offset in tensors[late]["data_offsets"])):
                    hasher.update(piece)
    if base + at != reader.size:
        raise ValueError("longer than its header says")
    return hasher.hexdigest(), metadata


def _described(name: str, tensor: dict[str, Any]) -> bytes:
    return json.dumps([name, DTYPES[tensor["dtype"]], tensor["shape"]]).encode()
