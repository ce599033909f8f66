"""A lease on a folder: one writer at a time, on any shared file system, without locks and without exact clocks.

The lease is a file that exists while a process works there; only one process can create it. Its holder touches it every
few seconds. A waiting process watches the time of the file change, by its own monotonic clock; the clocks of two
machines are never compared. A lease that was not touched for a while, or whose holder is known to be gone, is taken
over. A holder that was suspended meanwhile notices before it writes again: `files.replacing` checks the lease of a
folder before each rename. A lost lease stays lost until it is acquired again.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from uuid import uuid4

from lottery.errors import Interrupted, LotteryError
from lottery.files import Unreadable, parse_json
from lottery.sharing import GUARDS, create, make_folder, remove_temporary
from lottery.signals import StopFlag
from lottery.values import read_record, record

NAME = ".lease"
DONE = "DONE"  # seals a folder: no process writes there any more
RENEW_SECONDS = 5.0
STALE_SECONDS = 120.0  # NFS clients may see a file a minute late
UNREADABLE_SECONDS = 10.0  # leases are written whole; an unreadable one was left by a crash
POLL_SECONDS = 0.5
SILENT: dict[tuple[str, ...], int] = {}  # process found silent -> when it last touched a lease, in ns


def pauses() -> Iterator[float]:
    """Yield how long to sleep between two looks, in seconds: shortly at first, and at most POLL_SECONDS."""
    pause = 0.02
    while True:
        yield min(pause, POLL_SECONDS)
        pause *= 1.2


class LeaseLost(LotteryError):
    """Another process has taken the folder over, or may have."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease."""

    id: str
    host: str
    kernel: str  # boot and process namespace, in which the process number is valid
    pid: int
    started: str  # in the kernel's ticks; distinguishes processes with a reused number
    job: str  # SLURM's job id, "" outside of SLURM
    restarts: int  # how often SLURM has started that job again
    study: str = ""  # name shown to waiting processes

    @classmethod
    def this_process(cls, study: str = "") -> Holder:
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        pid = os.getpid()
        return cls(uuid4().hex, socket.gethostname(), kernel(), pid, start_time(pid), job, restarts, study)

    def gone(self, asking: Holder) -> bool:
        """Whether the holder is known to have ended; False where the asking process cannot know."""
        if self.job and self.job == asking.job and self.restarts < asking.restarts:
            return True  # an earlier run of this very job
        return bool(self.kernel) and self.kernel == asking.kernel and start_time(self.pid) != self.started

    @property
    def process(self) -> tuple[str, ...]:
        """Identity of the process, shared by all its leases."""
        return self.host, self.kernel, str(self.pid), self.started, self.job, str(self.restarts)

    def fell_silent(self, touched: int) -> bool:
        """Whether the process let another lease go stale that it last touched within 15 s of `touched` (ns)."""
        return abs(touched - SILENT.get(self.process, 0)) < 3e9 * RENEW_SECONDS

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"{self.study or 'another study'}, process {self.pid} on {self.host}{job}"


def kernel() -> str:
    """Identify the boot of this machine and the process namespace (a container has its own); "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """Return when a process of this machine started, in the kernel's ticks; "" for none and for a zombie."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def read_holder(folder: Path) -> Holder | None:
    """Return the holder of a folder's lease, whether it still runs or not; None without a readable lease."""
    try:
        return read_record(Holder, folder / NAME)
    except Unreadable:
        return None


def not_shared(folder: Path) -> str:
    """Return the error message for another user's folder in which this user may not write."""
    return (
        f"{folder}: belongs to another user, and you may not write in it; members of a group who share a store set"
        " `umask 002`, and its owners `chmod -R g+rwX,g+s STORE` (slurm/README.md)"
    )


