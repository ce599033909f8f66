"""Real processes, really killed: the same command, run again until it is done, ends where an undisturbed run ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lottery.__main__ import main
from lottery.ticket import Mask

ROOT = Path(__file__).parents[2]
STUDY = (
    "+exp=imp_rewind", "data=digits", "data.limit=400", "model.hidden=[30,20]", "optim.weight_decay=1e-3",
    "method.rounds=2", "train.steps=300it", "train.batch_size=50", "train.eval_every=50it", "rewind.to=70it",
    "train.checkpoint_steps=35", "controls.reinit=0", "tracker=none",
    "trainer=cpu", "trainer.progress=false", "trainer.threads=1",
)  # fmt: skip
TRAININGS = 1 + 2 * 2
PATIENCE = 300  # seconds, for a machine with many other things to do


def command(runs: Path) -> list[str]:
    return [*STUDY, f"paths.runs={runs}"]


def record(runs: Path) -> dict[str, Any]:
    """What the study found: rows, masks, curves and trained states, but for how long it took."""
    (folder,) = (runs / "imp_rewind").iterdir()
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    states = (runs / ".store").rglob("*.safetensors")
    return {
        "rows": [{key: value for key, value in row.items() if key not in ("seconds", "cached")} for row in rows],
        "masks": {path.name: Mask.load(path).digest for path in (folder / "masks").iterdir()},
        "curves": (folder / "curves.csv").read_text(),
        "states": {path.relative_to(runs): path.read_bytes() for path in states if path.name[0] != "."},
        "done": len(list((runs / ".store").rglob("DONE"))),
    }


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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


def child(arguments: list[str], output: Path) -> None:
    """What a forked process does: the command line, with its output in a file."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    status = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@pytest.mark.slow
def test_killed_until_it_is_done(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SIGKILL at random moments, SIGINT and SIGTERM. (Forked processes save the seconds that importing takes.)"""
    undisturbed, runs, output = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "output"
    assert main(command(undisturbed)) == 0
    expected = record(undisturbed)
    assert expected["done"] == TRAININGS
    fork = multiprocessing.get_context("fork").Process
    chance = random.Random(0)

    for number in (1, 1, 2, 3):
        process = fork(target=child, args=(command(runs), output))
        process.start()
        wait_for(lambda number=number: begun(runs) >= number)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL

    checkpoints = Checkpoints(runs)
    process = fork(target=child, args=(command(runs), output))
    process.start()
    wait_for(lambda: checkpoints.written() or not process.is_alive())
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(PATIENCE)
    assert_interrupted(signal.SIGINT, process.exitcode, output.read_text())

    checkpoints = Checkpoints(runs)
    with output.open("w") as file:
        real = subprocess.Popen([sys.executable, "-m", "lottery", *command(runs)], cwd=ROOT, stdout=file, stderr=file)
    wait_for(lambda: checkpoints.written() or real.poll() is not None)
    real.terminate()
    real.wait(PATIENCE)
    assert_interrupted(signal.SIGTERM, real.returncode, output.read_text())

    capfd.readouterr()
    assert main(command(runs)) == 0
    assert capfd.readouterr().err == ""
    assert record(runs) == expected
    assert not list(runs.rglob("checkpoint*"))


def assert_interrupted(signum: signal.Signals, status: int | None, output: str) -> None:
    """The exit status of the contract, and a last line that says how to go on."""
    assert status == 128 + signum, output
    last = output.strip().splitlines()[-1]
    assert f"interrupted by {signum.name} " in last
    assert "the same command continues" in last
    assert "Traceback" not in output
