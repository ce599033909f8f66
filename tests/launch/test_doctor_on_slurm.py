"""`lottery doctor` inside a job of a real SLURM: the cluster, its partitions, and the warning before the job's end."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line_tools import command
from slurm_tools import Slurm, wait_until


@pytest.mark.slurm
@pytest.mark.slow
def test_doctor_inside_a_job(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    words = " ".join(command(["doctor", "tracker=none", "train.checkpoint_minutes=30"]))
    script.write_text(f"#!/bin/bash\n#SBATCH --signal=USR2@300\n{words}; echo exit status $?\n")
    asked = ("--time=20", "--cpus-per-task=2", "--partition=low", f"--output={tmp_path / 'output'}")
    slurm.sbatch(*asked, str(script), cwd=tmp_path)
    path = tmp_path / "output"
    text = wait_until(lambda: path.exists() and "exit status" in path.read_text() and path.read_text(), "doctor's end")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for wanted in (
        "ok this job gets SIGUSR2 300 s before its end",
        "note this job less than train.checkpoint_minutes=30 is left of its time",
        "no problem found",
        "exit status 0",
    ):
        assert wanted in lines, text
    assert "SLURM grants 2 to a task" in text
    for start in ("ok scheduler SLURM 2", "ok partition main: 2 nodes, up", "ok partition low: 2 nodes, up"):
        assert any(line.startswith(start) for line in lines), text
    assert "its jobs may be preempted (requeue" in " ".join(text.split())
