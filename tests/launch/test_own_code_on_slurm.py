"""Jobs on SLURM find a user's own modules, from whatever folder the sweep was submitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line_tools import QUICK
from slurm_tools import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

METHOD = """
from dataclasses import dataclass
from lottery.methods.imp import IMP

@dataclass
class Mine(IMP):
    pass
"""


def test_a_job_imports_the_module_beside_the_configs(slurm: Slurm, tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "own" / "method").mkdir(parents=True)
    elsewhere.mkdir()
    (project / "jobs_tickets.py").write_text(METHOD)
    (project / "own" / "method" / "mine.yaml").write_text("_target_: jobs_tickets.Mine\nrounds: 1\n")
    small = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=15")
    asked = ("-m", "hydra/launcher=slurm", *small, "--config-dir", str(project / "own"), "method=mine", *QUICK)
    slurm.lottery(*asked, "rewind.to=5it", "seed=0,1", cwd=elsewhere)
    runs = sorted((elsewhere / "runs" / "study").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert json.loads((run / "status.json").read_text())["state"] == "done"
        assert json.loads((run / "own_code.json").read_text()) == {"folders": [str(project)]}
