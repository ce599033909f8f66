"""The Python API (design, 4.8): studies run from Python, and masks, tickets and networks read from run folders."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line_tools import QUICK, call, environment, listing
from training_tools import SMALL, assert_pruned_are_zero, assert_same_bits, draw_nothing

import lottery
from lottery import ConfigError, LotteryError
from lottery.compose import composed
from lottery.config import settings
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.state import load_state, snapshot
from lottery.ticket import Mask

STUDY = [*QUICK, "+exp=imp_rewind", "train.steps=40it", "rewind.to=10it", "method.rounds=2", "data.validation=100"]


@pytest.fixture(autouse=True, scope="module")
def _undrawn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python") / "runs"


@pytest.fixture(scope="module")
def run(runs: Path) -> lottery.Run:
    """A study with a rewind point, a validation set, and controls."""
    return lottery.run(*STUDY, f"paths.runs={runs}")


def record(run: lottery.Run, stem: str) -> dict[str, Any]:
    return json.loads((run.path / "rounds" / f"{stem}.json").read_text())


def stage(run: lottery.Run, stem: str) -> Path:
    return run.path.parent.parent / ".store" / "train" / record(run, stem)["stages"]["train"]


def moved(run: lottery.Run, folder: Path) -> lottery.Run:
    """A copy of the run folder and its store, which may be damaged."""
    shutil.copytree(run.path.parent.parent, folder)
    copy = folder / run.path.parent.name / run.path.name
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(run.path.parent.parent), str(folder)))
    return lottery.load_run(copy)


# -- importing --------------------------------------------------------------------------------------------------------


def test_importing_lottery_is_light() -> None:
    """Names are listed at once; torch and Hydra come with the first one that needs them."""
    program = """
import sys, lottery
slow = {"torch", "hydra", "omegaconf", "pandas", "numpy", "pytorch_lightning"}
assert not slow & set(sys.modules), slow & set(sys.modules)
assert {"run", "load_run", "load_runs", "Run", "Mask", "MaskedOptimizer", "lightning"} <= set(dir(lottery))
lottery.load_run, lottery.run, lottery.Run
assert not {"torch", "pandas", "pytorch_lightning"} & set(sys.modules)
lottery.MaskedOptimizer
assert "torch" in sys.modules
try:
    lottery.load
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'lottery' has no attribute 'load'\n"


# -- running ----------------------------------------------------------------------------------------------------------


def test_a_study_run_from_python_is_the_command_lines(
    run: lottery.Run, runs: Path, capsys: pytest.CaptureFixture
) -> None:
    """The same folder, which the command line then only reads; and so does a second call."""
    assert run.finished
    assert list(run.table["round"]) == [0, 1, 1, 1, 2, 2, 2]
    before = listing(run.path)
    outcome = call(*STUDY, f"paths.runs={runs}")
    assert (outcome.status, outcome.err) == (0, "")
    capsys.readouterr()
    again = lottery.run(*STUDY, f"paths.runs={runs}")
    assert again.path == run.path
    assert "done: 7 rows" in capsys.readouterr().out
    changed = {name for name, content in listing(run.path).items() if before.get(name) != content}
    assert changed <= {"study.log", "manifest.json", "status.json"}


