"""Hash what a store and its run folders hold again, and compare it with the digests on record. Torch-free."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from lottery.inventory.contents import CHECKPOINT, Entry, read_entry
from lottery.inventory.hashing import Hashed, hashed

Flaws = list[tuple[str, str]]  # what, level
READERS = 4  # stages read at a time: a shared disk answers several sooner than one after the other


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    where: str
    what: str
    level: str = "damaged"  # damaged; unreadable: a matter of rights or of the disk; note: it does no harm
    entry: Entry | None = None  # the stage that it belongs to

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_stage(entry: Entry) -> list[Finding]:
    """All that is wrong with a stage, finished or not. One that vanishes or is finished meanwhile is looked at anew."""
    found = _finished(entry) if entry.done else _unfinished(entry)
    if found and (now := read_entry(entry.folder)) != entry:
        if now is None:
            return []
        found = _finished(now) if now.done else _unfinished(now)
    return [Finding(f"{entry.kind} {entry.short}", what, level, entry) for what, level in found]


def _finished(entry: Entry) -> Flaws:
    """DONE against the files, result.json against the states in them, stage.json against the key."""
    if entry.defect.startswith("DONE"):
        return [(entry.defect, "damaged")]
    flaws = _about(entry)
    states = _states(entry.result)
    needed = {"stage.json", "result.json", *states}
    visible = {name for name in entry.sizes if name[0] != "."} - {"DONE"}
    for name in sorted(needed | visible | entry.sealed.keys()):
        if name not in entry.sizes:
            flaws.append((f"{name}: missing", "damaged"))
        elif name not in entry.sealed and name in needed:
            flaws.append((f"{name}: DONE does not name it", "damaged"))
        elif name not in entry.sealed:
            why = "left over, gc removes it" if name == CHECKPOINT else "no result of lottery, it does no harm"
            flaws.append((f"{name}: {why}", "note"))
        else:
            flaws += _read(entry.folder / name, partial(_sealed, entry.sealed[name], states.get(name)))
    return flaws


def _sealed(digest: str, state: str | None, found: Hashed) -> str:
    if found.file != digest:
        return "changed since the stage was finished" + (f" ({found.flaw})" if found.flaw else "")
    if state is not None and found.state != state:
        return f"holds another state than result.json says ({found.flaw or state[:12]})"
    return ""


def _unfinished(entry: Entry) -> Flaws:
    """The checkpoint against its own digest, and the kept states against what it says of them."""
    flaws = _about(entry) if "stage.json" in entry.sizes else []
    if CHECKPOINT not in entry.sizes:
        return flaws
    said: dict[str, str] = {}

    def checkpoint(found: Hashed) -> str:
        meta = found.metadata or {}
        text = str(meta.get("progress", ""))
        # As lottery.training.checkpoint seals it.
        if found.flaw or meta.get("digest") != hashlib.sha256(f"{found.state} {text}".encode()).hexdigest():
            return f"{found.flaw or 'its content does not match its digest'}; the training would start again"
        said.update(_states(json.loads(text)))
        return ""

    flaws += _read(entry.folder / CHECKPOINT, checkpoint)
    for name, digest in said.items():
        flaws += _read(entry.folder / name, partial(_kept, digest))
    return flaws


def _kept(digest: str, found: Hashed) -> str:
    return "" if found.state == digest else f"holds another state than {CHECKPOINT} says; what comes of it is no result"


def _about(entry: Entry) -> Flaws:
    """Whether stage.json is about this folder's key: what makes a key is stated in `lottery.stages.store`."""
    from lottery.config import digest

    about = entry.about
    if not about:
        return [("stage.json: missing or not readable", "damaged")]
    computed = digest({"kind": about.get("kind"), "inputs": about.get("inputs")})
    if (about.get("kind"), about.get("key"), computed) != (entry.kind, entry.key, entry.key):
        return [("stage.json: its inputs are not those that the key stands for", "damaged")]
    return []


def _states(record: dict[str, Any]) -> dict[str, str]:
    """File -> digest of the state in it, as result.json or a checkpoint says. (The names: lottery.stages.train.)"""
    found = {"state.safetensors": record["state_digest"]} if "state_digest" in record else {}
    with suppress(AttributeError, ValueError):  # of a result.json that was altered, as its own digest shows
        for step, digests in record.get("kept", {}).items():
            found |= {f"{part}_{int(step):08d}.safetensors": digest for part, digest in digests.items()}
    return found


def _read(path: Path, judge: Callable[[Hashed], str]) -> Flaws:
    """What is wrong with a file, in the eyes of `judge` ("" for nothing) or because it cannot be read."""
    try:
        flaw = judge(hashed(path))
    except FileNotFoundError:
        return [(f"{path.name}: missing", "damaged")]
    except OSError as error:
        return [(f"{path.name}: cannot be read: {error.strerror}", "unreadable")]
    return [(f"{path.name}: {flaw}", "damaged")] if flaw else []


def check_mask(path: Path) -> list[Finding]:
    """A mask snapshot against its digest and its header's checksum (design, 4.3; lottery.ticket)."""
    try:
        flaw = "" if _whole_mask(path.read_bytes()) else "its content does not match its digest"
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Finding(str(path), f"cannot be read: {error.strerror}", "unreadable")]
    except (ValueError, TypeError, LookupError, AttributeError):
        flaw = "cut short, or its header is damaged"
    return [Finding(str(path), f"{flaw}; the study, run again, writes it anew")] if flaw else []


def _whole_mask(data: bytes) -> bool:
    """A mask's digest is over its header's shapes, and the bits in the order that these have there."""
    length = int.from_bytes(data[:8], "little")
    header, bits = json.loads(data[8 : 8 + length]), data[8 + length :]
    said = header.pop("__metadata__")
    checksum, shapes = said.pop("checksum"), json.loads(said["shapes"])
    hasher = hashlib.sha256(said["shapes"].encode())
    whole = shapes.keys() == header.keys() and max(t["data_offsets"][1] for t in header.values()) == len(bits)
    for name, shape in shapes.items():
        begin, end = header[name]["data_offsets"]
        hasher.update(bits[begin:end])
        packed = {"dtype": "U8", "shape": [(prod(shape) + 7) // 8], "data_offsets": [begin, end]}
        whole = whole and header[name] == packed
    sealed = checksum == hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return whole and sealed and hasher.hexdigest() == said["digest"]


# -- all of them ------------------------------------------------------------------------------------------------------


def check_all(entries: Sequence[Entry], masks: Sequence[Path]) -> Iterator[Finding]:
    """What is wrong, stage by stage and mask by mask, in their order; on a terminal with a line of progress."""
    with ThreadPoolExecutor(READERS) as pool, _progress(sum(entry.size for entry in entries)) as advance:
        for entry, found in zip(entries, pool.map(check_stage, entries), strict=True):
            advance(entry.size)
            yield from found
        for found in pool.map(check_mask, masks):
            yield from found


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """A bar on stderr, if that is a terminal; it is advanced by bytes."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
