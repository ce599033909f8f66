"""A sweep: W&B's own agent against a server on loopback starts studies, and each is a run of the sweep."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_server import serving

from lottery.tracking.wandb_log import Recorded, recorded

ANALYSIS = Path(__file__).parents[2] / "docs" / "analysis.md"
SMALL = ["method.rounds=1", "controls=none", "train.steps=20it", "train.eval_every=10it", "rewind.to=0it"]


def documented() -> dict[str, Any]:
    """The sweep.yaml of docs/analysis.md."""
    (text,) = re.findall(r"```yaml\n(# sweep.yaml.*?)```", ANALYSIS.read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(text)


def test_the_documented_sweep_is_of_options_that_a_study_has() -> None:
    from lottery.compose import composed

    sweep = documented()
    values = {name: option.get("value", option.get("values", [option.get("min")])[0]) for name, option in
              sweep["parameters"].items()}  # fmt: skip
    fixed = [word for word in sweep["command"] if "=" in word]
    cfg = composed([*fixed, *(f"{name}={value}" for name, value in values.items())])
    assert cfg.tracker.name == "wandb"
    assert sweep["command"][-1] == "${args_no_hyphens}"


def test_a_trial_has_not_what_another_trial_of_the_same_options_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = {"size": 1, "entity": "me", "project": "theirs", "items": ["a"], "exit": 0}
    (tmp_path / "recorded.json").write_text(json.dumps({"run-20260101_000000-trial0": log}))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    for trial, known in (("trial0", Recorded({"a"}, finished=True)), ("trial1", Recorded())):
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        assert recorded(tmp_path, "0123456789ab", "lottery", None) == known


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_agent_runs_studies_and_each_is_a_run_of_its_sweep(home: Path, tmp_path: Path) -> None:
    """Also the second trial of the same options, which finds the study on record: it has all its rows too."""
    sweep = documented()
    command = [*(sys.executable if word == "python" else word for word in sweep["command"][:-1]), *SMALL]
    command += [f"paths.runs={tmp_path / 'runs'}", sweep["command"][-1]]
    with serving() as server:
        server.sweep = sweep | {"command": command}
        server.trials = [
            {"type": "run", "run_id": name, "program": "lottery", "args": {"method.rate": {"value": 0.5}}}
            for name in ("trial0", "trial1")
        ]
        environment = os.environ | {
            "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            environment.pop(name, None)
        agent = [sys.executable, "-m", "wandb", "agent", "me/lottery/sweep1"]
        done = subprocess.run(agent, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
        rows = {name: [row for row in found if "round/test_accuracy" in row] for name, found in server.rows.items()}
        assert sorted(rows) == ["trial0", "trial1"], done.stdout + done.stderr
        densities = {name: [round(row["round/density"], 2) for row in found] for name, found in rows.items()}
        assert densities == {name: [1, 0.5] for name in rows}
        assert server.swept == dict.fromkeys(rows, "sweep1")
        assert server.exits == dict.fromkeys(rows, 0)
    folders = sorted((tmp_path / "runs" / "imp_rewind").glob("*/status.json"))
    assert [json.loads(path.read_text())["state"] for path in folders] == ["done"]
