"""`slurm/ddp.sbatch` over two nodes of a real SLURM: one study, one writer; queued again, it ends in the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line_tools import ROOT
from slurm_tools import TRAININGS, SlowStudy, Slurm, undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ON_CPU = "trainer.accelerator=cpu"


def test_two_nodes_train_one_study(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requeued in mid-training. Undisturbed is the same study by two processes on this machine."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    expected = undisturbed(tmp_path / "here", "trainer=ddp", ON_CPU)
    study = SlowStudy(slurm, tmp_path / "two_nodes", seconds=0.1)
    options = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=1G")
    # The nodes' names have no address on a machine that plays both of them.
    env = {**study.env, "MASTER_ADDR": "127.0.0.1"}
    arguments = [override for override in study.overrides if override != "trainer=cpu"]
    script = str(ROOT / "slurm" / "ddp.sbatch")
    job = slurm.sbatch(*options, script, *arguments, ON_CPU, cwd=study.folder, **env)
    study.struck(job, lambda: slurm.scontrol("requeue", job))
    found: dict[str, Any] = study.end(job)
    log = slurm.log(job)
    assert found == expected, log
    assert found["trainings"] == TRAININGS
    assert log.count("interrupted by SIGTERM at step") == 1, log  # by rank 0 alone
    assert log.count("continue training") == 1, log
    assert log.count("rows, masks, curves and figures in") == 1, log
