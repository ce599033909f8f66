"""A sweep over all presets whose masks move, killed twenty times at random moments, ends as an undisturbed one."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from real_processes import PATIENCE, Checkpoints, forked, wait_for

from lottery.__main__ import main
from lottery.ticket import Mask

PRESETS = ("acdc", "gmp", "granet", "issp", "itop", "mest", "progressive_nm", "rigl", "set", "srste")
KILLS = 20
# Checkpoints at steps with and without a move, so that kills come between two moves and at one.
SWEEP = (
    "-m", "train.steps=120it", "train.eval_every=60it", "train.checkpoint_steps=7", "controls.reinit=0",
    "tracker=none", "trainer=cpu", "trainer.progress=false", "trainer.threads=1", "trainer.workers=1",
)  # fmt: skip
OFTEN = {name: ["method.every=10it"] for name in PRESETS if name not in ("issp", "srste", "progressive_nm")}


def commands(runs: Path) -> list[list[str]]:
    return [[*SWEEP, f"+exp={name}", *OFTEN.get(name, []), "seed=0,1", f"paths.runs={runs}"] for name in PRESETS]


def sweep(runs: Path) -> int:
    return max(main(command) for command in commands(runs))


def record(runs: Path) -> dict[str, Any]:
    """What the studies found: rows, masks and trained states, but for how long it took."""
    tables = sorted(runs.glob("*/*/rounds.jsonl"))
    rows = {path.parent.parent.name + "/" + path.parent.name: path.read_text().splitlines() for path in tables}
    timed = ("seconds", "cached")
    states = [path for path in (runs / ".store").rglob("*.safetensors") if not path.name.startswith(".")]
    return {
        "rows": {
            name: [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]
            for name, lines in rows.items()
        },
        "states": {str(path.relative_to(runs)): content(path) for path in states},
    }


def content(path: Path) -> bytes | str:
    """A state's bytes; of a mask, whose header may be in another order, the digest."""
    return Mask.load(path).digest if path.name.startswith("mask") else path.read_bytes()


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    undisturbed, runs, output = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "output"
    assert sweep(undisturbed) == 0
    expected = record(undisturbed)
    assert len(expected["rows"]) == 2 * len(PRESETS)
    assert all(len(rows) == 3 for rows in expected["rows"].values())  # dense, moved, and its mask as a ticket

    chance, killed = random.Random(0), 0
    for _ in range(KILLS):
        checkpoints = Checkpoints(runs)
        process = forked([], output, work=lambda: sweep(runs))
        wait_for(lambda: checkpoints.written() or not process.is_alive())  # noqa: B023 - called before the next one
        time.sleep(chance.uniform(0.0, 0.5))
        process.kill()
        process.join(PATIENCE)
        killed += process.exitcode == -signal.SIGKILL
    assert killed == KILLS, output.read_text()
    assert sweep(runs) == 0
    assert record(runs) == expected
    assert not list(runs.rglob("checkpoint*"))
