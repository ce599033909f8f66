"""What the tests on real processes share: a study of five trainings, processes that run it, and what it found."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from lottery.__main__ import main
from lottery.ticket import Mask

STUDY = (
    "+exp=imp_rewind", "data=digits", "data.limit=400", "model.hidden=[30,20]", "optim.weight_decay=1e-3",
    "method.rounds=2", "train.steps=300it", "train.batch_size=50", "train.eval_every=50it", "rewind.to=70it",
    "train.checkpoint_steps=35", "controls.reinit=0", "tracker=none",
    "trainer=cpu", "trainer.progress=false", "trainer.threads=1",
    "trainer.workers=1",
)  # fmt: skip
TRAININGS = 1 + 2 * 2
PATIENCE = 300  # seconds, for a machine with many other things to do


def command(runs: Path, *more: str) -> list[str]:
    return [*STUDY, f"paths.runs={runs}", *more]


def rows(runs: Path) -> list[dict[str, Any]]:
    """The table of the one study."""
    (folder,) = (runs / "imp_rewind").iterdir()
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def record(runs: Path, store: Path | None = None) -> dict[str, Any]:
    """What the study found: rows, masks, curves and trained states, but for how long it took."""
    (folder,) = (runs / "imp_rewind").iterdir()
    store = store or runs / ".store"
    return {
        "rows": [{k: v for k, v in row.items() if k not in ("seconds", "cached")} for row in rows(runs)],
        "masks": {path.name: Mask.load(path).digest for path in (folder / "masks").iterdir()},
        "curves": (folder / "curves.csv").read_text(),
        "states": {p.relative_to(store): p.read_bytes() for p in store.rglob("*.safetensors") if p.name[0] != "."},
        "done": len(list(store.rglob("DONE"))),
    }


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def begun(runs: Path) -> int:
    """How many trainings have been begun, finished ones included."""
    return len(list((runs / ".store").glob("train/*/stage.json")))


class Checkpoints:
    """Whether a checkpoint has been written since this was made: then a training is under way."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.before = self.look()

    def look(self) -> dict[Path, int]:
        found = {}
        for path in self.runs.rglob("checkpoint.safetensors"):
            try:
                found[path] = path.stat().st_mtime_ns
            except FileNotFoundError:  # just removed, as its training is done
                continue
        return found

    def written(self) -> bool:
        return any(self.before.get(path) != when for path, when in self.look().items())


def forked(
    arguments: list[str],
    output: Path,
    first: Callable[[], object] = lambda: None,
    work: Callable[[], int] | None = None,
) -> ForkProcess:
    """A process that runs the command line, its output in a file. (Forking saves the seconds that importing takes.)

    `first` is called in it before. What runs is `work`, which gives the exit status, or else the command line.
    """
    output.touch()
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(work or partial(main, arguments), output, first)
    )
    process.start()
    return process


def _child(work: Callable[[], int], output: Path, first: Callable[[], object]) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    first()
    status = work()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def assert_interrupted(signum: signal.Signals, status: int | None, output: str) -> None:
    """The exit status of the contract, and a last line that says how to go on."""
    assert status == 128 + signum, output
    last = output.strip().splitlines()[-1]
    assert f"interrupted by {signum.name} " in last
    assert "the same command continues" in last
    assert "Traceback" not in output
