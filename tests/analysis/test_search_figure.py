"""search.png, and what W&B is told of a search: both from search.csv alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lottery.analysis.search import draw_search, read_search
from lottery.tracking.rows import search_rows

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
def run(tmp_path: Path) -> Path:
    """Two searches of three entries each, the first without a training loss and swaps at its start."""
    with (tmp_path / "search.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "score_bin_01", "score_bin_02"])
        for number in (1, 2):
            for step in (0, 5, 10):
                later = [0.5 - step / 100, 7.0 * number] if step else ["", ""]
                writer.writerow([number, step, later[0], 0.4, 0.9, later[1], 0.5, 0.0, 1.0, 30, 12])
    return tmp_path


def test_the_first_search_is_drawn(run: Path) -> None:
    assert draw_search(run, "a study", run / "search.png")
    assert (run / "search.png").read_bytes()[:4] == b"\x89PNG"
    assert [entry["swaps"] for entry in read_search(run)] == [None, 7.0, 7.0, None, 14.0, 14.0]


def test_without_a_search_nothing_is_drawn(tmp_path: Path) -> None:
    assert not draw_search(tmp_path, "a study", tmp_path / "search.png")
    assert not (tmp_path / "search.png").exists()


def test_scores_that_are_all_equal_are_drawn(run: Path) -> None:
    text = (run / "search.csv").read_text().replace("0.0,1.0", "1.0,1.0")
    (run / "search.csv").write_text(text)
    assert draw_search(run, "a study", run / "search.png")


def test_a_round_has_its_own_rows_and_leaves_out_what_was_not_measured(run: Path, tmp_path: Path) -> None:
    rows = search_rows(run / "search.csv", 2)
    assert [row["search/step"] for row in rows] == [0, 5, 10]
    assert "search/swaps" not in rows[0]
    assert rows[1]["search/swaps"] == 14
    assert rows[1]["search/score_bin_01"] == 30
    assert search_rows(tmp_path / "none.csv", 1) == []
