"""The CSV tracker: the table as a spreadsheet reads it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from lottery.config import Config, Tracker
from lottery.tracking.trackers import CsvTracker, NoTracker, make_tracker


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tracker_of(study: Any, name: str = "csv") -> Any:
    return make_tracker(Config(tracker=Tracker(name=name)), "0123456789ab", study.folder)


def test_a_line_a_row_with_a_column_a_layer(study: Any) -> None:
    tracker = tracker_of(study)
    assert isinstance(tracker, CsvTracker)
    tracker.start("")
    for index in range(3):
        tracker.round(study.row(index), study.curve(index), study.mask_path(index))
        assert len(read(study.folder / "rounds.csv")) == index + 1, "the file is whole after every round"
    tracker.round(study.row(2, "reinit", 1), [], study.mask_path(2))
    tracker.figure(study.folder / "any.png")
    tracker.close("finished")
    table = read(study.folder / "rounds.csv")
    assert [(row["round"], row["control"], row["copy"]) for row in table] == [
        ("0", "", "0"),
        ("1", "", "0"),
        ("2", "", "0"),
        ("2", "reinit", "1"),
    ]
    assert [float(row["density/layer1.0.conv.weight"]) for row in table] == [1.0, 0.5, 0.25, 0.25]
    assert [float(row["density"]) for row in table[:3]] == [mask.density for mask in study.masks]
    assert {row["val_loss"] for row in table} == {""}


def test_collapsed_layers_stand_in_one_cell(study: Any) -> None:
    tracker = tracker_of(study)
    tracker.round(study.row(0), [], study.mask_path(0))
    tracker.round(study.row(1, collapsed_layers=["conv, 1", "fc"]), [], study.mask_path(1))
    assert [row["collapsed_layers"] for row in read(study.folder / "rounds.csv")] == ["", "conv, 1 fc"]


def test_a_figure_known_only_later_gets_a_column(study: Any) -> None:
    tracker = tracker_of(study)
    tracker.round(study.row(0), [], study.mask_path(0))
    layers = {"probe/pq": {"fc1": 0.5, "fc2": None}}
    tracker.round(study.row(1) | {"probe/distance": 0.25} | layers, [], study.mask_path(1))
    table = read(study.folder / "rounds.csv")
    assert [row["probe/distance"] for row in table] == ["", "0.25"]
    assert [(row["probe/pq/fc1"], row["probe/pq/fc2"]) for row in table] == [("", ""), ("0.5", "")]


def test_none_writes_nothing(study: Any) -> None:
    before = sorted(study.folder.rglob("*"))
    tracker = tracker_of(study, "none")
    assert type(tracker) is NoTracker
    tracker.start("")
    tracker.round(study.row(0), study.curve(0), study.mask_path(0))
    tracker.figure(study.folder / "any.png")
    tracker.close("finished")
    assert sorted(study.folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["none", "csv"])
def test_the_other_trackers_import_no_wandb(name: str) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from lottery.config import Config, Tracker;"
        "from lottery.tracking.trackers import make_tracker;"
        f"make_tracker(Config(tracker=Tracker(name={name!r})), 'k', Path('.'));"
        "sys.exit('wandb' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
