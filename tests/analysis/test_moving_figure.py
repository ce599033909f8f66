"""moving.png, and what W&B is told of a mask that moves: both from the details of its round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line_tools import call
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lottery.figures import moving
from lottery.figures.study import draw_study
from lottery.record.run import Run
from lottery.record.table import load_runs
from lottery.tracking.items import MORE, moving_rows

STUDY = ("train.steps=100it", "train.eval_every=50it", "method.every=20it", "controls=none", "tracker=none",
         "trainer.workers=1", "trainer.progress=false")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of SET, and one of gradual pruning."""
    folder = tmp_path_factory.mktemp("moving") / "runs"
    for name, seeds in (("set", "0,1"), ("gmp", "0")):
        sweep = ("-m",) if "," in seeds else ()
        assert call(*sweep, f"+exp={name}", *STUDY, f"seed={seeds}", f"paths.runs={folder}").status == 0
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as matplotlib holds them."""
    kept: list[Figure] = []
    legend = moving.legend

    def keeping(panels: Any, *others: Any) -> None:
        kept.append(panels[0].figure)
        legend(panels, *others)

    monkeypatch.setattr(moving, "legend", keeping)
    return kept


def lines(axes: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}


def test_one_study_has_its_layers_and_the_expected_share(runs: Path, drawn: list[Figure]) -> None:
    run = next(folder for folder in (runs / "gmp").iterdir() if folder.is_dir())
    assert "moving.png" in {path.name for path in draw_study(run, only=["moving"])}
    left, right = drawn[0].axes
    course = Run(run).details(1)["moving"]
    assert [point["step"] for point in course] == [0, 50, 100]
    assert list(lines(left)) == ["fc1", "fc2", "output"]
    for name, values in lines(left).items():
        assert values == pytest.approx([100 * point["layer_density"][f"{name}.weight"] for point in course])
        assert values[0] == 100
        assert values[-1] == pytest.approx(10, abs=0.1)
    assert lines(right) == {"explored (n = 1)": [100, 100, 100]}


def test_several_studies_are_means_beside_what_is_expected(runs: Path, drawn: list[Figure]) -> None:
    paths = moving.moving(load_runs(runs / "set"), runs / "set_figure")
    assert [path.suffix for path in paths] == [".png", ".svg", ".pdf"]
    left, right = drawn[0].axes
    assert list(lines(left).values()) == [pytest.approx([10, 10, 10], abs=1e-6)]
    (own, expected) = lines(right).values()
    assert list(lines(right)) == ["explored (n = 2)", "expected of growth at random"]
    assert own == pytest.approx(expected, abs=1)
    assert own[0] == pytest.approx(10)
    assert 12 < own[1] < own[2]


def test_where_no_mask_moves_there_is_no_figure(runs: Path) -> None:
    frame = load_runs(runs / "set")
    with pytest.raises(moving.NothingToDraw, match="a method whose mask moves"):
        moving.moving(frame.drop(columns="probe/explored"), runs / "none")


def test_wandb_has_the_course(runs: Path) -> None:
    run = next(folder for folder in sorted((runs / "set").iterdir()) if (folder / "rounds.jsonl").exists())
    dense, moved = Run(run).rows
    assert moving_rows(run, dense) == []
    first, *_, last = moving_rows(run, moved)
    assert first["moving/step"] == 0
    assert last["moving/explored"] == moved["probe/explored"]
    assert last["moving/density"] == moved["density"]
    layers = {
        name.rpartition("/")[2]: value for name, value in last.items() if name.startswith(f"{MORE}moving/density/")
    }
    assert layers == moved["layer_density"]
