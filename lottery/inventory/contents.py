"""What a stage store holds, as found on disk while others write to it and remove from it. Reads only, torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lottery.stages.lease import NAME as LEASE
from lottery.stages.lease import Holder, read_holder

DIGEST = re.compile(r"[0-9a-f]{64}")
EMPTY = hashlib.sha256().hexdigest()  # the state of an optimizer that has none: it comes from everywhere
CHECKPOINT = "checkpoint.safetensors"
TRASH = ".trash"  # in the store: stages on their way out
SHORT = 12  # digits of a key, as they are shown
FORGOTTEN_SECONDS = 3600.0  # a holder touches its lease every few seconds, and no write takes as long


@dataclass(frozen=True)
class Entry:
    """One stage's folder."""

    kind: str
    key: str
    folder: Path
    sizes: dict[str, int]  # bytes of each file, hidden ones included
    times: dict[str, float]  # when each was last written, unix time
    about: dict[str, Any]  # stage.json; {} if it is not there or not readable
    sealed: dict[str, str]  # DONE: sha256 of each file; {} while unfinished
    defect: str  # what is wrong at first sight; "" if nothing
    holder: Holder | None

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
        """Bytes."""
        return sum(self.sizes.values())

    @property
    def modified(self) -> float:
        """When something in it was last written, a lease's touch included; unix time."""
        return max(self.times.values(), default=0.0)

    def held(self, asking: Holder, now: float) -> bool:
        """Whether somebody is at work here, as far as can be told: not if the lease's holder is gone or forgot it."""
        if LEASE not in self.times:
            return False
        if self.holder is not None and self.holder.kernel and self.holder.kernel == asking.kernel:
            return not self.holder.gone(asking)
        gone = self.holder is not None and self.holder.gone(asking)
        return not gone and now - self.times[LEASE] < FORGOTTEN_SECONDS

    @cached_property
    def result(self) -> dict[str, Any]:
        """`result.json`; {} if it is not there or not readable."""
        return _object(self.folder / "result.json")[0]

    @cached_property
    def outputs(self) -> dict[str, str]:
        """What it hands on: digest of a state or mask -> where it stands in `result.json` ("kept.500.state")."""
        return {digest: where for where, digest in digests(self.result) if digest != EMPTY} if self.done else {}

    @cached_property
    def reads(self) -> dict[str, str]:
        """What it was given: where it stands among the inputs ("state", "mask") -> digest."""
        return dict(digests(self.inputs))

    @property
    def step(self) -> int | None:
        """The step that the checkpoint of an unfinished stage has reached; None without a readable one."""
        step = progress(self.folder / CHECKPOINT).get("step")
        return step if isinstance(step, int) else None


@dataclass(frozen=True)
class Contents:
    """A whole store."""

    root: Path
    entries: list[Entry]
    strange: list[Path]  # what is no stage: nobody knows whose, so nobody touches it

    @cached_property
    def producers(self) -> dict[str, list[Entry]]:
        """Digest of a state or mask -> the finished stages that hand it on."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for digest in entry.outputs:
                found.setdefault(digest, []).append(entry)
        return found

    def sources(self, entry: Entry) -> dict[str, list[Entry]]:
        """The stages that an entry's inputs come from: where among the inputs -> stages. What is drawn has none."""
        return {where: self.producers[digest] for where, digest in entry.reads.items() if digest in self.producers}

    def consumers(self, entry: Entry) -> list[Entry]:
        """The stages that were given what this one handed on."""
        return [other for other in self.entries if not entry.outputs.keys().isdisjoint(other.reads.values())]


def read_contents(root: Path) -> Contents:
    """Everything in a store, hidden files apart. What vanishes in the meantime is not in it."""
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


def read_entry(folder: Path) -> Entry | None:
    """A stage's folder; None if it vanished while it was read."""
    sizes: dict[str, int] = {}
    times: dict[str, float] = {}
    try:
        for file in os.scandir(folder):
            try:
                stat = file.stat()
            except FileNotFoundError:  # temporary names come and go
                continue
            sizes[file.name], times[file.name] = stat.st_size, stat.st_mtime
    except FileNotFoundError:
        return None
    about, flaw = _object(folder / "stage.json") if "stage.json" in sizes else ({}, "stage.json: missing")
    defect, sealed = "", dict[str, Any]()
    if "DONE" in sizes:
        sealed, defect = _object(folder / "DONE")
        defect = defect or flaw or _missing(folder, sealed)
    elif "stage.json" in sizes:
        defect = flaw
    if (defect or "DONE" not in sizes) and not folder.exists():
        return None
    return Entry(folder.parent.name, folder.name, folder, sizes, times, about, sealed, defect, read_holder(folder))


def _missing(folder: Path, sealed: dict[str, str]) -> str:
    """What a sealed folder lacks at first sight."""
    if "result.json" not in sealed:
        return "DONE: does not name result.json"
    lacking = [name for name in sealed if not (folder / name).exists()]
    return f"{lacking[0]}: missing" if lacking else ""


def _object(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object and "", or {} and what is wrong with the file."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        return {}, f"{path.name}: {error.strerror or error}"
    except ValueError:
        return {}, f"{path.name}: not JSON"
    return (found, "") if isinstance(found, dict) else ({}, f"{path.name}: not a JSON object")


def digests(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every sha256 in a JSON value, with the place where it stands."""
    if isinstance(value, str) and DIGEST.fullmatch(value):
        yield where, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from digests(inner, f"{where}.{name}" if where else str(name))


def progress(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself in its header; {} if it cannot be read. The tensors are not looked at."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                return {}
            found = json.loads(json.loads(file.read(length))["__metadata__"]["progress"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
