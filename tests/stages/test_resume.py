"""A training cut short anywhere and run again ends bit for bit where the undisturbed one does (test T0.6)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from training_tools import AUGMENTED, MOMENTUM, STEPWISE, Start, assert_same_bits

from lottery.errors import Interrupted
from lottery.files import file_digest, write_json
from lottery.signals import HANDLED, StopFlag
from lottery.stages import train
from lottery.stages.lab import Lab
from lottery.stages.store import Stage, Store
from lottery.stages.trained import Trained
from lottery.state import load_state, save_state, snapshot, state_digest
from lottery.ticket import Mask, Ticket
from lottery.training.checkpoint import load_checkpoint, save_checkpoint
from lottery.training.module import MaskedTraining
from lottery.training.progress import Progress

# Batch normalisation and dropout are the network's; augmentation, momentum, milestones and warm-up are these.
EVERYTHING = (*MOMENTUM, *AUGMENTED, *STEPWISE)
RECIPES = {
    "nesterov": (*EVERYTHING, "optim.nesterov=true", "optim.clip_norm=0.5"),
    "channels_last, bf16": (*EVERYTHING, "train.channels_last=true", "train.precision=bf16"),
    "adam": (*AUGMENTED, *STEPWISE, "optim=adam", "optim.lr=1e-2"),
    "adamw": (*AUGMENTED, "optim=adamw", "optim.lr=1e-2", "schedule.name=cosine"),
    "no validation": (*EVERYTHING, "data.validation=0"),
}
KEEP = (4, 10, 30)


def results(trained: Trained) -> dict[str, object]:
    """All that a stage's folder holds but what may differ from run to run: the environment, and seconds."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in trained.folder.iterdir()}
    for name in ("DONE", "stage.json", "result.json"):
        del found[name]
    assert trained.result["seconds"] > 0
    return found | {"result": {key: value for key, value in trained.result.items() if key != "seconds"}}


class Setting:
    """One ticket, trained again and again in stores of their own."""

    def __init__(self, lab: Lab, ticket: Ticket, stop: StopFlag, folder: Path) -> None:
        self.lab, self.ticket, self.stop, self.folder = lab, ticket, stop, folder

    def train(self, store: str, keep: tuple[int, ...] = KEEP) -> Trained:
        self.stop.signum = None
        self.lab.store = Store(self.folder / store)
        return self.lab.train(self.ticket, keep)

    def checkpoint(self, store: str) -> Path:
        (found,) = (self.folder / store).rglob("checkpoint.safetensors")
        return found

    def forget(self, store: str) -> None:
        shutil.rmtree(self.folder / store)


@pytest.fixture
def setting(
    make_lab: Callable[..., Lab], half: Callable[..., Mask], signals: Callable[[], StopFlag], tmp_path: Path
) -> Callable[..., Setting]:
    def make(*overrides: str) -> Setting:
        stop = signals()
        lab = make_lab(*overrides, stop=stop)
        return Setting(lab, replace(lab.initial, mask=half(lab.initial.mask)), stop, tmp_path)

    return make


def terminated_at(at: int) -> Callable[[int], object]:
    """Has the process told to end while it does the update of step `at`."""
    return lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == at else None


@pytest.mark.slow
def test_interrupted_at_every_step(setting: Callable[..., Setting], on_batch: list[Callable[[int], object]]) -> None:
    training = setting(*EVERYTHING)
    expected = results(training.train("undisturbed"))
    for at in range(30):
        on_batch[:] = [terminated_at(at)]
        with pytest.raises(Interrupted, match=f"SIGTERM at step {at + 1}; .*same command continues") as caught:
            training.train("store")
        assert caught.value.exit_status == 143
        on_batch.clear()
        path = training.checkpoint("store")
        assert load_checkpoint(path, path.parent.name)[2].step == at + 1
        assert results(training.train("store")) == expected
        training.forget("store")


