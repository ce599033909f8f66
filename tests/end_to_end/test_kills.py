"""Real processes, really killed: the same command, run again until it is done, ends where an undisturbed run ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_processes import (
    PATIENCE,
    TRAININGS,
    Checkpoints,
    assert_interrupted,
    command,
    forked,
    record,
    rows,
    wait_for,
)  # fmt: skip

from lottery.__main__ import main

ROOT = Path(__file__).parents[2]
KILLS = 20


@pytest.mark.slow
def test_killed_until_it_is_done(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Twenty SIGKILLs at random moments of whatever round it has come to, then SIGINT, SIGUSR2, SIGHUP and SIGTERM."""
    # Trainings so long that no process is done before it is killed, on a busy machine either.
    often = ("train.checkpoint_steps=5", "train.steps=900it", "train.eval_every=150it")
    undisturbed, runs, output = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "output"
    assert main(command(undisturbed, *often)) == 0
    expected = record(undisturbed)
    assert expected["done"] == TRAININGS
    chance, finished = random.Random(0), 0

    for _ in range(KILLS):
        checkpoints = Checkpoints(runs)
        process = forked(command(runs, *often), output)
        wait_for(lambda: checkpoints.written() or not process.is_alive())  # noqa: B023 - called before the next one
        time.sleep(chance.uniform(0.0, 0.06))
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL, output.read_text()
        if (runs / "imp_rewind").exists():
            known = rows(runs) if list((runs / "imp_rewind").glob("*/rounds.jsonl")) else []
            assert len(known) >= finished, "a finished round was lost"
            finished = len(known)

    for signum in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
        checkpoints = Checkpoints(runs)
        process = forked(command(runs, *often), output)
        wait_for(lambda: checkpoints.written() or not process.is_alive())  # noqa: B023
        os.kill(process.pid or 0, signum)
        process.join(PATIENCE)
        assert_interrupted(signum, process.exitcode, output.read_text())

    checkpoints = Checkpoints(runs)
    with output.open("w") as file:
        real = subprocess.Popen(
            [sys.executable, "-m", "lottery", *command(runs, *often)], cwd=ROOT, stdout=file, stderr=file
        )
    wait_for(lambda: checkpoints.written() or real.poll() is not None)
    real.terminate()
    real.wait(PATIENCE)
    assert_interrupted(signal.SIGTERM, real.returncode, output.read_text())

    capfd.readouterr()
    assert main(command(runs, *often)) == 0
    assert capfd.readouterr().err == ""
    assert record(runs) == expected
    assert not list(runs.rglob("checkpoint*"))
    assert not list(runs.rglob(".lease*"))
