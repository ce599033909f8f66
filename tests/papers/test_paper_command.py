"""`python -m lottery paper`: runs what is missing, continues, draws; and one line for whatever is wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import call
from sweep_tools import FIGURE, IMP, sweep_file
from training_tools import draw_nothing

from lottery.papers import draw, ensure, jobs, load, table
from lottery.papers.running import at_once, run_missing
from lottery.papers.studies import PlannedStudy, studies
from lottery.signals import StopFlag

HERE = ("--scale", "smoke", "--launcher", "here")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOTTERY_DATA", raising=False)
    draw_nothing(monkeypatch)  # of each study, not of the paper


def results(runs: str) -> dict[str, list[str]]:
    """What must not depend on how a sweep came about: curves, masks and weights of every study."""
    folders = sorted(Path(runs, "tiny").iterdir())
    rows = {folder: map(json.loads, (folder / "rounds.jsonl").read_text().splitlines()) for folder in folders}
    return {
        folder.name: [(folder / "curves.csv").read_text()]
        + [row[key] for row in rows[folder] for key in ("mask_digest", "weights_digest")]
        for folder in folders
    }


def test_runs_what_is_missing_then_draws(tmp_path: Path, on_batch: list[Callable[[int], object]]) -> None:
    path, steps = str(sweep_file(tmp_path)), list[int]()
    on_batch.append(steps.append)
    outcome = call("paper", path, *HERE)
    assert outcome.status == 0, outcome.err
    assert len(steps) == 6 * 20
    assert "2 studies, 0 of them done" in outcome.out
    figures = Path("runs/papers/tiny/smoke/figures")
    printed = [Path(line) for line in outcome.out.splitlines()[-4:]]
    assert printed == [*(figures / f"accuracy.{kind}" for kind in ("png", "svg", "pdf")), figures / "summary.csv"]
    rows = list(csv.DictReader((figures / "summary.csv").open()))
    assert [(row["round"], row["control"], row["n"]) for row in rows] == [
        ("0", "", "2"),
        ("1", "", "2"),
        ("1", "random", "2"),
    ]

    before = results("runs")
    again = call("paper", path, *HERE)
    assert again.status == 0
    assert "2 studies, 2 of them done" in again.out
    assert call("paper", path, *HERE, "--only", "figures").status == 0
    assert len(steps) == 6 * 20, "nothing was run again"
    assert results("runs") == before

    assert call("paper", path, "--scale", "small", "--launcher", "here").status == 0
    assert len(steps) == 9 * 20, "a larger scale runs what it has more"


@pytest.mark.slow
def test_interrupted_it_continues(tmp_path: Path, on_batch: list[Callable[[int], object]]) -> None:
    """Cut short in the fourth training: what was done is kept, and the end is as without the interruption."""
    path, flag, steps = sweep_file(tmp_path), StopFlag(), list[int]()

    def count(step: int) -> None:
        steps.append(step)
        if len(steps) == 3 * 20 + 7:
            flag.signum = 15

    on_batch.append(count)
    given = studies(load(path), "smoke")
    assert run_missing(given, "here", [], flag) == 128 + 15
    assert [study.done for study in given] == [True, False]
    outcome = call("paper", str(path), *HERE, "--only", "figures")
    assert outcome.status == 1
    assert "1 of 2 studies are not done; the same command continues" in outcome.line
    assert Path("runs/papers/tiny/smoke/figures/accuracy.png").exists(), "what is there is drawn"

    assert ensure(path, "smoke") == [study.folder for study in given]
    assert len(steps) == 6 * 20, "no step was done twice"
    ensure(path, "smoke", runs="undisturbed")
    assert results("runs") == results("undisturbed")


def test_the_table_has_the_rows_of_each_block(tmp_path: Path) -> None:
    """A study that belongs to two blocks is run once, and stands in both."""
    twice = [IMP, {**IMP, "name": "same", "label": "the same"}]
    paper = load(sweep_file(tmp_path, runs=twice))
    assert len(jobs(paper, "smoke")) == 2
    [folder, _] = ensure(paper.path, "smoke")
    rows = table(paper, "smoke")
    assert rows.groupby(["block", "label"]).size().to_dict() == {("imp", "IMP"): 6, ("same", "the same"): 6}
    assert str(folder) in set(rows["run"])
    drawn = draw(paper, rows, tmp_path / "drawn")
    assert [each.name for each in drawn] == ["accuracy.png", "accuracy.svg", "accuracy.pdf", "summary.csv"]
    assert paper.published("accuracy") == FIGURE["published"]


def test_a_figure_that_cannot_be_drawn_does_not_stop_the_others(tmp_path: Path) -> None:
    """Early stopping was not measured where nothing is held out."""
    first = {"name": "first", "plot": "early_stop"}
    path = sweep_file(tmp_path, figures=[first, FIGURE])
    outcome = call("paper", str(path), *HERE, "data.validation=0")
    assert outcome.status == 1
    assert "1 of the figures could not be drawn: first: " in outcome.line
    assert "accuracy.png" in outcome.out


def test_without_a_scale_it_says_what_there_is(tmp_path: Path) -> None:
    outcome = call("paper", str(sweep_file(tmp_path)))
    assert outcome.status == 0
    assert "A tiny paper" in outcome.out
    assert "--scale small" in outcome.out
    listed = call("paper")
    assert listed.status == 0
    assert "The Lottery Ticket Hypothesis" in listed.out
    assert not Path("runs").exists()


@pytest.mark.parametrize(("threads", "workers"), [("1", 2), ("2", 1), ("null", 1)])
def test_as_many_at_once_as_have_cores(
    threads: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("lottery.launch.local.gpu_count", lambda: 0)
    given: list[PlannedStudy] = studies(load(sweep_file(tmp_path)), "smoke", [f"trainer.threads={threads}"])
    assert at_once(given) == workers
    assert at_once(given[:1]) == 1
    monkeypatch.setattr("lottery.launch.local.gpu_count", lambda: 1)
    assert at_once(given) == 1


# -- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["lht"], "lht: no such paper (did you mean 'lth'?); there are bip, "),
        (["nowhere/sweep.yaml"], "nowhere/sweep.yaml: no such file, expected a sweep.yaml"),
        (["lth", "--scale", "smal"], "--scale: got 'smal', expected one of smoke, small, paper (did you mean"),
        (["lth", "seed=1"], "--scale: is missing, expected one of smoke, small, paper"),
        (["lth", "--scale", "smoke", "--launcher", "slrm"], "--launcher: got 'slrm', expected one of here, "),
        (["lth", "--scale", "smoke", "train.setps=3it"], "train.setps: no such key (did you mean 'train.steps'?)"),
        (["lth", "--scale", "smoke", "+exp"], "+exp: expected key=value"),
        (["lth", "--scale", "smoke", "hydra/launcher=slurm"], "the launcher is --launcher"),
        (["lth", "--only", "tables"], "paper: argument --only: invalid choice"),
        (["lth", "--scale", "smoke", "--only", "figures"], "lth: no study of the scale smoke has a round yet"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(args: list[str], line: str, tmp_path: Path) -> None:
    outcome = call("paper", *args)
    assert outcome.status == (1 if "--only figures" in " ".join(args) else 2)
    assert line in outcome.line
    assert not list(tmp_path.iterdir()), "nothing is written"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"figure": []}, "figure: no such key (did you mean 'figures'?)"),
    "title": ({"title": 3}, "title: got 3, expected a text"),
    "no block": ({"runs": []}, "runs: expected at least one block"),
    "block": ({"runs": [{"name": "imp"}]}, "runs[0].overrides: is missing"),
    "override": ({"runs": [{"name": "imp", "overrides": ["seed"]}]}, "runs[0].overrides: got 'seed', expected"),
    "scale": ({"scales": {"smal": {"cost": "1 s"}}}, "scales.smal: no such key (did you mean 'small'?)"),
    "scale's block": (
        {"scales": {"smoke": {"cost": "1 s", "runs": {"ipm": []}}}},
        "scales.smoke.runs.ipm: no such key (did you mean 'imp'?)",
    ),
    "nothing left": ({"scales": {"smoke": {"cost": "1 s", "runs": {"imp": None}}}}, "leaves every block out"),
    "figure's block": (
        {"figures": [{**FIGURE, "runs": ["ipm"]}]},
        "figures[0].runs: got 'ipm', expected one of imp (did you mean 'imp'?)",
    ),
    "point": (
        {"figures": [{**FIGURE, "published": [{"x": "a", "y": 1, "label": "b"}]}]},
        "figures[0].published[0].x: got 'a', expected a number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_damaged_sweep_file(case: str, tmp_path: Path) -> None:
    changes, line = WRONG[case]
    path = sweep_file(tmp_path, **changes)
    outcome = call("paper", str(path), *HERE)
    assert outcome.status == 2
    assert outcome.line.startswith(f"lottery: {path}: ")
    assert line in outcome.line


def test_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    path.write_text("title: [never closed\nruns: {")
    outcome = call("paper", str(path), *HERE)
    assert outcome.status == 2
    assert f"{path}, line " in outcome.line
    assert "not valid YAML" in outcome.line


def test_an_override_that_does_not_compose_names_file_and_block(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, runs=[{"name": "imp", "overrides": ["+exp=imp_rewnd"]}])
    outcome = call("paper", str(path), *HERE)
    assert outcome.status == 2
    assert f"{path}: smoke, block imp: " in outcome.line
    assert not Path("runs").exists()
