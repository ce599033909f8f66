"""Find the stages of a store that no run folder needs, and remove them, safely beside readers, writers and crashes.

A stage is removed in two moves: its folder is renamed to a hidden name, which is atomic, and then deleted. In between
the run folders are read again, and a stage that turns out to be needed is put back.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from uuid import uuid4

from lottery.inventory.contents import CHECKPOINT, FORGOTTEN_SECONDS, TRASH, Contents, StoredStage, read_entry
from lottery.inventory.needs import StoreUser, needed
from lottery.lease import NAME as LEASE
from lottery.lease import Holder, Lease
from lottery.printing import say
from lottery.signals import StopFlag

GC = "store gc"


@dataclass(frozen=True)
class Plan:
    """The stages and leftover files to remove."""

    remove: list[StoredStage]
    leftovers: dict[Path, float] = field(default_factory=dict)  # path -> when last written, unix time

    @property
    def size(self) -> int:
        """Bytes of all stages and files to remove."""
        return sum(entry.size for entry in self.remove) + sum(_size(path) for path in self.leftovers)


@dataclass
class Cleared:
    """Counts of what was removed, and messages on what was not."""

    stages: int = 0
    leftovers: int = 0
    size: int = 0  # bytes
    kept: list[str] = field(default_factory=list)  # lines about stages that turned out to be needed
    failed: list[str] = field(default_factory=list)  # lines about failed removals


@contextmanager
def clearing(root: Path) -> Iterator[None]:
    """Hold the lease for removals from the store. Waits while another process has it."""
    lease = Lease(root / TRASH, GC)
    lease.obtain(StopFlag(), say, "it removes stages from this store")
    with lease:
        yield


def store_clock(root: Path) -> float:
    """Return the time by the clock of the store's file system, by which the ages of its files are measured."""
    probe = root / f".{uuid4().hex}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # read-only: use the local clock
        return time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


# -- what may go ------------------------------------------------------------------------------------------------------


def plan(contents: Contents, runs: Collection[StoreUser], older_than: float, now: float) -> Plan:
    """Plan the removal of the stages and files that no run folder needs.

    Stages under work stay, as do unfinished stages last written less than `older_than` seconds before `now`, and the
    stages that either of these may need.
    """
    me = Holder.this_process()
    held = {entry.key for entry in contents.entries if entry.held(me, now)}
    young = {entry.key for entry in contents.entries if not entry.done and now - entry.modified < older_than}
    keep = needed(contents, runs, [entry for entry in contents.entries if entry.key in held | young])
    remove = [entry for entry in contents.entries if entry.key not in keep]
    return Plan(remove, _leftovers(contents, keep, held, now))


def _leftovers(contents: Contents, keep: Iterable[str], held: Iterable[str], now: float) -> dict[Path, float]:
    """Find trash of an aborted gc, old temporary files, leases of dead holders, checkpoints of finished stages."""
    root = contents.root
    found = {path: _written(path) for path in sorted((root / TRASH).glob("[!.]*"))}
    for folder in (root, *sorted({entry.folder.parent for entry in contents.entries})):
        outside = {path: _written(path) for path in sorted(folder.glob(".*.tmp"))}
        found |= {path: written for path, written in outside.items() if now - written > FORGOTTEN_SECONDS}
    for entry in contents.entries:
        if entry.key not in keep:
            continue
        temporary = {name: entry.times[name] for name in fnmatch.filter(entry.times, ".*.tmp")}
        over = {name for name, written in temporary.items() if now - written > FORGOTTEN_SECONDS}
        if entry.key not in held:
            over |= {LEASE, CHECKPOINT} if entry.done and not entry.defect else {LEASE}
        found |= {entry.folder / name: entry.times[name] for name in sorted(over & entry.times.keys())}
    return found


def _written(path: Path) -> float:
    """Return when a file or folder was last written, unix time; infinity if it is gone."""
    with suppress(OSError):
        return path.stat().st_mtime
    return float("inf")


def _size(path: Path) -> int:
    with suppress(OSError):
        return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return 0


# -- its removal ------------------------------------------------------------------------------------------------------


def clear(root: Path, planned: Plan, look_again: Callable[[], dict[str, str]] = dict) -> Cleared:
    """Remove the planned stages and files. Call this inside `clearing`.

    look_again: called when the stages are hidden; returns stage key -> reason for the stages needed after all.
    """
    cleared = Cleared()
    (root / TRASH).mkdir(exist_ok=True)
    moved = [(entry, place) for entry in planned.remove if (place := _moved(root, entry, cleared)) is not None]
    wanted = look_again() if moved else {}
    for entry, place in moved:
        if entry.key in wanted and _put_back(place, entry, wanted[entry.key], cleared):
            continue
        if _deleted(place, cleared):
            cleared.stages += 1
            cleared.size += entry.size
    for path, written in planned.leftovers.items():
        size = _size(path)
        if _deleted(path, cleared) if path.is_dir() else _unlinked(path, written, cleared):
            cleared.leftovers += 1
            cleared.size += size
    return cleared


def _moved(root: Path, entry: StoredStage, cleared: Cleared) -> Path | None:
    """Rename a stage's folder to a hidden name, and return that; None if it is gone, in use, or cannot be removed."""
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
def _taken(entry: StoredStage) -> Iterator[bool]:
    """Take the lease of an unfinished stage. Yields False if another process has it, or has finished the stage."""
    lease = Lease(entry.folder, GC)
    if LEASE in entry.times and not entry.held(lease.holder, store_clock(entry.folder.parent)):
        _unlinked(entry.folder / LEASE, entry.times[LEASE], Cleared())
    if not lease.acquire():
        yield False
        return
    with lease:
        now = read_entry(entry.folder)
        yield now is not None and not now.done


def _put_back(place: Path, entry: StoredStage, why: str, cleared: Cleared) -> bool:
    """Rename a stage's folder back. False if the stage is being computed anew there, so that `place` can go."""
    try:
        os.rename(place, entry.folder)
        cleared.kept.append(f"{entry.kind} {entry.short}: needed by {why}, which is new")
    except OSError as error:
        if entry.folder.exists():
            return False
        need = f"needed by {why}, but cannot be put back ({error.strerror})"
        cleared.failed.append(f"{entry.kind} {entry.short}: {need}; before the next gc move {place} to {entry.folder}")
    return True


def _deleted(folder: Path, cleared: Cleared) -> bool:
    """Delete a folder of the trash; True if all of it is gone. DONE goes first: a remnant must not pass for a stage."""
    with suppress(OSError):
        (folder / "DONE").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        cleared.failed.append(f"{folder}: cannot be removed entirely; the next gc tries again")
        return False
    return True


def _unlinked(path: Path, written: float, cleared: Cleared) -> bool:
    """Delete a file unless it was written after `written`; False if it stays, or was gone."""
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
