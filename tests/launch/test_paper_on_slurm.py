"""A paper's sweep as SLURM jobs: what is missing is run, a job a study; then the figures are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line_tools import QUICK
from slurm_tools import Slurm

from lottery.launch.record import Sweep

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_job_a_study_and_then_the_figures(slurm: Slurm, tmp_path: Path) -> None:
    path = tmp_path / "tiny" / "sweep.yaml"
    path.parent.mkdir()
    values = {
        "title": "A tiny paper",
        "source": {"authors": "Nobody", "venue": "nowhere"},
        "about": "Two seeds.",
        "runs": [{"name": "imp", "label": "IMP", "overrides": ["+exp=imp_rewind", "rewind=init", "controls=none"]}],
        "scales": {"smoke": {"cost": "seconds", "overrides": [*QUICK[1:], "seed=0,1"]}},
        "figures": [{"name": "accuracy", "plot": "accuracy", "runs": ["imp"]}],
    }
    path.write_text(yaml.safe_dump(values))
    asked = ("paper", str(path), "--scale", "smoke", "--launcher", "slurm")
    settings = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=15")
    out = slurm.lottery(*asked, *settings, cwd=tmp_path)
    [sweep] = (tmp_path / "runs" / ".sweeps").iterdir()
    jobs = Sweep.read(sweep).jobs
    studies = sorted((tmp_path / "runs" / "tiny").iterdir())
    assert len(studies) == 2
    assert len({job.job for job in jobs}) == 2
    assert all(json.loads((study / "status.json").read_text())["state"] == "done" for study in studies)
    figures = tmp_path / "runs" / "papers" / "tiny" / "smoke" / "figures"
    drawn = [f"accuracy.{kind}" for kind in ("pdf", "png", "svg")]
    assert sorted(made.name for made in figures.iterdir()) == [*drawn, "summary.csv"]
    assert "2 studies, 0 of them done" in out
    again = slurm.lottery(*asked, *settings, cwd=tmp_path)
    assert "2 studies, 2 of them done" in again
    assert [sweep] == list((tmp_path / "runs" / ".sweeps").iterdir()), "nothing was submitted again"
