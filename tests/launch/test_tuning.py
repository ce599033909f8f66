"""`-m hydra/sweeper=optuna`: studies that Optuna asks for, scored by their last ticket; joblib as another launcher."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from command_line_tools import call, command, environment

from lottery import tuning

SHORT = ("method.rounds=1", "train.steps=40it", "train.eval_every=20it", "rewind.to=10it", "controls=none",
         "tracker=none", "trainer.workers=1")  # fmt: skip
OPTUNA = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1", "+exp=imp_rewind")


def tickets(runs: Path) -> dict[str, dict[str, float]]:
    """The last row of each study, by its folder's name."""
    tables = runs.glob("imp_rewind/*/rounds.jsonl")
    return {path.parent.name: json.loads(path.read_text().splitlines()[-1]) for path in tables}


@pytest.mark.slow
def test_optuna_chooses_and_the_best_is_named(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    runs = tmp_path / "runs"
    done = call(*OPTUNA, "method.rate=interval(0.1,0.9)", *SHORT, f"paths.runs={runs}")
    assert done.status == 0
    found = tickets(runs)
    assert len(found) == 3
    best = max(row["val_accuracy"] for row in found.values())
    assert f"{100 * best:.2f} % (validation accuracy of the last ticket)" in done.out
    assert "best of 3 studies: method.rate=" in done.out
    (results,) = runs.glob(".sweeps/*/optimization_results.yaml")
    told = yaml.safe_load(results.read_text())
    assert told["best_value"] == best
    assert 0.1 <= told["best_params"]["method.rate"] <= 0.9
    assert not (tmp_path / "multirun").exists()


@pytest.mark.slow
def test_a_study_that_fails_has_no_score(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    wrong = call(*OPTUNA, "method.rate=choice(2,3)", *SHORT, f"paths.runs={tmp_path / 'runs'}")
    assert wrong.status == 2
    assert ": method.rate: got " in wrong.err
    assert "expected a fraction between 0 and 1" in wrong.err


@pytest.mark.slow
def test_joblib_runs_the_studies_of_a_sweep(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    runs = tmp_path / "runs"
    sweep = ["-m", "hydra/launcher=joblib", "+exp=imp_rewind", "seed=0,1", *SHORT, f"paths.runs={runs}"]
    done = subprocess.run(command(sweep), cwd=tmp_path, env=environment(), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(tickets(runs)) == 2
    assert not (tmp_path / "multirun").exists()


def test_without_the_package_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "find_spec", lambda name: None if name == tuning.PLUGIN else find_spec(name))
    done = call(*OPTUNA, "method.rate=interval(0.1,0.9)", f"paths.runs={tmp_path / 'runs'}")
    assert done.status == 2
    assert done.line == "lottery: hydra/sweeper=optuna: the package is missing: pip install hydra-optuna-sweeper"
    assert not (tmp_path / "runs").exists()


def test_another_sweeper_is_one_line(tmp_path: Path) -> None:
    done = call("-m", "hydra/sweeper=ax", "+exp=imp_rewind", f"paths.runs={tmp_path / 'runs'}")
    assert done.status == 2
    assert "hydra/sweeper=ax: only Hydra's own sweeper and optuna" in done.line
