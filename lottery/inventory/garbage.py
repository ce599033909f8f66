"""What a store can do without, and its removal: safe against readers, writers, and a crash in the middle.

A stage goes in two moves: its folder is renamed to a hidden name, so that from one moment to the next it is not there,
and only then deleted. In between the run folders are looked at once more, and what turned out to be needed is put back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from uuid import uuid4

from lottery.inventory.contents import CHECKPOINT, FORGOTTEN_SECONDS, TRASH, Contents, Entry, read_entry
from lottery.inventory.needs import Run, needed
from lottery.stages.lease import NAME as LEASE
from lottery.stages.lease import Holder, Lease
from lottery.training.signals import StopFlag

GC = "store gc"


@dataclass(frozen=True)
class Plan:
    """What would go, and why the rest stays."""

    remove: list[Entry]
    keep: dict[str, str]  # key: why
    leftovers: dict[Path, float]  # files and folders that are no results and that nobody works on: last written
    size: int  # bytes of all that would go


@dataclass
class Cleared:
    """What has gone."""

    stages: int = 0
    leftovers: int = 0
    size: int = 0  # bytes
    kept: list[str] = field(default_factory=list)  # what was needed after all
    failed: list[str] = field(default_factory=list)  # what could not be removed


@contextmanager
def clearing(root: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """While this is open no other process removes anything from the store; one that is at it is waited for."""
    lease = Lease(root / TRASH, GC)
    lease.obtain(StopFlag(), on_wait, "it removes stages from this store")
    with lease:
        yield


def store_clock(root: Path) -> float:
    """The time as the store's file system gives it to files, so that their ages are told by one clock."""
    probe = root / f".{uuid4().hex}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # read-only: our own clock has to do
        return time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


# -- what may go ------------------------------------------------------------------------------------------------------


def plan(contents: Contents, runs: Iterable[Run], older_than: float, now: float) -> Plan:
    """What no run folder needs.

    Never a stage that somebody is at work on, nor an unfinished one that was last written less than `older_than`
    seconds before `now`, nor what these two may need.
    """
    me = Holder.this_process()
    held = {entry.key for entry in contents.entries if entry.held(me, now)}
    young = {entry.key for entry in contents.entries if not entry.done and now - entry.modified < older_than}
    keep = needed(contents, runs, [entry for entry in contents.entries if entry.key in held | young])
    remove = [entry for entry in contents.entries if entry.key not in keep]
    left = _leftovers(contents, keep, held, now)
    size = sum(entry.size for entry in remove) + sum(_size(path) for path in left)
    return Plan(remove, {entry.key: keep[entry.key] for entry in contents.entries if entry.key in keep}, left, size)


def _leftovers(contents: Contents, keep: Iterable[str], held: Iterable[str], now: float) -> dict[Path, float]:
    """Trash of a gc that was cut short, old temporary files, leases of the dead, checkpoints of finished stages."""
    root = contents.root
    found = {path: _written(path) for path in sorted((root / TRASH).glob("[!.]*"))}
    for folder in (root, *sorted({entry.folder.parent for entry in contents.entries})):
        temporary = {path: _written(path) for path in sorted(folder.glob(".*.tmp"))}
        found |= {path: written for path, written in temporary.items() if now - written > FORGOTTEN_SECONDS}
    for entry in contents.entries:
        if entry.key not in keep:
            continue
        over = {name for name in entry.times if _temporary(name) and now - entry.times[name] > FORGOTTEN_SECONDS}
        if entry.key not in held:
            over |= {LEASE, CHECKPOINT} if entry.done and not entry.defect else {LEASE}
        found |= {entry.folder / name: entry.times[name] for name in sorted(over & entry.times.keys())}
    return found


def _temporary(name: str) -> bool:
    return name[0] == "." and name.endswith(".tmp")


def _written(path: Path) -> float:
    """When a file or folder was last written; now and for ever, if it is gone."""
    with suppress(OSError):
        return path.stat().st_mtime
    return float("inf")


def _size(path: Path) -> int:
    with suppress(OSError):
        return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return 0


# -- its removal ------------------------------------------------------------------------------------------------------


def clear(root: Path, planned: Plan, look_again: Callable[[], dict[str, str]] = dict) -> Cleared:
    """Remove what is planned, under `clearing`. `look_again` says what is needed, key -> why, once nobody can find the
    stages any more.
    """
    cleared = Cleared()
    (root / TRASH).mkdir(exist_ok=True)
    moved = [(entry, place) for entry in planned.remove if (place := _moved(root, entry, cleared)) is not None]
    wanted = look_again() if moved else {}
    for entry, place in moved:
        if entry.key in wanted and _put_back(place, entry):
            cleared.kept.append(f"{entry.kind} {entry.short}: needed by {wanted[entry.key]}, which is new")
        elif _deleted(place, cleared):
            cleared.stages += 1
            cleared.size += entry.size
    for path, written in planned.leftovers.items():
        size = _size(path)
        if _deleted(path, cleared) if path.is_dir() else _unlinked(path, written, cleared):
            cleared.leftovers += 1
            cleared.size += size
    return cleared


def _moved(root: Path, entry: Entry, cleared: Cleared) -> Path | None:
    """The stage's folder under a hidden name; None if it was not there any more, or cannot go."""
    place = root / TRASH / f"{entry.kind}-{entry.key}-{uuid4().hex}"
    try:
        if not entry.folder.exists():
            return None
        if entry.done:
            entry.folder.rename(place)
            return place
        with _taken(entry) as ours:
            if not ours:
                cleared.kept.append(f"{entry.kind} {entry.short}: somebody is at work on it")
                return None
            entry.folder.rename(place)
            (place / LEASE).unlink(missing_ok=True)
            return place
    except FileNotFoundError:
        return None
    except OSError as error:
        cleared.failed.append(f"{entry.kind} {entry.short}: cannot be removed: {error.strerror}")
        return None


@contextmanager
def _taken(entry: Entry) -> Iterator[bool]:
    """Whether an unfinished stage is ours; not if somebody holds it now, or has finished it."""
    lease = Lease(entry.folder, GC)
    if LEASE in entry.times and not entry.held(lease.holder, store_clock(entry.folder.parent)):
        _unlinked(entry.folder / LEASE, entry.times[LEASE], Cleared())
    if not lease.acquire():
        yield False
        return
    with lease:
        now = read_entry(entry.folder)
        yield now is not None and not now.done


def _put_back(place: Path, entry: Entry) -> bool:
    """Whether a stage is at its place again; not if it is being computed anew there."""
    with suppress(OSError):
        os.rename(place, entry.folder)
        return True
    return False


def _deleted(folder: Path, cleared: Cleared) -> bool:
    """Whether a folder of the trash is gone, its DONE first: half of it must not pass for a stage."""
    with suppress(OSError):
        (folder / "DONE").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        cleared.failed.append(f"{folder}: cannot be removed entirely; the next gc tries again")
        return False
    return True


def _unlinked(path: Path, written: float, cleared: Cleared) -> bool:
    """Whether a file is gone that nobody has written since."""
    try:
        if path.stat().st_mtime != written:
            return False
        path.unlink()
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        cleared.failed.append(f"{path}: cannot be removed: {error.strerror}")
        return False
