"""What the tests of `python -m lottery store` share: run folders with their store, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_tools import small_config

from lottery.errors import Interrupted
from lottery.files import file_digest
from lottery.inventory.contents import Contents, StoredStage, read_contents
from lottery.signals import StopFlag
from lottery.study import Study

STUDY = ("controls.reinit=1",)  # beside two rounds: a dense training and two for each round
SEEDS = (0, 1)
TRAININGS = 1 + 2 * 2


class House:
    """Run folders and their store, for tests that change it."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.store = runs, runs / ".store"

    def study(self, *overrides: str, stop: StopFlag | None = None) -> Study:
        cfg = small_config((*STUDY, *overrides))
        cfg.paths.runs = str(self.runs)
        return Study(cfg, stop)

    def interrupted(self, *overrides: str, at: int, on_batch: list[Callable[[int], object]]) -> Path:
        """The run folder of a study that was interrupted when the dense training drew the batch of step `at`."""
        stop = StopFlag()

        def signal(step: int) -> None:
            if step == at:
                stop.signum = 15

        on_batch.append(signal)
        study = self.study(*overrides, stop=stop)
        with pytest.raises(Interrupted):
            study.run()
        on_batch.clear()
        return study.folder.path

    def folder(self, seed: int) -> Path:
        return self.study(f"seed={seed}").folder.path

    @property
    def contents(self) -> Contents:
        return read_contents(self.store)

    @property
    def keys(self) -> set[str]:
        return {entry.key for entry in self.contents.entries}

    def named(self, seed: int) -> set[str]:
        """The stages that a run folder's rounds name."""
        details = (self.folder(seed) / "rounds").iterdir()
        return {json.loads(path.read_text())["stages"]["train"] for path in details}

    def stage(self, seed: int, round: str = "round_001") -> StoredStage:
        """The stage of a round."""
        key = json.loads((self.folder(seed) / "rounds" / f"{round}.json").read_text())["stages"]["train"]
        return next(entry for entry in self.contents.entries if entry.key == key)


def reseal(folder: Path, *names: str) -> None:
    """Make DONE vouch for files as they are now."""
    sealed: dict[str, Any] = json.loads((folder / "DONE").read_text())
    (folder / "DONE").write_text(json.dumps(sealed | {name: file_digest(folder / name) for name in names}))


def flip(path: Path, at: int) -> None:
    """One bit of a file; a negative position counts from the end."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
