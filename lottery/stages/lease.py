"""A lease on a stage: one writer at a time, on any shared file system, with no locks and no clock that must be right.

The lease is a file that exists while somebody works, created so that only one can. Its holder touches it every few
seconds; whoever waits watches for the touch to change, by its own monotonic clock: two machines' clocks are never
compared, so a clock that jumps does no harm. A lease that was not touched for a while, or whose holder is known to be
gone, is taken over. A holder that slept through that (a suspended machine) finds out before it writes again.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from uuid import uuid4

from lottery.errors import Interrupted, LotteryError
from lottery.training.signals import StopFlag

NAME = ".lease"
RENEW_SECONDS = 5.0
STALE_SECONDS = 120.0  # NFS clients may see a file a minute late
POLL_SECONDS = 0.5


class LeaseLost(LotteryError):
    """Another process has taken the stage over."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    id: str
    host: str
    kernel: str  # the boot and process space: a process number means nothing in another one
    pid: int
    started: str  # as the kernel counts it: process numbers are used again
    job: str  # SLURM's job id, "" outside of SLURM
    restarts: int  # how often SLURM has started that job again
    study: str = ""  # who it is, for those who wait

    @classmethod
    def this_process(cls, study: str = "") -> Holder:
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        pid = os.getpid()
        return cls(uuid4().hex, socket.gethostname(), kernel(), pid, start_time(pid), job, restarts, study)

    def gone(self, asking: Holder) -> bool:
        """Whether the holder is known not to run any more; False where that cannot be told from here."""
        if self.job and self.job == asking.job and self.restarts < asking.restarts:
            return True  # an earlier run of this very job
        return bool(self.kernel) and self.kernel == asking.kernel and start_time(self.pid) != self.started

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"{self.study or 'another study'}, process {self.pid} on {self.host}{job}"


def kernel() -> str:
    """A name of this boot of this machine and of its process numbers (a container has its own); "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """When a process of this machine started, in the kernel's ticks; "" if there is none, or it is a zombie."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def read_holder(folder: Path) -> Holder | None:
    """Who holds the lease of a stage's folder; None if nobody does. Whether they still run is another question."""
    try:
        return Holder(**json.loads((folder / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


class Lease:
    """The lease of one folder, for this process: `acquire`, `check` before every write, `release`.

    As a context manager it releases.
    """

    def __init__(self, folder: Path, study: str = "") -> None:
        """`study` is what those are told who wait for us."""
        self.path = folder / NAME
        self.holder = Holder.this_process(study)
        self._over = threading.Event()
        self._beats: threading.Thread | None = None
        self._seen: tuple[object, float] | None = None  # the lease as last seen, and since when it looks so

    def acquire(self) -> bool:
        """Take the lease if it is free, or its holder gone; False while somebody else holds it."""
        if not self._create():
            seen = self._look()
            if not (self._abandoned(seen) and self._set_aside(seen) and self._create()):
                return False
        self._over.clear()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="lottery-lease")
        self._beats.start()
        return True

    def obtain(
        self, stop: StopFlag, on_wait: Callable[[str], None], what: str, needless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until the lease is ours: True; or until it is `needless`: False. Raises Interrupted on a signal.

        `on_wait` is told for whom we wait: "waiting for HOLDER: `what`".
        """
        told = ""
        while not needless():
            if stop:
                raise Interrupted(stop.signum or 0, "while it waited for another process")
            if self.acquire():
                return True
            holder = str(read_holder(self.path.parent) or "")
            if holder and holder != told:
                on_wait(f"waiting for {holder}: {what}")
                told = holder
            sleep(POLL_SECONDS)
        return False

    def check(self) -> None:
        """Raise LeaseLost if the stage is no longer ours to write."""
        if self._ours() or (not self.path.exists() and self._create()):
            return
        raise LeaseLost(f"{self.path.parent}: taken over by {read_holder(self.path.parent) or 'another process'}")

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._over.set()
        if self._beats is not None:
            self._beats.join()
        with suppress(OSError):
            if self._ours():
                self.path.unlink()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    # -- how --------------------------------------------------------------------------------------------------------

    def _create(self) -> bool:
        """Make the lease file if there is none; the one operation that every file system does for one process only."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except (FileExistsError, FileNotFoundError):  # the second where `store gc` has just removed the folder
            return False
        try:
            with os.fdopen(file, "w") as opened:
                opened.write(json.dumps(asdict(self.holder)))
        except OSError:  # a full disk: an empty lease would keep everybody waiting
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _ours(self) -> bool:
        found = read_holder(self.path.parent)
        return found is not None and found.id == self.holder.id

    def _look(self) -> tuple[Holder | None, object]:
        """The holder, and what its every touch changes."""
        try:
            return read_holder(self.path.parent), self.path.stat().st_mtime_ns
        except OSError:
            return None, None

    def _abandoned(self, seen: tuple[Holder | None, object]) -> bool:
        """Whether the holder is gone, or has not touched the lease for long enough."""
        if self._seen is None or self._seen[0] != seen:
            self._seen = (seen, monotonic())
        if seen[0] is not None and seen[0].gone(self.holder):
            return True
        return monotonic() - self._seen[1] > STALE_SECONDS

    def _set_aside(self, seen: tuple[Holder | None, object]) -> bool:
        """Move an abandoned lease away. One that somebody took over in that moment is put back."""
        aside = self.path.with_name(f"{NAME}.{uuid4().hex}.tmp")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True
        try:
            found = Holder(**json.loads(aside.read_text()))
        except (OSError, ValueError, TypeError):
            found = None
        if found is not None and (seen[0] is None or found.id != seen[0].id):
            os.rename(aside, self.path)
            return False
        aside.unlink(missing_ok=True)
        return True

    def _beat(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with suppress(OSError):  # a disk that is full or away for a moment
                if not self._ours():
                    return
                os.utime(self.path)
