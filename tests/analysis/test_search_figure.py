"""search.png, and what W&B is told of a search: both from search.csv alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from matplotlib.figure import Figure

from lottery.figures import searches
from lottery.figures.study import draw_study
from lottery.record.run import Run
from lottery.record.table import load_runs
from lottery.tracking.items import search_rows

COLUMNS = [
    "round",
    "step",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "swaps",
    "magnitude_iou",
    "score_low",
    "score_high",
]


@pytest.fixture
def run(make_run: Callable[..., Path], row: Callable[..., Any]) -> Path:
    """Two searches of three entries each, the first without a training loss and swaps at its start."""
    folder = make_run("a", [row(0), row(1, search_steps=10), row(2, search_steps=10)])
    with (folder / "search.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "score_bin_01", "score_bin_02"])
        for number in (1, 2):
            for step in (0, 5, 10):
                later = [0.5 - step / 100, 7.0 * number] if step else ["", ""]
                writer.writerow([number, step, later[0], 0.4, 0.9, later[1], 0.5, 0.0, 1.0, 30, 12])
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as matplotlib holds them."""
    kept: list[Figure] = []
    legend = searches.legend

    def keeping(panels: Any, *others: Any) -> None:
        kept.append(panels[0].figure)
        legend(panels, *others)

    monkeypatch.setattr(searches, "legend", keeping)
    return kept


def test_the_first_search_is_drawn(run: Path, drawn: list[Figure]) -> None:
    assert "search.png" in {path.name for path in draw_study(run)}
    assert (run / "figures" / "search.png").read_bytes()[:4] == b"\x89PNG"
    assert [entry["swaps"] for entry in Run(run).search] == [None, 7.0, 7.0, None, 14.0, 14.0]
    error, swaps, overlap, scores = drawn[0].axes
    assert list(error.lines[0].get_ydata()) == pytest.approx([10, 10, 10])
    assert list(swaps.lines[0].get_ydata()) == [7, 7]
    assert list(overlap.lines[0].get_ydata()) == [0.5] * 3
    assert len(scores.collections) == 3, "a histogram an entry"
    assert scores.get_ylim() == (0, 1)


def test_several_studies_have_no_histograms_of_scores(run: Path, drawn: list[Figure]) -> None:
    other = run.with_name("b")
    copytree(run, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace('"seed": 0', '"seed": 1').replace('"init": 0', '"init": 1'))
    searches.search(load_runs([run, other]), run / "both")
    assert len(drawn[0].axes) == 3


def test_without_a_search_nothing_is_drawn(make_run: Callable[..., Path], row: Callable[..., Any]) -> None:
    assert "search.png" not in {path.name for path in draw_study(make_run("a", [row(0), row(1)]))}


def test_scores_that_are_all_equal_are_drawn(run: Path) -> None:
    text = (run / "search.csv").read_text().replace("0.0,1.0", "1.0,1.0")
    (run / "search.csv").write_text(text)
    assert "search.png" in {path.name for path in draw_study(run)}


def test_a_search_in_which_nothing_is_swapped_is_drawn_without_a_warning(run: Path, recwarn: Any) -> None:
    text = (run / "search.csv").read_text().replace(",7.0,", ",0.0,")
    (run / "search.csv").write_text(text)
    assert "search.png" in {path.name for path in draw_study(run)}
    assert not [warning for warning in recwarn if "identical" in str(warning.message)]


def test_a_mask_that_was_not_tuned_has_no_early_stop_figure(
    make_run: Callable[..., Path], row: Callable[..., Any]
) -> None:
    """It was not trained, so its step 0 is no step at which it was best."""
    untuned = make_run("untuned", [row(0), *(row(k, steps=0, early_stop_step=0) for k in (1, 2))])
    names = {path.name for path in draw_study(untuned)}
    assert "accuracy.png" in names
    assert "early_stop.png" not in names
    tuned = make_run("tuned", [row(0), *(row(k, steps=500, early_stop_step=300) for k in (1, 2))])
    assert "early_stop.png" in {path.name for path in draw_study(tuned)}


def test_a_round_has_its_own_rows_and_leaves_out_what_was_not_measured(run: Path, tmp_path: Path) -> None:
    rows = search_rows(run, 2)
    assert [row["search/step"] for row in rows] == [0, 5, 10]
    assert "search/swaps" not in rows[0]
    assert rows[1]["search/swaps"] == 14
    assert rows[1]["more/search/score_bin_01"] == 30
    assert search_rows(tmp_path, 1) == []