@pytest.mark.parametrize(
    "overrides",
    [pytest.param(o, id=n, marks=[] if n == "adamw" else pytest.mark.slow) for n, o in RECIPES.items()],
)
def test_interrupted_after_each_step_one_after_the_other(
    setting: Callable[..., Setting], on_batch: list[Callable[[int], object]], starts: list[Start],
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    training = setting(*overrides)
    expected = results(training.train("undisturbed"))
    starts.clear()
    on_batch.append(lambda step: os.kill(os.getpid(), HANDLED[step % 2]))
    for at in range(30):
        with pytest.raises(Interrupted, match=f"{HANDLED[at % 2].name} at step {at + 1};") as caught:
            training.train("store")
        assert caught.value.exit_status == 128 + HANDLED[at % 2]
    on_batch.clear()
    assert results(training.train("store")) == expected
    assert [len(start.rates) for start in starts] == [1] * 30 + [0]


class Crash(Exception):
    pass


@pytest.mark.slow
def test_crashed_at_every_step(
    setting: Callable[..., Setting], on_batch: list[Callable[[int], object]], starts: list[Start]
) -> None:
    training = setting(*EVERYTHING, "train.checkpoint_steps=1")
    expected = results(training.train("undisturbed"))
    starts.clear()

    def crash(step: int) -> None:
        if len(starts) == step:  # the n-th attempt gets to step n - 1
            raise Crash

    on_batch.append(crash)
    for _ in range(29):
        with pytest.raises(Crash):
            training.train("store")
    assert results(training.train("store")) == expected
    assert [len(start.rates) for start in starts] == [1] * 30


@pytest.mark.parametrize("at", [2, 10, 11, 29])
def test_after_a_crash_no_more_is_done_again_than_lies_after_the_last_checkpoint(
    setting: Callable[..., Setting], on_batch: list[Callable[[int], object]], starts: list[Start],
    monkeypatch: pytest.MonkeyPatch, at: int,
) -> None:  # fmt: skip
    training = setting(*EVERYTHING, "train.checkpoint_steps=4")
    expected = results(training.train("undisturbed"))
    saved: list[int] = []

    def spied(module: MaskedTraining, path: Path, stage: str) -> None:
        saved.append(module.progress.step)
        save_checkpoint(module, path, stage)

    def crash(step: int) -> None:
        if step == at:
            raise Crash

    monkeypatch.setattr(train, "save_checkpoint", spied)
    on_batch.append(crash)
    with pytest.raises(Crash):
        training.train("store")
    on_batch.clear()
    assert results(training.train("store")) == expected
    assert len(starts[-1].rates) == 30 - at // 4 * 4
    assert saved == list(range(4, 30, 4))


def test_checkpoints_are_written_when_the_clock_says_so(
    setting: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = setting("train.eval_every=1000it", "train.checkpoint_minutes=1")
    seconds, saved = [0.0], []
    monkeypatch.setattr(train, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(train, "save_checkpoint", lambda module, *_: saved.append(module.progress.step))
    original = MaskedTraining.learning_rate

    def slow(module: MaskedTraining, step: int) -> float:
        seconds[0] += 25.0  # each step takes 25 s, so that a minute has passed after three
        return original(module, step)

    monkeypatch.setattr(MaskedTraining, "learning_rate", slow)
    training.train("store", ())
    assert saved == list(range(3, 31, 3))


@pytest.mark.parametrize("damage", ["truncated", "empty", "a byte", "another format", "no safetensors file"])
def test_a_damaged_checkpoint_starts_the_training_again_with_a_warning(
    setting: Callable[..., Setting], on_batch: list[Callable[[int], object]], starts: list[Start],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(logging.getLogger("lottery"), "propagate", True)
    training = setting(*EVERYTHING)
    expected = results(training.train("undisturbed"))
    on_batch.append(terminated_at(17))
    with pytest.raises(Interrupted):
        training.train("store")
    on_batch.clear()
    path = training.checkpoint("store")
    data = path.read_bytes()
    changed = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "a byte": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        "another format": data.replace(b"lottery-checkpoint/", b"lottery-checkpoinT/"),
        "no safetensors file": b"x" * 1000,
    }[damage]
    assert changed != data
    path.write_bytes(changed)
    starts.clear()
    assert results(training.train("store")) == expected
    assert len(starts[-1].rates) == 30
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(str(path))
    assert warning.endswith("; this training starts again")


def test_a_checkpoint_holds_all_that_was_measured(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = make_lab("optim=adam")
    measured = Progress(0, [], 0.1 + 0.2, 7, None, 1 / 3, kept={"4": {"state": "a", "optimizer": "b"}})
    module = MaskedTraining(lab.network(0), lab.initial, lab.recipe, lab.data_on, measured)
    module.prepare(module.configure_optimizers())
    module.advance(3)
    measured.losses = torch.tensor([0.1, 0.2, 0.3])
    measured.best_state = {name: value + 1 for name, value in snapshot(module.network).items()}
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(module, path, "0123")
    network, optimizer, progress = load_checkpoint(path, "0123")
    assert progress.best_state is not None
    assert torch.equal(progress.losses, measured.losses)
    assert_same_bits(progress.best_state, measured.best_state)
    for name in ("step", "curve", "best_loss", "best_step", "seconds", "kept"):
        assert getattr(progress, name) == getattr(measured, name)
    assert set(network) == set(module.network.state_dict())
    assert {key.rpartition("/")[2] for key in optimizer} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(value == 3 for key, value in optimizer.items() if key.endswith("/step"))


@pytest.mark.parametrize("how", ["a byte", "missing", "another training's"])
@pytest.mark.parametrize("part", ["state", "optimizer"])
def test_a_kept_step_that_was_damaged_before_the_end_is_computed_again(
    setting: Callable[..., Setting], on_batch: list[Callable[[int], object]], starts: list[Start],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, part: str, how: str,
) -> None:  # fmt: skip
    """A stage is not sealed with it: each training that starts there would fail, or be another one."""
    monkeypatch.setattr(logging.getLogger("lottery"), "propagate", True)
    training = setting(*EVERYTHING)
    undisturbed = training.train("undisturbed", (4,))
    on_batch.append(terminated_at(17))
    with pytest.raises(Interrupted):
        training.train("store", (4,))
    on_batch.clear()
    starts.clear()
    (kept,) = (training.folder / "store").rglob(f"{part}_00000004.safetensors")
    data = kept.read_bytes()
    if how == "missing":
        kept.unlink()
    elif how == "a byte":
        kept.write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
    else:
        save_state({name: value + 1 for name, value in load_state(kept).items()}, kept)
    trained = training.train("store", (4,))
    assert [len(start.rates) for start in starts] == [12, 4]
    assert_same_bits(trained.at(4).tensors(), undisturbed.at(4).tensors())
    optimizers = trained.optimizer_at(4), undisturbed.optimizer_at(4)
    assert optimizers[0] is not None
    assert optimizers[1] is not None
    assert_same_bits(optimizers[0].tensors(), optimizers[1].tensors())
    assert "it is computed again if it is needed" in caplog.text
    assert all(stage.result() for stage in finished(training.folder / "store"))


def finished(store: Path) -> list[Stage]:
    """The stages of a store, whose files are all as DONE says."""
    found = [Stage("train", path.parent.name, path.parent, {}) for path in store.rglob("DONE")]
    for stage in found:
        for name, digest in json.loads((stage.folder / "DONE").read_text()).items():
            assert file_digest(stage.folder / name) == digest
    return found


@pytest.mark.parametrize("whose", ["of another stage", "does not say of which stage it is"])
def test_a_checkpoint_of_another_training_is_refused(
    setting: Callable[..., Setting], on_batch: list[Callable[[int], object]], starts: list[Start],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, whose: str,
) -> None:  # fmt: skip
    """It fits, and is whole: another seed's, copied in, was once continued. Those of version 0.1 are not bound."""
    monkeypatch.setattr(logging.getLogger("lottery"), "propagate", True)
    on_batch.append(terminated_at(17))
    other, training = setting(*EVERYTHING, "seeds.order=7"), setting(*EVERYTHING)  # signals reach the last one's flag
    other.stop = other.lab.stop = training.stop
    for each, store in ((training, "store"), (other, "others")):
        with pytest.raises(Interrupted):
            each.train(store)
    on_batch.clear()
    path = training.checkpoint("store")
    if whose == "of another stage":
        shutil.copy(other.checkpoint("others"), path)
    else:
        unbound(path)
    expected = results(training.train("undisturbed"))
    starts.clear()
    assert results(training.train("store")) == expected
    assert len(starts[-1].rates) == 30
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{path}: {whose}")
    assert warning.endswith("; this training starts again")


def unbound(path: Path) -> None:
    """Make a checkpoint one of version 0.1."""
    tensors = load_state(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    facts = json.loads(metadata["progress"])
    del facts["stage"]
    text = json.dumps(facts)
    digest = hashlib.sha256(f"{state_digest(tensors)} {text}".encode()).hexdigest()
    save_file(tensors, path, metadata | {"progress": text, "digest": digest})


@pytest.mark.parametrize("damage", ["damaged", "another stage's", "no inputs"])
def test_a_stage_that_says_it_is_another_one_is_told_again(
    setting: Callable[..., Setting], on_batch: list[Callable[[int], object]], damage: str
) -> None:
    """stage.json of an unfinished stage was sealed as it was found."""
    other, training = setting(*EVERYTHING, "seeds.order=7"), setting(*EVERYTHING)  # signals reach the last one's flag
    on_batch.append(terminated_at(17))
    with pytest.raises(Interrupted):
        training.train("store")
    on_batch.clear()
    path = training.checkpoint("store").with_name("stage.json")
    about = path.read_bytes()
    changed = {
        "damaged": b"{",
        "another stage's": (other.train("others").folder / "stage.json").read_bytes(),
        "no inputs": b"{}",
    }
    path.write_bytes(changed[damage])
    assert not training.train("store").cached
    assert json.loads(path.read_bytes())["inputs"] == json.loads(about)["inputs"]


def test_steps_kept_for_another_rewind_point_are_not_lost(
    setting: Callable[..., Setting], on_batch: list[Callable[[int], object]], starts: list[Start]
) -> None:
    training = setting(*EVERYTHING)
    expected = training.train("undisturbed")
    on_batch.append(terminated_at(17))
    with pytest.raises(Interrupted):
        training.train("store", (4,))
    on_batch.clear()
    starts.clear()
    trained = training.train("store", (10,))  # 10 has passed, so the stretch up to it is trained again
    assert [len(start.rates) for start in starts] == [12, 10]
    assert set(trained.kept) == {4, 10}
    for step in (4, 10):
        assert trained.at(step).digest == expected.at(step).digest
        assert trained.optimizer_at(step) == expected.optimizer_at(step)


def test_half_written_work_of_another_process_is_continued(
    setting: Callable[..., Setting], starts: list[Start]
) -> None:
    training = setting(*EVERYTHING)
    expected = training.train("undisturbed")
    starts.clear()
    # As a process leaves it that is killed just before DONE: everything is there, and nothing counts.
    folder = training.folder / "store" / "train" / expected.key
    shutil.copytree(expected.folder, folder)
    (folder / "DONE").unlink()
    write_json(folder / "result.json", {"nonsense": True})
    left = folder / f".state.safetensors.{'0' * 32}.tmp"  # its writer may be suspended, and must not go on
    left.write_bytes(b"half")
    again = training.train("store")
    assert not again.cached
    assert len(starts[-1].rates) == 30
    assert not left.exists()
    assert results(again) == results(expected)
