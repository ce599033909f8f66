"""A user's own modules are found by the `lottery` script, from another folder or a run folder, and in jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line_tools import QUICK, Outcome, environment, spawn

METHOD = """
from dataclasses import dataclass
from lottery.methods.imp import IMP

@dataclass
class Mine(IMP):
    pass
"""
SCRIPT = "import sys; from lottery.__main__ import main; sys.exit(main())"  # what pip writes to bin/lottery


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A module in a folder of its own, its config beside it, and a second method inside of the folder of configs."""
    (tmp_path / "project" / "own" / "method").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for place, name in (("project", "beside"), ("project/own", "inside")):
        (tmp_path / place / f"{name}_tickets.py").write_text(METHOD)
        (tmp_path / f"project/own/method/{name}.yaml").write_text(f"_target_: {name}_tickets.Mine\nrounds: 1\n")
    return tmp_path / "project"


def script(*args: str, cwd: Path) -> Outcome:
    """The `lottery` script, which does not put the working directory on Python's path."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *args], cwd=cwd, env=environment(), capture_output=True, text=True
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_own_modules_are_found_wherever_the_command_is_given(project: Path) -> None:
    elsewhere = project.parent / "elsewhere"
    assert script("method._target_=beside_tickets.Mine", "--cfg", cwd=project).status == 0  # the current folder
    for name in ("beside", "inside"):
        found = script("--config-dir", str(project / "own"), f"method={name}", "--cfg", cwd=elsewhere)
        assert (found.status, found.err) == (0, "")
    lost = script("method._target_=beside_tickets.Mine", "--cfg", cwd=elsewhere)
    assert (lost.status, lost.line) == (
        2,
        "lottery: method._target_: cannot import 'beside_tickets.Mine': no module named 'beside_tickets' in the "
        "current folder, in --config-dir DIR, beside it or on PYTHONPATH; "
        "run from the module's folder, or PYTHONPATH=FOLDER",
    )


@pytest.mark.slow
def test_a_run_folder_remembers_where_own_code_was(project: Path) -> None:
    elsewhere = project.parent / "elsewhere"
    swept = ("-m", "hydra/launcher=local", "hydra.launcher.workers=1", "--config-dir", str(project / "own"))
    launched = spawn(*swept, *QUICK, "method=beside", cwd=elsewhere)  # a job finds the module too
    assert launched.status == 0, launched
    [run] = (elsewhere / "runs" / "study").iterdir()
    assert json.loads((run / "own_code.json").read_text()) == {"folders": [str(project)]}
    (elsewhere / "third").mkdir()
    again = script("--config", str(run / "config.yaml"), "--cfg", cwd=elsewhere / "third")
    assert (again.status, again.err) == (0, "")
    (run / "own_code.json").write_text('{"folders": 7}')
    assert "no module named 'beside_tickets'" in script("--config", str(run / "config.yaml"), cwd=elsewhere).line
