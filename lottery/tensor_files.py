"""Open and read safetensors files, with one-line errors. Torch-free for numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lottery.files import Missing, Unreadable, parse_json

# In a stage's folder: the network at the end of the stage, and where the validation loss was lowest.
END, EARLY_STOP = "state.safetensors", "early_stop.safetensors"
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


def kept_path(folder: Path, what: str, step: int | str) -> Path:
    """Return the file in which a stage kept its "state", "optimizer" or "mask" at a step."""
    return folder / f"{what}_{int(step):08d}.safetensors"


def state_files(record: Mapping[str, Any]) -> dict[str, str]:
    """Return file name -> digest of the states in a stage's folder. record: its result.json, or that of a checkpoint.

    An altered record, which its own digest shows, may lack some.
    """
    found = {END: record.get("state_digest"), EARLY_STOP: record.get("early_stop_digest")}
    with suppress(AttributeError, ValueError, TypeError):
        for step, digests in record.get("kept", {}).items():
            found |= {kept_path(Path(), part, step).name: digest for part, digest in digests.items()}
    return {name: digest for name, digest in found.items() if digest is not None}


def mask_shapes(text: str, where: object) -> dict[str, tuple[int, ...]]:
    """Parse the shapes in a mask file's header, in the network's order. Raises Unreadable where they are invalid."""
    shapes = parse_json(text, f"{where}: its header is damaged: the shapes")
    for name, shape in shapes.items():
        sizes = shape if isinstance(shape, list) else [None]
        if not all(type(size) is int and size > 0 for size in sizes) or prod(sizes) > MOST_ELEMENTS:
            reason = f"its header is damaged: the shape of {name!r} is no list of sizes ≥ 1"
            raise Unreadable.of(where, reason)
    return {name: tuple(shape) for name, shape in shapes.items()}
