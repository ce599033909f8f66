"""The stage store: a folder for each cached computation, named by a key of exactly what the computation reads.

`<root>/<kind>/<key>/` holds `stage.json` (the inputs in full), the results, and `DONE`, written last. Every file is
written under a temporary name, fsynced and renamed, so that a folder without `DONE` is unfinished work and a file
under its final name is whole. Many processes may share a store: a lease says who computes a stage, the others wait.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from lottery.config import digest
from lottery.errors import ConfigError, Interrupted
from lottery.files import Unreadable, file_digest, read_json, write_json
from lottery.lease import DONE, Lease, LeaseLost, not_shared
from lottery.seeding import seeded
from lottery.signals import StopFlag
from lottery.stages.attempts import Attempts

LOG = logging.getLogger("lottery")

REPAIR = "`python -m lottery store verify --remove` removes damaged stages, and the same command computes them again"
LIBRARIES = ("torch", "pytorch-lightning", "numpy", "lottery")

T = TypeVar("T")


@cache
def environment() -> dict[str, str]:
    """Return library versions and machine, recorded with results; no part of any key."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def recorded_environment(folder: Path) -> dict[str, str]:
    """Return library versions, machine and device with which a stage was begun."""
    found = read_json(folder / "stage.json", REPAIR).get("environment")
    if not isinstance(found, dict):
        raise Unreadable.of(folder / "stage.json", "damaged, it has no environment", REPAIR)
    return {str(name): str(value) for name, value in found.items()}


@dataclass(frozen=True)
class Stage:
    """The folder of one computation."""

    kind: str
    key: str
    folder: Path
    inputs: dict[str, Any]

    @property
    def done(self) -> bool:
        return (self.folder / DONE).exists()

    def open(self, **facts: str) -> None:
        """Begin or continue the work: write `stage.json`, unless an intact one is there."""
        path = self.folder / "stage.json"
        if path.exists():
            with suppress(Unreadable):
                about = read_json(path)
                kind, key, inputs = (about.get(name) for name in ("kind", "key", "inputs"))
                described = digest({"kind": kind, "inputs": inputs}) == self.key == key
                if described and isinstance(about.get("environment"), dict):
                    return
            LOG.warning("%s: damaged, or of another stage; it is written again", path)
        about = {"kind": self.kind, "key": self.key, "inputs": self.inputs, "environment": environment() | facts}
        write_json(path, about)

    def finish(self, result: dict[str, Any], without: tuple[str, ...] = ()) -> None:
        """Write `result.json`, then `DONE`: the sha256 of every file but hidden ones and those in `without`."""
        write_json(self.folder / "result.json", result)
        results = [p for p in sorted(self.folder.iterdir()) if p.name[0] != "." and p.name not in (DONE, *without)]
        write_json(self.folder / DONE, {path.name: file_digest(path) for path in results})

    def result(self) -> dict[str, Any]:
        """Return the finished stage's `result.json`. Raises LotteryError if its digest is not the one in `DONE`."""
        path = self.folder / "result.json"
        try:
            unchanged = file_digest(path) == read_json(self.folder / DONE).get("result.json")
        except (OSError, Unreadable):
            unchanged = False
        if not unchanged:
            raise Unreadable.of(path, "changed since the stage was finished", REPAIR)
        return read_json(path, REPAIR)


class Store:
    """All stages under one root, which many studies may share."""

    def __init__(
        self,
        root: Path,
        study: str = "",
        stop: StopFlag | None = None,
        on_wait: Callable[[str], None] = LOG.warning,
        attempts: Attempts | None = None,
        on_reuse: Callable[[dict[str, str]], object] | None = None,
    ) -> None:
        """Open the store under `root`.

        study:    name of this study, shown to processes that wait for it
        on_wait:  called with a line that says which process is waited for
        on_reuse: called with the recorded environment of each stage that is found rather than computed
        """
        self.on_reuse = on_reuse
        self.attempts = attempts or Attempts()
        self.root = root
        self.study = study
        self.stop = StopFlag() if stop is None else stop
        self.on_wait = on_wait

    def stage(self, kind: str, inputs: dict[str, Any]) -> Stage:
        """Return the stage of this kind for these inputs (JSON values only), finished or not."""
        key = digest({"kind": kind, "inputs": inputs})
        return Stage(kind, key, self.root / kind / key, inputs)

    def check(self) -> list[str]:
        """Check, before anything is computed, that this process may write to the folders of a shared store.

        Raises ConfigError where no stage of some kind could be added. Returns warnings about unfinished stages that
        this process could not take over; the study may not need them.
        """
        notes = list[str]()
        if not self.root.exists() or os.statvfs(self.root).f_flag & os.ST_RDONLY:  # not a question of permissions
            return notes
        for kind in (path for path in self.root.glob("[!.]*") if path.is_dir()):
            if not os.access(kind, os.R_OK | os.W_OK | os.X_OK):
                raise ConfigError(f"paths.store: {not_shared(kind)}")
            closed = [path for path in kind.iterdir() if not (os.access(path, os.W_OK) or (path / DONE).exists())]
            if closed:
                notes.append(
                    f"{len(closed)} unfinished {kind.name} stage(s) cannot be taken over: {not_shared(closed[0])}"
                )
        return notes

    def cached(
        self,
        kind: str,
        inputs: dict[str, Any],
        compute: Callable[[Stage], object],
        read: Callable[[Stage, bool], T],
        **facts: str,
    ) -> T:
        """Return the result of the stage of this kind for these inputs: found in the store, or computed now.

        `compute` does the work and calls `Stage.finish`; `read(stage, cached)` reads the finished stage. `facts`
        (device, threads) are recorded. Raises Interrupted when the stop flag is set before the work began.

        If another process computes the stage, this one waits. Work is done under a lease that is checked at every
        write. If this process dies, the next one continues from the last checkpoint.
        """
        stage = self.stage(kind, inputs)
        cached = self.finished(stage, compute, facts)
        if cached and self.on_reuse is not None:
            self.on_reuse(recorded_environment(stage.folder))
        return read(stage, cached)

    def finished(self, stage: Stage, compute: Callable[[Stage], object], facts: dict[str, str]) -> bool:
        """Finish a stage, or wait until another process has; return whether another one did."""
        lease, what = Lease(stage.folder, self.study), f"the same {stage.kind} stage ({stage.key[:12]})"
        while not stage.done:
            if self.stop:
                raise Interrupted(self.stop.signum or 0, "between two trainings")
            if lease.obtain(self.stop, self.waits, what, lambda: stage.done, self.meanwhile):
                with lease:
                    self.attempts.works()
                    if stage.done:  # finished since the last look
                        return True
                    try:
                        stage.open(**facts)
                        # the global generators, from which a user's own code may draw, depend on the key alone
                        with seeded(int(stage.key[:15], 16)):
                            compute(stage)
                        self.attempts.left()
                        return False
                    except LeaseLost as error:
                        LOG.warning("%s", error)
        return True

    def meanwhile(self) -> bool:
        """Do other work while another process computes the stage that is needed; return whether there was any."""
        return False

    def waits(self, line: str) -> None:
        """Report that this process waits for another one."""
        self.attempts.waits()
        self.on_wait(line)
