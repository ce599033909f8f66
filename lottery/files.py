"""Small files that are whole or absent, and their digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lottery.state import replacing


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing. LotteryError, naming the file, where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
