"""README's sweep on SLURM runs, and its status command shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line_tools import QUICK, ROOT
from slurm_tools import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_the_sweep_of_the_readme(slurm: Slurm, tmp_path: Path) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (sweep,) = [line for line in lines if line.startswith("python -m lottery") and "hydra/launcher=slurm" in line]
    small = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=15")
    slurm.lottery(*sweep.split()[3:], *QUICK, "rewind.to=5it", *small, cwd=tmp_path)
    assert "python -m lottery status latest" in lines
    shown = slurm.lottery("status", "latest", cwd=tmp_path)
    assert "3 studies: 3 done" in shown