class Lease(AbstractContextManager["Lease"]):
    """This process's lease of one folder: `acquire`, `check` before every write, `release`.

    While the lease is held, and after it was lost, `files.replacing` checks it for every file in the folder. Code that
    writes by other means calls `check`. A `with` block releases the lease at its end.
    """

    def __init__(self, folder: Path, study: str = "") -> None:
        """study: name shown to waiting processes."""
        self.folder, self.path = folder, folder / NAME
        self.holder = Holder.this_process(study)
        self._lost = False
        self._over = threading.Event()
        self._beats: threading.Thread | None = None
        self._seen: tuple[object, float] | None = None  # the lease as last seen, and since when it is unchanged

    def acquire(self) -> bool:
        """Take the lease if it is free or abandoned; return False while another process holds it.

        Raises LotteryError where the folder belongs to another user and this user may not write to it.
        """
        if not self._create():
            seen = self._look()
            if not (self._abandoned(seen) and self._set_aside(seen[0]) and self._create()):
                return False
        remove_temporary(self.folder)  # files that a former holder was about to rename
        self._lost = False
        GUARDS[self.folder] = self.check
        self._over.clear()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="lottery-lease")
        self._beats.start()
        return True

    def obtain(
        self,
        stop: StopFlag,
        on_wait: Callable[[str], None],
        what: str,
        needless: Callable[[], bool] = lambda: False,
        meanwhile: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Wait for the lease: True once acquired, False once `needless()` is true. Raises Interrupted on a signal.

        on_wait:   gets the text "waiting for HOLDER: `what`; ..." for each holder that is waited for
        meanwhile: called while another process holds the lease; returns whether it has done some other work
        """
        told, pause = "", pauses()
        while not needless():
            if stop:
                raise Interrupted(stop.signum or 0, "while it waited for another process")
            if self.acquire():
                return True
            if meanwhile():
                continue
            if (holder := self._awaited(what)) and holder != told:
                on_wait(holder)
                told = holder
            sleep(next(pause))
        return False

    def check(self) -> None:
        """Raise LeaseLost unless this process has held the lease without a break, and the folder is not sealed.

        A vanished lease is not created again: another process may have taken over the folder, and finished.
        """
        if not self._lost and not self._ours():
            if read_holder(self.folder) is None:
                sleep(POLL_SECONDS)  # a process that moved it away by mistake puts it back at once
            self._lost = not self._ours()
        if (self.folder / DONE).exists():
            raise LeaseLost(f"{self.folder}: finished by another process; what this one found is dropped")
        if self._lost:
            holder = read_holder(self.folder)
            gone = "the lease is gone: taken over by another process, or removed"
            raise LeaseLost(f"{self.folder}: {f'taken over by {holder}' if holder else gone}")

    def release(self) -> None:
        """Give the lease back, if this process still holds it."""
        self._over.set()
        if self._beats is not None:
            self._beats.join()
        if GUARDS.get(self.folder) == self.check:
            del GUARDS[self.folder]
        with suppress(OSError):
            if self._ours():
                self._set_aside(self.holder)

    def __exit__(self, *raised: object) -> None:
        self.release()

    def _create(self) -> bool:
        """Create the lease file unless it exists. Of several processes only one succeeds, on any file system."""
        try:
            make_folder(self.folder)
            return not self.path.exists() and create(self.path, json.dumps(asdict(self.holder)).encode())
        except FileNotFoundError:  # `store gc` has just removed the folder
            return False
        except PermissionError as error:
            raise LotteryError(not_shared(self.folder)) from error

    def _ours(self) -> bool:
        found = read_holder(self.folder)
        return found is not None and found.id == self.holder.id

    def _awaited(self, what: str) -> str:
        """Describe the holder that is waited for, and for how long at most; "" if it just released the lease."""
        if holder := read_holder(self.folder):
            return f"waiting for {holder}: {what}; taken over after {STALE_SECONDS:g} s without a sign"
        if not self.path.exists():
            return ""
        why = f"{self.path} is empty or damaged; taken over in {UNREADABLE_SECONDS:g} s"
        return f"waiting for an unknown process: {what}; {why}"

    def _look(self) -> tuple[Holder | None, int]:
        """Return the holder, and when it last touched the lease, in ns; (None, 0) where there is no lease."""
        try:
            return read_holder(self.folder), self.path.stat().st_mtime_ns
        except OSError:
            return None, 0

    def _abandoned(self, seen: tuple[Holder | None, int]) -> bool:
        """Whether the holder is gone, or has not touched the lease for too long."""
        if self._seen is None or self._seen[0] != seen:
            self._seen = (seen, monotonic())
        holder, touched = seen
        if holder is not None and (holder.gone(self.holder) or holder.fell_silent(touched)):
            return True
        if monotonic() - self._seen[1] <= (UNREADABLE_SECONDS if holder is None else STALE_SECONDS):
            return False
        if holder is not None:
            SILENT[holder.process] = touched
        return True

    def _set_aside(self, holder: Holder | None) -> bool:
        """Remove this holder's lease; if another process took it over meanwhile, put it back and return False."""
        aside = self.path.with_name(f"{NAME}-{uuid4().hex}.tmp")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True
        except PermissionError as error:
            raise LotteryError(not_shared(self.folder)) from error
        try:
            data = aside.read_bytes()
            found = record(Holder, parse_json(data, aside), aside)
        except (OSError, Unreadable):
            found = None
        taken = found is not None and (holder is None or found.id != holder.id)
        if taken:
            create(self.path, data)
        aside.unlink(missing_ok=True)
        return not taken

    def _beat(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with suppress(OSError):  # a disk that is full or away for a moment
                found = read_holder(self.folder)
                if found is not None and found.id != self.holder.id:
                    return
                os.utime(self.path)
