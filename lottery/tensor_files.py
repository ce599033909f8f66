"""Open and read safetensors files, with one-line errors. Torch-free for numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lottery.files import Missing, Unreadable, parse_json

MOST_ELEMENTS = 2**48  # of one tensor; no network has more
# The exceptions of safetensors, numpy and torch for a file that is damaged or of another kind.
DAMAGED = (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError)


@contextmanager
def reading(path: str | Path, framework: str, remedy: str = "") -> Iterator[Any]:
    """Open a safetensors file. Raises Missing and Unreadable, also for errors while the block reads the file."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError as error:
        raise Missing.of(path, "no such file", remedy) from error
    except DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise Unreadable.of(path, f"cannot be read, it is damaged or of another kind: {reason}", remedy) from error


def read_tensors(path: str | Path, framework: str, remedy: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """Return all tensors of a file by name, and the strings in its header. Raises as `reading` does.

    framework: "pt" for torch tensors on the CPU, "numpy" for arrays.
    """
    with reading(path, framework, remedy) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def mask_shapes(text: str, where: object) -> dict[str, tuple[int, ...]]:
    """Parse the shapes in a mask file's header, in the network's order. Raises Unreadable where they are invalid."""
    shapes = parse_json(text, f"{where}: its header is damaged: the shapes")
    for name, shape in shapes.items():
        sizes = shape if isinstance(shape, list) else [None]
        if not all(type(size) is int and size > 0 for size in sizes) or prod(sizes) > MOST_ELEMENTS:
            reason = f"its header is damaged: the shape of {name!r} is no list of sizes ≥ 1"
            raise Unreadable.of(where, reason)
    return {name: tuple(shape) for name, shape in shapes.items()}