def test_two_studies_in_one_process_share_a_store(run: lottery.Run, runs: Path) -> None:
    longer = lottery.run(*STUDY, f"paths.runs={runs}", "method.rounds=3", "controls.reinit=0", "controls.random=0")
    assert longer.path != run.path
    assert [row["cached"] for row in longer.rows] == [True, True, True, False]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+exp=imp_rewnd"], "did you mean 'imp_rewind'"),
        (["+exp=imp_rewind", "optim.lrr=1"], "optim.lrr"),
        (["+exp=imp_rewind", 3], "lottery.run: got 3, expected texts such as '+exp=imp_rewind' and 'seed=1'"),
    ],
)
def test_a_wrong_configuration_raises_and_writes_nothing(
    overrides: list[Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        lottery.run(*overrides)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_own_configs(run: lottery.Run, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    text = "# @package _global_\ndefaults: [imp_rewind]\nname: mine\nseed: 3\n"
    (tmp_path / "exp" / "mine.yaml").write_text(text)
    own = [word for word in STUDY if word != "+exp=imp_rewind"]
    found = lottery.run("+exp=mine", *own, f"paths.runs={runs}", "method.rounds=1", config_dir=tmp_path)
    assert (found.config["name"], found.config["seed"]) == ("mine", 3)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_load_run_finds_the_only_run_folder(run: lottery.Run, tmp_path: Path) -> None:
    copy = tmp_path / "runs" / "one" / run.path.name
    shutil.copytree(run.path, copy)
    assert lottery.load_run(tmp_path / "runs").path == copy
    shutil.copytree(run.path, tmp_path / "runs" / "two" / run.path.name)
    with pytest.raises(LotteryError, match=r"2 run folders, expected one; name one of .*one.*, .*two"):
        lottery.load_run(tmp_path / "runs")
    with pytest.raises(LotteryError, match="no such run folder"):
        lottery.load_run(tmp_path / "nothing")


def test_configuration_table_curves_and_masks(run: lottery.Run) -> None:
    assert run.config["train"]["steps"] == "40it"
    assert {"round", "control", "density", "test_accuracy", "config.seed"} <= set(run.table)
    assert set(run.curves) >= {"round", "step", "split", "loss", "accuracy"}
    assert run.mask(2).issubset(run.mask(1))
    assert run.mask(1, "reinit") == run.mask(1) != run.mask(1, "random")
    assert len(lottery.load_runs(run.path.parent)) >= len(run.table)


def test_a_ticket_is_what_the_training_started_from(run: lottery.Run, runs: Path) -> None:
    """Of every round and control: the digests are those of the record, the training is the stage of the record."""
    lab = Lab(settings(composed([*STUDY, f"paths.runs={runs}"])), StopFlag(), lambda *_: None)
    for row in run.rows:
        place = row["round"], row["control"], row["copy"]
        stem = f"round_{row['round']:03d}" + (f".{row['control']}-{row['copy']}" if row["control"] else "")
        ticket = run.ticket(*place)
        assert ticket.mask == run.mask(*place)
        assert ticket.state.digest == record(run, stem)["digests"]["start"]
        assert lab.train_stage(ticket).key == record(run, stem)["stages"]["train"]
        ticket.state.tensors()  # checks the digest
    dense = load_state(stage(run, "round_000") / "state_00000010.safetensors")
    assert_same_bits(run.ticket(2).state.tensors(), dense)


@pytest.mark.parametrize("place", [(0, None), (2, None), (2, "reinit"), (2, "random")])
def test_networks_have_the_weights_of_each_point(place: tuple[int, str | None], run: lottery.Run) -> None:
    stem = f"round_{place[0]:03d}" + (f".{place[1]}-0" if place[1] else "")
    mask, start, end = run.mask(*place), run.network(*place, at="start"), run.network(*place)
    assert_same_bits(snapshot(end), load_state(stage(run, stem) / "state.safetensors"))
    assert_same_bits(snapshot(start), mask.apply(run.ticket(*place).state.tensors()))
    if place[0]:
        assert_pruned_are_zero(snapshot(start), mask)
        assert_pruned_are_zero(snapshot(end), mask)
    assert not torch.equal(start.fc1.weight, end.fc1.weight)


def test_networks_compute_what_the_table_says(run: lottery.Run, runs: Path) -> None:
    """The test accuracy at the end, and at the early stop, which is not the last point here."""
    dataset = run.stored(0).dataset
    images, labels = next(dataset.batches("test", 10_000))

    def accuracy(at: str, round: int) -> float:
        with torch.no_grad():
            return float((run.network(round, at=at).eval()(images).argmax(1) == labels).float().mean())

    for row in run.rows[:2]:
        assert accuracy("end", row["round"]) == pytest.approx(row["test_accuracy"])
        assert accuracy("early_stop", row["round"]) == pytest.approx(row["early_stop_test_accuracy"])


def test_the_weights_of_an_early_stop_in_between_are_kept(runs: Path) -> None:
    """At a learning rate at which the validation loss rises again."""
    options = ["optim.lr=0.5", "train.eval_every=5it", "method.rounds=1", "controls.reinit=0", "controls.random=0"]
    run = lottery.run(*STUDY, *options, f"paths.runs={runs}")
    steps = {row["round"]: row["early_stop_step"] for row in run.rows}
    [round, *_] = [round for round, step in steps.items() if (0 if round == 0 else 10) < step < 40]
    assert (stage(run, f"round_{round:03d}") / "early_stop.safetensors").exists()
    images, labels = next(run.stored(0).dataset.batches("test", 10_000))
    network = run.network(round, at="early_stop").eval()
    with torch.no_grad():
        found = float((network(images).argmax(1) == labels).float().mean())
    assert found == pytest.approx(run.rows[round]["early_stop_test_accuracy"])
    if round:
        assert_pruned_are_zero(snapshot(network), run.mask(round))


def test_initial_weights_are_drawn_again(runs: Path, tmp_path: Path) -> None:
    """They are in no file: of a ticket that is rewound to them, and of a network whose weights come from images too."""
    options = ["rewind.to=init", "method.rounds=1", "controls.random=0"]
    run = lottery.run(*STUDY, *options, f"paths.runs={runs}")
    start = run.ticket(1).state
    assert start == run.ticket(0).state != run.ticket(1, "reinit").state
    assert_same_bits(start.tensors(), run.ticket(0).state.tensors())


# -- what is missing --------------------------------------------------------------------------------------------------


def test_a_round_that_is_not_there(run: lottery.Run) -> None:
    for read in (run.ticket, run.network, run.mask):
        with pytest.raises(
            LotteryError, match=r"has no round 7; it has rounds 0, 1, 2; controls 1 reinit 0, 1 random 0"
        ):
            read(7)
    with pytest.raises(LotteryError, match=r"at: got 'stop', expected start, early_stop, end"):
        run.network(1, at="stop")


@pytest.mark.parametrize(("at", "what"), [("end", "the trained weights"), ("start", "the start weights")])
def test_weights_that_gc_removed_name_the_command_that_makes_them(
    at: str, what: str, run: lottery.Run, tmp_path: Path
) -> None:
    copy = moved(run, tmp_path / "copy")
    gone = stage(copy, "round_002" if at == "end" else "round_000")
    shutil.rmtree(gone)
    with pytest.raises(LotteryError) as caught:
        copy.network(2, at=at)
    store, config = tmp_path / "copy" / ".store", copy.path / "config.yaml"
    expected = (
        f"round 2: the store {store} does not have {what} (any more); `python -m lottery --config {config}` trains"
    )
    assert str(caught.value) == f"{copy.path}: {expected} it again"
    outcome = call("--config", str(config))
    assert outcome.status == 0, outcome.err
    assert_same_bits(snapshot(copy.network(2, at=at)), snapshot(run.network(2, at=at)))


def test_an_early_stop_without_a_validation_set(runs: Path) -> None:
    run = lottery.run(*STUDY, "data.validation=0", "method.rounds=1", f"paths.runs={runs}")
    with pytest.raises(LotteryError, match="round 1: no early stop, as no validation set was held out"):
        run.network(1, at="early_stop")


def test_a_start_mixed_of_two_states_is_in_no_file(runs: Path) -> None:
    small = [word for word in SMALL if not word.startswith(("model=", "method."))]
    options = ["model=resnet20", "model.depth=8", "model.width=4", "method.rounds=1", "rewind.batchnorm=reset"]
    run = lottery.run(*small, *options, f"paths.runs={runs}")
    run.network(1)
    with pytest.raises(
        LotteryError, match=r"round 1: it starts from weights \(rewind\) and batch-norm statistics \(reset"
    ):
        run.network(1, at="start")


def test_code_that_a_folder_names_is_not_called(run: lottery.Run, tmp_path: Path) -> None:
    copy = moved(run, tmp_path / "copy")
    config = copy.path / "config.yaml"
    config.write_text(config.read_text().replace("lottery.models.mlp.mlp", "os.system"))
    (copy.path / "manifest.json").unlink()
    with pytest.raises(LotteryError, match=r"model\._target_: got 'os\.system', code that is not lottery's"):
        copy.network(1)


def test_a_mask_is_a_mask_wherever_it_is_read(run: lottery.Run) -> None:
    path = run.path / "masks" / "round_001.safetensors"
    assert lottery.Mask.load(path) == Mask.load(path) == run.mask(1)
