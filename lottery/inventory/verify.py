"""Hash the files of a stage or a mask snapshot, and compare with the digests on record. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.files import Unreadable, parse_json
from lottery.inventory.contents import CHECKPOINT, StoredStage, read_entry
from lottery.inventory.hashing import Hashed, hashed
from lottery.tensor_files import mask_shapes, state_files


@dataclass(frozen=True)
class Flaw:
    """One difference between a file and its record."""

    where: str
    what: str
    level: str = "damaged"  # or unreadable: permissions or disk errors; or note: harmless
    entry: StoredStage | None = None  # the stage of the file

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_stage(entry: StoredStage) -> list[Flaw]:
    """Return the flaws of a stage, finished or not. A stage that changes or vanishes meanwhile is checked again."""
    found = list(_flaws(entry))
    if found and (now := read_entry(entry.folder)) != entry:
        found = [] if now is None else list(_flaws(now))
    return [Flaw(f"{entry.kind} {entry.short}", what, level, entry) for what, level in found]


def _flaws(entry: StoredStage) -> Iterator[tuple[str, str]]:
    """Yield pairs of message and level."""
    return _finished(entry) if entry.done else _unfinished(entry)


def _finished(entry: StoredStage) -> Iterator[tuple[str, str]]:
    """Check the files against DONE, their states against result.json, and stage.json against the key."""
    if entry.defect.startswith("DONE"):
        yield entry.defect, "damaged"
        return
    yield from _about(entry)
    states = state_files(entry.result)
    needed = {"stage.json", "result.json", *states}
    visible = {name for name in entry.sizes if name[0] != "."} - {"DONE"}
    for name in sorted(needed | visible | entry.sealed.keys()):
        if name not in entry.sizes:
            yield f"{name}: missing", "damaged"
        elif name in entry.sealed:
            found = _hashed(entry.folder / name)
            if isinstance(found, tuple):
                yield found
            elif found.file != entry.sealed[name]:
                yield f"{name}: changed since the stage was finished{found.flaw and f' ({found.flaw})'}", "damaged"
            elif found.state != states.get(name, found.state):
                why = found.flaw or states[name][:12]
                yield f"{name}: holds another state than result.json says ({why})", "damaged"
        elif name in needed:
            yield f"{name}: DONE does not name it", "damaged"
        else:
            why = "left over, gc removes it" if name == CHECKPOINT else "no result of lottery, it does no harm"
            yield f"{name}: {why}", "note"


def _unfinished(entry: StoredStage) -> Iterator[tuple[str, str]]:
    """Check the checkpoint against its digest, and the kept states against the digests in the checkpoint."""
    if "stage.json" in entry.sizes:
        yield from _about(entry)
    if CHECKPOINT not in entry.sizes:
        return
    found = _hashed(entry.folder / CHECKPOINT)
    if isinstance(found, tuple):
        yield found
        return
    text = str((found.metadata or {}).get("progress", ""))
    digest = hashlib.sha256(f"{found.state} {text}".encode()).hexdigest()  # as in lottery.training.checkpoint
    flaw, progress = found.flaw, dict[str, Any]()
    if not flaw and (found.metadata or {}).get("digest") != digest:
        flaw = "its content does not match its digest"
    elif not flaw:
        with suppress(Unreadable):
            progress = parse_json(text, CHECKPOINT)
        flaw = "" if progress.get("stage") == entry.key else "of another stage"
    if flaw:
        yield f"{CHECKPOINT}: {flaw}; the training would start again", "damaged"
        return
    for name, digest in state_files(progress).items():
        found = _hashed(entry.folder / name)
        if isinstance(found, tuple):
            yield found
        elif digest not in (found.state, _mask_digest(entry.folder / name, found)):
            yield f"{name}: holds another state than {CHECKPOINT} says; it would be computed again", "damaged"


def _hashed(path: Path) -> Hashed | tuple[str, str]:
    """Return the digests of a file, or the message and level of a flaw where it cannot be read."""
    try:
        return hashed(path)
    except FileNotFoundError:
        return f"{path.name}: missing", "damaged"
    except OSError as error:
        return f"{path.name}: cannot be read: {error.strerror}", "unreadable"


def _mask_digest(path: Path, found: Hashed) -> str:
    """Return the digest of a mask that a search keeps; "" for a state, and for a damaged mask."""
    metadata = found.metadata or {}
    return str(metadata.get("digest")) if "shapes" in metadata and not check_mask(path) else ""


def _about(entry: StoredStage) -> Iterator[tuple[str, str]]:
    """Check stage.json against the folder's key, which lottery.stages.store defines."""
    from lottery.config import digest  # Hydra comes with it

    if not (about := entry.about):
        yield "stage.json: missing or not readable", "damaged"
        return
    try:
        computed = digest({"kind": about.get("kind"), "inputs": about.get("inputs")})
    except ValueError:  # NaN, which no key contains
        computed = ""
    if (about.get("kind"), about.get("key"), computed) != (entry.kind, entry.key, entry.key):
        yield "stage.json: its inputs are not those that the key stands for", "damaged"


def check_mask(path: Path) -> list[Flaw]:
    """Check a mask snapshot against its digest and its header's checksum (design, 4.3; lottery.ticket)."""
    try:
        flaw = "" if _whole_mask(path.read_bytes()) else "its content does not match its digest"
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Flaw(str(path), f"cannot be read: {error.strerror}", "unreadable")]
    except (LotteryError, ValueError, TypeError, LookupError, AttributeError, OverflowError):
        flaw = "cut short, or its header is damaged"
    return [Flaw(str(path), f"{flaw}; the study, run again, writes it anew")] if flaw else []


def _whole_mask(data: bytes) -> bool:
    """Whether a mask file matches its checksum, and its digest of the header's shapes and the bits in their order."""
    length = int.from_bytes(data[:8], "little")
    header, bits = parse_json(data[8 : 8 + length], "its header"), data[8 + length :]
    said = header.pop("__metadata__")
    checksum, shapes = said.pop("checksum"), mask_shapes(said["shapes"], "its header")
    hasher = hashlib.sha256(said["shapes"].encode())
    whole = shapes.keys() == header.keys() and max(t["data_offsets"][1] for t in header.values()) == len(bits)
    for name, shape in shapes.items():
        begin, end = header[name]["data_offsets"]
        hasher.update(bits[begin:end])
        packed = {"dtype": "U8", "shape": [(prod(shape) + 7) // 8], "data_offsets": [begin, end]}
        whole = whole and header[name] == packed
    sealed = checksum == hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return whole and sealed and hasher.hexdigest() == said["digest"]
