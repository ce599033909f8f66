"""Read a stage store while other processes write to it and remove from it. Torch-free."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lottery.files import Unreadable, parse_json, read_json
from lottery.lease import NAME as LEASE
from lottery.lease import Holder, read_holder

DIGEST = re.compile(r"[0-9a-f]{64}")
EMPTY = hashlib.sha256().hexdigest()  # the state of an optimizer without state: not evidence of a source
CHECKPOINT = "checkpoint.safetensors"
TRASH = ".trash"  # in the store: stages that are being removed
SHORT = 12  # digits of a key that are shown
FORGOTTEN_SECONDS = 3600.0  # a holder touches its lease every few seconds, and no write takes as long


@dataclass(frozen=True)
class StoredStage:
    """A snapshot of the folder of one stage, `<kind>/<key>`."""

    kind: str
    key: str
    folder: Path
    sizes: dict[str, int]  # bytes of each file, hidden ones included
    times: dict[str, float]  # when each file was last written, unix time
    about: dict[str, Any]  # stage.json; {} if missing or unreadable
    sealed: dict[str, str]  # DONE: sha256 of each file; {} while unfinished
    defect: str  # damage found without hashing; "" if none
    holder: Holder | None  # of the lease

    @property
    def short(self) -> str:
        return self.key[:SHORT]

    @property
    def done(self) -> bool:
        return "DONE" in self.sizes

    @property
    def inputs(self) -> dict[str, Any]:
        found = self.about.get("inputs")
        return found if isinstance(found, dict) else {}

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(self.sizes.values())

    @property
    def modified(self) -> float:
        """When its latest file was written, leases included; unix time."""
        return max(self.times.values(), default=0.0)

    def held(self, asking: Holder, now: float) -> bool:
        """Whether a process works on this stage. False if its lease's holder is known to be gone, or the lease old."""
        if LEASE not in self.times:
            return False
        if self.holder is not None and self.holder.kernel and self.holder.kernel == asking.kernel:
            return not self.holder.gone(asking)
        gone = self.holder is not None and self.holder.gone(asking)
        return not gone and now - self.times[LEASE] < FORGOTTEN_SECONDS

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`; {} if missing or unreadable."""
        return _object(self.folder / "result.json")[0]

    @cached_property
    def outputs(self) -> dict[str, str]:
        """Digest of a state or mask that the stage computed -> its place in `result.json` ("kept.500.state")."""
        return {digest: where for where, digest in digests(self.result) if digest != EMPTY} if self.done else {}

    @cached_property
    def reads(self) -> dict[str, str]:
        """Place among the inputs ("state", "mask") -> digest of the input."""
        return dict(digests(self.inputs))

    @property
    def step(self) -> int | None:
        """The step of the checkpoint of an unfinished stage; None without a readable checkpoint."""
        path = self.folder / CHECKPOINT
        with suppress(Unreadable):
            step = parse_json(str(header(path).get("progress")), path).get("step")
            return step if isinstance(step, int) else None
        return None


@dataclass(frozen=True)
class Contents:
    """The stages of a store, and other files found in it."""

    root: Path
    entries: list[StoredStage]
    strange: list[Path]  # files and folders that are no stages; of unknown origin, so never touched

    @cached_property
    def producers(self) -> dict[str, list[StoredStage]]:
        """Digest of a state or mask -> the finished stages that computed it."""
        found: dict[str, list[StoredStage]] = {}
        for entry in self.entries:
            for digest in entry.outputs:
                found.setdefault(digest, []).append(entry)
        return found

    def sources(self, entry: StoredStage) -> dict[str, list[StoredStage]]:
        """Return a map from the place of each input to the stages that computed it. Drawn inputs are left out."""
        return {where: self.producers[digest] for where, digest in entry.reads.items() if digest in self.producers}

    def consumers(self, entry: StoredStage) -> list[StoredStage]:
        """Return the stages that read an output of this one."""
        return [other for other in self.entries if not entry.outputs.keys().isdisjoint(other.reads.values())]


def read_contents(root: Path) -> Contents:
    """Read a store, except for hidden files and for files that vanish in the meantime."""
    entries, strange = [], []
    for kind in _visible(root):
        if not kind.is_dir():
            strange.append(kind)
            continue
        for folder in _visible(kind):
            if not DIGEST.fullmatch(folder.name) or not folder.is_dir():
                strange.append(folder)
            elif (entry := read_entry(folder)) is not None:
                entries.append(entry)
    return Contents(root, entries, [path for path in strange if path.exists()])


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except FileNotFoundError:
        return []


def read_entry(folder: Path) -> StoredStage | None:
    """Read a stage's folder; None if it vanished while being read."""
    sizes: dict[str, int] = {}
    times: dict[str, float] = {}
    try:
        for file in os.scandir(folder):
            try:
                stat = file.stat()
            except FileNotFoundError:  # a temporary file may vanish at any time
                continue
            sizes[file.name], times[file.name] = stat.st_size, stat.st_mtime
    except FileNotFoundError:
        return None
    about, flaw = _object(folder / "stage.json") if "stage.json" in sizes else ({}, "stage.json: missing")
    defect, sealed = flaw if "stage.json" in sizes else "", dict[str, Any]()
    if "DONE" in sizes:
        sealed, defect = _object(folder / "DONE")
        named = "" if "result.json" in sealed else "DONE: does not name result.json"
        lacking = next((f"{name}: missing" for name in sealed if not (folder / name).exists()), "")
        defect = defect or flaw or named or lacking
    if (defect or "DONE" not in sizes) and not folder.exists():
        return None
    kind, key = folder.parts[-2:]
    return StoredStage(kind, key, folder, sizes, times, about, sealed, defect, read_holder(folder))


def _object(path: Path) -> tuple[dict[str, Any], str]:
    """Return a file's JSON object and "", or {} and the error."""
    try:
        return read_json(path), ""
    except Unreadable as error:
        return {}, str(error).replace(str(path), path.name, 1)


def digests(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every sha256 in a JSON value, as pairs of its place ("kept.500.state") and the digest."""
    if isinstance(value, str) and DIGEST.fullmatch(value):
        yield where, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from digests(inner, f"{where}.{name}" if where else str(name))


def header(path: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file, without reading its tensors; {} if it cannot be read."""
    with suppress(OSError, Unreadable), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= path.stat().st_size:
            metadata = parse_json(file.read(length), path).get("__metadata__")
            return metadata if isinstance(metadata, dict) else {}
    return {}
