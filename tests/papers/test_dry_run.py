"""A dry run computes nothing, writes nothing, and counts the stages that a run then has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line_tools import call, listing
from sweep_tools import SMALL, sweep_file
from training_tools import draw_nothing

from lottery.papers import load
from lottery.papers.plan import plan, wall
from lottery.papers.studies import studies
from lottery.runner import run_composed
from lottery.signals import StopFlag

SEARCH = ["method.steps=20it", "method.density=0.5", "probes=none"]
IMP = ["+exp=imp_rewind", "method.rounds=2", "controls=none"]
COPIES = ["probes=[light,copies]", "probes.pruning.rounds=[2]"]
POINTS = ["method=instability", "~method.rounds", "method.points=[0it,5it]", "method.measured=[0,1]"]
BLOCKS = {  # all share their dense training but for jackpots, whose classifier is whole
    "reset": [*IMP, "controls=lth", "rewind=init"],
    "rewound": [*IMP, "rewind.to=5it,10it"],
    "kept": [*IMP, "rewind=finetune", "rewind.to=5it"],
    "copied": [*IMP, "rewind.to=10it", *COPIES],
    "bip": ["+exp=bip", *SEARCH],
    "jackpot": ["+exp=jackpot", *SEARCH],
    "instability": [*IMP, "rewind.to=init", "probes=none", *POINTS],
}
OPTIM = ["optim.lr=3e-3", "seed=0"]


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lottery.papers.probe.SECONDS", 0.01)
    draw_nothing(monkeypatch)


def sweep(folder: Path, *blocks: str) -> Path:
    small = [each for each in SMALL if each != "probes=none"]
    runs = [{"name": name, "overrides": BLOCKS[name]} for name in blocks or BLOCKS]
    scales = {"smoke": {"cost": "seconds", "overrides": [*small, *OPTIM]}}
    return sweep_file(folder, runs=runs, scales=scales, figures=[])


def stages(runs: str = "runs") -> dict[str, int]:
    """How many of each kind the store has."""
    kinds = {kind: len(list(Path(runs, ".store", kind).glob("*/DONE"))) for kind in ("train", "search")}
    return {kind: count for kind, count in kinds.items() if count}


@pytest.mark.slow
def test_it_counts_the_stages_that_a_run_then_has(tmp_path: Path, on_batch: list[Callable[[int], object]]) -> None:
    """Of methods and policies that share dense trainings, tickets and copies.

    The rewound studies find a dense training that kept no state at their step, and train up to it again.
    """
    path, steps = sweep(tmp_path), list[int]()
    given = studies(load(path), "smoke")
    planned, ledger = plan(given)
    assert not Path("runs").exists()
    assert {stage.done for stage in ledger.stages.values()} == {False}
    expected = {kind: sum(s.kind == kind for s in ledger.stages.values()) for kind in ("train", "search")}
    on_batch.append(steps.append)
    for study in given:
        run_composed(study.config, StopFlag())
    assert stages() == expected
    bip = 20  # its second batch of a step is drawn from a stream of its own, which is counted like the first
    assert sum(stage.batches for stage in ledger.stages.values()) == pytest.approx(len(steps), abs=bip)
    assert sum(each.asked - len(each.stages) for each in planned) > 0

    again, ledger = plan(given)
    assert {stage.done for stage in ledger.stages.values()} == {True}
    assert sum(each.seconds for each in again) == 0


def test_what_is_done_is_not_counted_as_left(tmp_path: Path) -> None:
    """After one study of three that share a dense training the others have their tickets left, and the way to the step
    that they rewind to, which it did not keep."""
    path = sweep(tmp_path, "reset", "rewound")
    given = studies(load(path), "smoke")
    run_composed(given[0].config, StopFlag())
    planned, _ = plan(given)
    assert [len(each.left) for each in planned] == [0, 3, 3]


def test_the_text_and_that_nothing_is_written(tmp_path: Path, on_batch: list[Callable[[int], object]]) -> None:
    path, before = sweep(tmp_path, "reset"), listing(tmp_path)
    outcome = call("paper", str(path), "--scale", "smoke", "--dry-run")
    assert (outcome.status, outcome.err) == (0, "")
    assert "1 studies, 0 of them done" in outcome.out
    assert "stages: 7 trainings, asked for 7 times: 0 are shared" in outcome.out
    assert "7 are left: 140 steps" in outcome.out
    assert re.search(r"measured here: [\d.]+ ms a step, MLP 8 on MNIST-1D", outcome.out)
    assert re.search(r"^time: \ds one after the other", outcome.out, re.MULTILINE)
    after = listing(tmp_path)
    assert {k: v for k, v in after.items() if "tiny" in k} == {k: v for k, v in before.items() if "tiny" in k}
    assert set(after) == set(before)


def test_data_that_are_not_there_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """55,000 images of MNIST in batches of 60 are 917 steps an epoch, which is known without them."""

    def refuse(*_: object) -> None:
        raise AssertionError("a dry run used the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    path = sweep_file(
        tmp_path,
        runs=[{"name": "lenet", "overrides": ["+exp=lth_lenet", "method.rounds=1", "controls=none"]}],
        scales={"smoke": {"cost": "none", "overrides": ["train.steps=2ep", "seed=0"]}},
        figures=[],
    )
    _, ledger = plan(studies(load(path), "smoke", [f"paths.data={tmp_path / 'none'}"]))
    assert [stage.batches for stage in ledger.stages.values()] == [2 * 917] * 2
    assert not (tmp_path / "none").exists()


def test_side_by_side() -> None:
    class Each:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

    assert wall([Each(4), Each(3), Each(2)], 2) == 5  # type: ignore[list-item]
