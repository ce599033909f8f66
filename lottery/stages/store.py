"""The stage store: a folder for each cached computation, named by a key of exactly what the computation reads.

`<root>/<kind>/<key>/` holds `stage.json` (the inputs in full), the results, and `DONE`, written last. Every file is
written under a temporary name, fsynced and renamed, so that a folder without `DONE` is unfinished work and a file
under its final name is whole. Many processes may share a store: a lease says who computes a stage, the others wait.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import time
from typing import Any

from lottery.config import digest
from lottery.errors import Interrupted, LotteryError
from lottery.files import file_digest, write_json
from lottery.stages.lease import Lease, LeaseLost
from lottery.training.signals import StopFlag

LOG = logging.getLogger("lottery")

STALE_SECONDS = 3600.0  # no write takes longer
LIBRARIES = ("torch", "pytorch-lightning", "numpy", "lottery")


@cache
def environment() -> dict[str, str]:
    """Library versions and machine, recorded with results; no part of any key."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def recorded_environment(folder: Path) -> dict[str, str]:
    """Library versions, machine and device that a stage was begun with."""
    return json.loads((folder / "stage.json").read_text())["environment"]


@dataclass(frozen=True)
class Stage:
    """One computation's folder."""

    kind: str
    key: str
    folder: Path
    inputs: dict[str, Any]

    @property
    def done(self) -> bool:
        return (self.folder / "DONE").exists()

    def open(self, **facts: str) -> None:
        """Begin or continue the work: the folder exists and says what it is for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            with suppress(FileNotFoundError):
                if time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink()
        if not (self.folder / "stage.json").exists():
            write_json(
                self.folder / "stage.json",
                {"kind": self.kind, "key": self.key, "inputs": self.inputs, "environment": environment() | facts},
            )

    def finish(self, without: tuple[str, ...] = ()) -> None:
        """Seal the results: `DONE` lists every file with its sha256, but for hidden ones and those named here."""
        results = [p for p in sorted(self.folder.iterdir()) if p.name[0] != "." and p.name not in ("DONE", *without)]
        write_json(self.folder / "DONE", {path.name: file_digest(path) for path in results})

    def result(self) -> dict[str, Any]:
        """The finished stage's `result.json`. Raises LotteryError if it is not what `DONE` vouches for."""
        path = self.folder / "result.json"
        try:
            sealed = json.loads((self.folder / "DONE").read_text())["result.json"]
            unchanged = file_digest(path) == sealed
        except (FileNotFoundError, ValueError, KeyError):
            unchanged = False
        if not unchanged:
            raise LotteryError(
                f"{path}: changed since the stage was finished; `python -m lottery store verify --remove` removes "
                "damaged stages, and the same command computes them again"
            )
        return json.loads(path.read_text())


class Store:
    """All stages under one root, which many studies may share."""

    def __init__(
        self,
        root: Path,
        study: str = "",
        stop: StopFlag | None = None,
        on_wait: Callable[[str], None] = LOG.warning,
    ) -> None:
        """`study` is what others are told who wait for us, `on_wait` is told for whom we wait."""
        self.root = root
        self.study = study
        self.stop = StopFlag() if stop is None else stop
        self.on_wait = on_wait

    def stage(self, kind: str, inputs: dict[str, Any]) -> Stage:
        """The stage of this kind for these inputs (JSON values only), finished or not."""
        key = digest({"kind": kind, "inputs": inputs})
        return Stage(kind, key, self.root / kind / key, inputs)

    def finished(self, stage: Stage, compute: Callable[[Lease], None], **facts: str) -> bool:
        """See to it that a stage is finished; returns whether somebody else had done it.

        It was there; or another process is at it, and is waited for; or `compute` does it here, under a lease that it
        checks before it writes. Whoever dies at it is relieved: the next one continues from the last checkpoint.
        `facts` (device, threads) are recorded. Raises Interrupted when the stop flag is set before the work began.
        """
        lease, what = Lease(stage.folder, self.study), f"the same {stage.kind} stage ({stage.key[:12]})"
        while not stage.done:
            if self.stop:
                raise Interrupted(self.stop.signum or 0, "between two trainings")
            if lease.obtain(self.stop, self.on_wait, what, needless=lambda: stage.done):
                with lease:
                    if stage.done:  # since we looked
                        return True
                    stage.open(**facts)
                    try:
                        compute(lease)
                        return False
                    except LeaseLost as error:
                        LOG.warning("%s", error)
        return True
