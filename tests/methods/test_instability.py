"""The instability analysis: IMP from several rewind points of one dense run (Frankle et al. 2020)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line_tools import call
from training_tools import SMALL, Start

from lottery.compose import composed
from lottery.errors import LotteryError
from lottery.figures.rewinding import rewind
from lottery.methods.imp import IMP
from lottery.methods.instability import Instability
from lottery.record.run import Run
from lottery.record.table import load_runs
from lottery.stages.lab import Lab
from lottery.study import Study

MakeLab = Callable[..., Lab]


def test_tickets_are_those_of_imp_with_that_rewind_point(make_lab: MakeLab, starts: list[Start]) -> None:
    """The same trainings by their keys; what is not measured is on the way, so that gc knows of it."""
    lab = make_lab()
    found = list(Instability(points=["7it", "init"], measured=[0, 2], rate=0.3)(lab))
    assert [(round.index, round.rewound) for round in found] == [(0, None), (1, 0), (2, 0), (3, 7), (4, 7)]
    trained = len(starts)
    for to, ticket in (("init", found[2]), ("7it", found[4])):
        same = make_lab(f"rewind.to={to}")
        rounds = list(IMP(rounds=2, rate=0.3)(same))
        assert rounds[2].trained.key == ticket.trained.key
        assert ticket.way == (rounds[1].trained.key,)
    assert len(starts) == trained
    assert found[1].trained.key == found[0].trained.key, "from step 0 the dense network is the dense run itself"
    assert found[3].trained.key != found[0].trained.key
    assert found[3].mask == lab.initial.mask


def test_points_that_a_finished_dense_run_did_not_keep_are_filled_in(make_lab: MakeLab) -> None:
    """By another study, say; and the trainings are the same."""
    lab = make_lab()
    dense = lab.train(lab.initial)
    assert 7 not in dense.kept
    filled, ticket = Instability(points=["7it"], measured=[1], rate=0.3)(lab)
    assert filled.trained.key == dense.key
    assert filled.trained.state == dense.state
    other = make_lab(runs="fresh")
    _, same = Instability(points=["7it"], measured=[1], rate=0.3)(other)
    assert same.trained.state == ticket.trained.state


def test_momentum_that_is_carried_on_is_kept(make_lab: MakeLab) -> None:
    lab = make_lab("optim=momentum", "rewind.optimizer=keep")
    *_, ticket = Instability(points=["7it"], measured=[2], rate=0.3)(lab)
    assert ticket.ticket.optimizer is not None


def study_of(tmp_path: Path, *overrides: str) -> Study:
    small = [override for override in SMALL if not override.startswith(("method.", "probes="))]
    method = ["method=instability", "method.points=[init,7it]", "method.measured=[0,1]", "method.rate=0.3"]
    probes = ["probes=[light,connectivity]", "probes.connectivity.points=3"]
    return Study(composed([*small, *method, *probes, "controls.random=1", f"paths.runs={tmp_path}", *overrides]))


@pytest.mark.slow
def test_a_study_gives_the_papers_figure(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    rows = study.run()
    assert [(row["round"], row["control"], row["step_rewind"]) for row in rows] == [
        (0, None, 0), (1, None, 0), (2, None, 0), (2, "random", 0), (3, None, 7), (4, None, 7), (4, "random", 7),
    ]  # fmt: skip
    assert all(row["probe/lmc_error_test"] >= 0 for row in rows)
    assert rows[5]["probe/mask_iou_previous"] == pytest.approx(rows[5]["density"]), "with the full mask of its point"
    assert {path.name for path in (study.folder.path / "figures").iterdir()} == {
        "instability.png", "layer_density.png", "lmc.png",
    }  # fmt: skip
    other = study_of(tmp_path, "seed=1")
    other.run()
    drawn, *_ = rewind(load_runs([study.folder.path, other.folder.path]), tmp_path / "out" / "instability")
    assert drawn.read_bytes()[:4] == b"\x89PNG"
    gone = call("store", "gc", "--store", str(tmp_path / ".store"), "--runs", str(tmp_path), "--yes")
    assert "removed 0 stages" in gone.out
    assert study_of(tmp_path).run() == rows


@pytest.mark.slow
def test_without_barriers_there_is_no_figure(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    study.run()
    table = study.folder.path / "rounds.jsonl"
    rows = [{k: v for k, v in row.items() if "lmc" not in k} for row in Run(study.folder.path).rows]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (study.folder.path / "manifest.json").unlink()
    with pytest.raises(LotteryError, match=r"probe/lmc_error_test: not measured .* probes=\[light,connectivity\]"):
        rewind(load_runs([study.folder.path]), tmp_path / "instability")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.points=[]"], "method.points: got []"),
        (["method.points=[5000it]"], "method.points: got '5000it', expected a step of the dense training"),
        (["method.points=[soon]"], "method.points: got 'soon'"),
        (["rewind=lr"], "rewind.weights: got 'keep', expected rewind: its tickets start from method.points"),
        (["rewind.weights=reset"], "rewind.weights: got 'reset', expected rewind"),
        (["method.measured=[]"], "method.measured: got []"),
        (["method.measured=[-1]"], "method.measured: got [-1]"),
        (["method.rate=1.5"], "method.rate: got 1.5"),
    ],
)
def test_a_wrong_option_is_one_line(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("method=instability", "train.steps=20it", "tracker=none", *overrides)
    assert outcome.status == 2, outcome
    assert message in outcome.line
    assert not any(tmp_path.iterdir())
