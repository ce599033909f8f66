"""The closing line of a study, and the table and the figure over seeds after a sweep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line_tools import SLOW_IMPORTS, environment
from report_tools import make_row, write_run, write_study

from lottery.analysis import seeds
from lottery.analysis.seeds import seed_lines
from lottery.analysis.statistics import matching
from lottery.analysis.verdict import MARGIN, Level, levels, network, verdict
from lottery.record.table import load_runs

IMP = "lottery.methods.imp.IMP"


def study(*tickets: float, **controls: list[float]) -> list[dict[str, Any]]:
    """Rows of a study, round k at 0.8 ** k of the weights; of a control two copies a round, around the given number."""
    rows = [make_row(k, test_accuracy=test, density=0.8**k) for k, test in enumerate(tickets)]
    for name, found in controls.items():
        for k, test in enumerate(found, 1):
            spread = enumerate((test - 0.01, test + 0.01))
            rows += [make_row(k, name, copy, test_accuracy=each, density=0.8**k) for copy, each in spread]
    return rows


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            study(0.9, 0.91, 0.92, 0.9, reinit=[0.9, 0.7, 0.6], random=[0.8, 0.8, 0.8], shuffle=[0.1, 0.1, 0.1]),
            "within 1 point of the dense network down to 51.2 % (n = 1: no interval); reinit down to 80 %; "
            "random, shuffle at no density",
        ),
        (
            study(0.9, 0.88, 0.92, 0.8),
            "within 1 point of the dense network down to 64 %, but not at 80 % (n = 1: no interval)",
        ),
        (
            study(0.9, 0.8, 0.8, 0.8, 0.8, 0.9),
            "within 1 point of the dense network down to 32.8 %, but not at 4 denser levels (n = 1: no interval)",
        ),
        (
            study(0.9, 0.7, 0.885, 0.8),
            "no ticket is within 1 point of the dense network, the nearest is 1.5 points below at 64 % "
            "(n = 1: no interval)",
        ),
        (study(0.9), ""),
        (study(0.9, 0.9)[1:], ""),  # without the dense network
        ([make_row(0), make_row(1)], ""),  # without a test accuracy
    ],
)
def test_the_verdict_on_a_study(rows: list[dict[str, Any]], expected: str) -> None:
    assert verdict(levels(rows, IMP)) == expected


def test_several_ladders_have_no_verdict() -> None:
    assert levels(study(0.9, 0.9), "lottery.methods.instability.Instability") == []


def test_the_verdict_on_seeds_has_an_interval() -> None:
    line = verdict([Level(None, 0.5, 0.002, 3, -0.001, 0.005)])
    assert line == "within 1 point of the dense network down to 50 % (n = 3: +0.2 points, 95 % interval -0.1 … +0.5)"


def test_the_light_rule_is_that_of_the_statistics(tmp_path: Path) -> None:
    rows = study(0.9, 0.91, 0.9, 0.89, reinit=[0.9, 0.7, 0.91])
    table = matching(load_runs([write_run(tmp_path / "run", rows)]), MARGIN)
    found = levels(rows, IMP)
    assert [level.difference for level in found] == pytest.approx(list(table["difference"]))
    assert [level.matching for level in found] == list(table["matching"])


def test_the_table_and_the_figure_over_seeds(tmp_path: Path) -> None:
    runs = [write_study(tmp_path / "imp", seed, copies=2) for seed in range(3)]
    lines = seed_lines(runs)
    assert lines[0] == "over 3 seeds"
    assert max(map(len, lines[:-4])) <= 80
    [ticket] = [line.split() for line in lines if line.split()[:2] == ["2", "ticket"]]
    assert ticket[3:5] == ["3", "97.70"]
    assert ticket[-2:] == ["-0.40", "yes"]
    assert ticket[5] == "97.45"  # 0.976, 0.977, 0.978: 97.7 - 4.303 * 0.1 / sqrt(3)
    assert lines[-3].startswith("within 1 point of the dense network down to")
    assert "n = 3" in lines[-3]
    assert lines[-1] == f"{tmp_path}/.seeds/imp/seeds.csv, {tmp_path}/.seeds/imp/seeds.png"
    assert (tmp_path / ".seeds/imp/seeds.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / ".seeds/imp/seeds.csv")
    assert list(table["n"].unique()) == [3]
    assert {"t_low", "t_high", "boot_low", "difference_low", "p_holm", "matching"} <= set(table)


def test_a_finished_sweep_answers_without_pandas_until_a_row_changes(tmp_path: Path) -> None:
    runs = [write_study(tmp_path / "imp", seed) for seed in range(2)]
    lines = seed_lines(runs)
    code = (
        "import json, sys; from pathlib import Path; from lottery.analysis.seeds import seed_lines\n"
        f"lines = seed_lines([Path(run) for run in {list(map(str, runs))}])\n"
        f"print(json.dumps([lines, [name for name in {SLOW_IMPORTS} if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [lines, []]
    table = runs[1] / "rounds.jsonl"
    table.write_text(table.read_text().replace('"test_accuracy": 0.9,', '"test_accuracy": 0.8,'))
    assert seed_lines(runs) != lines


def test_a_long_table_shows_the_tickets_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "MOST_ROWS", 4)
    lines = seed_lines([write_study(tmp_path / "imp", seed) for seed in range(2)])
    assert not any("reinit" in line for line in lines[:-3])
    assert sum("  ticket  " in line for line in lines) == 3


def test_only_studies_that_differ_in_their_seeds_are_averaged(tmp_path: Path) -> None:
    """Two learning rates, one of them with two seeds: one table, which says whose it is."""
    runs = [write_study(tmp_path / "imp", seed) for seed in range(2)]
    runs.append(write_study(tmp_path / "imp", 7, optim={"name": "adam", "lr": 0.1}))
    heads = [line for line in seed_lines(runs) if line.startswith("over ")]
    assert heads == ["over 2 seeds (optim lr 0.0012)"]
    assert seed_lines(runs[1:]) == seed_lines(runs[:1]) == []


def test_studies_that_cannot_be_drawn_together_say_why(tmp_path: Path) -> None:
    runs = [write_study(tmp_path / "imp", seed) for seed in range(2)]
    runs.append(write_study(tmp_path / "imp", 7, data={"_target_": "lottery.data.sources.cifar10", "name": "cifar10"}))
    [line] = seed_lines(runs)
    assert line.startswith(f"no table over seeds of {tmp_path}/imp: 2 architectures or data sets in one figure")


def test_the_word_for_a_row() -> None:
    assert [network(row) for row in study(0.9, 0.9, reinit=[0.8])] == ["dense", "ticket", "reinit", "reinit"]
