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
    "+exp=imp_rewind", "data=digits", "data.limit=400", "model.hidden=[30,20]", "method.rounds=2", "train.steps=500it",
    "train.batch_size=50", "train.eval_every=50it", "train.checkpoint_steps=30", "rewind.to=70it", "tracker=none",
    "trainer=cpu", "trainer.progress=false", "trainer.threads=1", "optim.weight_decay=1e-3",
)  # fmt: skip
TRAININGS = 1 + 2 * 3
PATIENCE = 300  # seconds, for a machine with many other things to do


def command(runs: Path) -> list[str]:
    return [*STUDY, f"paths.runs={runs}"]


def record(runs: Path) -> dict[str, Any]:
    """What the study found: rows, masks and trained states, but for how long it took."""
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


def finished(runs: Path) -> int:
    return len(list((runs / ".store").glob("train/*/DONE")))


@pytest.mark.slow
def test_killed_until_it_is_done(tmp_path: Path) -> None:
    """SIGKILL at random moments in forked processes, then SIGTERM, SIGINT and the end in `python -m lottery`."""
    undisturbed, runs = tmp_path / "undisturbed", tmp_path / "killed"
    assert main(command(undisturbed)) == 0
    expected = record(undisturbed)
    assert expected["done"] == TRAININGS

    chance = random.Random(0)
    for number in (1, 1, 2, 2, 3):
        process = multiprocessing.get_context("fork").Process(target=main, args=(command(runs),))
        process.start()
        wait_for(lambda number=number: begun(runs) >= number or not process.is_alive())  # type: ignore[misc] # noqa: B023
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL

    for signum, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = finished(runs)
        assert before < TRAININGS
        output, exit_status = interrupted(runs, signum)
        assert exit_status == status, output
        last = output.strip().splitlines()[-1]
        assert f"interrupted by {signum.name} " in last
        assert "the same command continues" in last
        assert "Traceback" not in output
        assert finished(runs) >= before

    finish = subprocess.run(
        [sys.executable, "-m", "lottery", *command(runs)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert finish.returncode == 0, finish.stderr
    assert finish.stderr == ""
    assert record(runs) == expected
    assert not list(runs.rglob("checkpoint*"))


def interrupted(runs: Path, signum: signal.Signals) -> tuple[str, int]:
    """Run the command, send the signal once a checkpoint shows that a training is under way, and wait for the end."""
    seen = {path: path.stat().st_mtime_ns for path in runs.rglob("checkpoint.safetensors")}
    process = subprocess.Popen(
        [sys.executable, "-m", "lottery", *command(runs)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip

    def training() -> bool:
        found = {path: path.stat().st_mtime_ns for path in runs.rglob("checkpoint.safetensors")}
        return bool(found.keys() - seen.keys()) or any(found[path] != seen[path] for path in found)

    wait_for(lambda: _quietly(training) or process.poll() is not None)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=PATIENCE)
    return output, process.returncode


def _quietly(look: Callable[[], bool]) -> bool:
    """False where a file went away while it was looked at."""
    try:
        return look()
    except FileNotFoundError:
        return False
