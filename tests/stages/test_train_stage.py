"""The train stage: its folder, its key, what it shares, and its terms with Lightning."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_tools import AUGMENTED, MOMENTUM, Start, assert_same_bits

from lottery.config import digest
from lottery.errors import Interrupted, LotteryError
from lottery.files import file_digest
from lottery.signals import HANDLED, StopFlag
from lottery.stages import train
from lottery.stages.lab import Lab
from lottery.stages.trained import Trained
from lottery.state import load_state, state_digest
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining


def changed(data: bytes, position: int = -10) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_the_folder_says_what_it_is_for_and_is_sealed_last(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(*MOMENTUM)
    order: list[str] = []
    original = Path.replace

    def spied(path: Path, target: Path) -> Path:
        order.append(Path(target).name)
        return original(path, target)

    monkeypatch.setattr(Path, "replace", spied)
    trained = lab.train(lab.initial, keep=[7])
    assert order == [
        "stage.json", "state_00000007.safetensors", "optimizer_00000007.safetensors",
        "state.safetensors", "result.json", "DONE",
    ]  # fmt: skip
    assert sorted(path.name for path in trained.folder.iterdir()) == sorted(order)
    assert trained.folder == lab.store.root / "train" / trained.key
    stage = json.loads((trained.folder / "stage.json").read_text())
    assert digest({"kind": "train", "inputs": stage["inputs"]}) == stage["key"] == trained.key
    assert stage["inputs"]["recipe"]["optim"]["momentum"] == 0.9
    assert stage["inputs"]["state"] == lab.initial.state.digest
    assert stage["inputs"]["mask"] == lab.initial.mask.digest
    assert {"torch", "python", "machine", "device", "threads"} <= set(stage["environment"])
    sealed = json.loads((trained.folder / "DONE").read_text())
    assert sealed == {name: file_digest(trained.folder / name) for name in order[:-1]}
    assert trained.result["state_digest"] == state_digest(load_state(trained.folder / "state.safetensors"))


def test_a_training_is_done_once(make_lab: Callable[..., Lab], starts: list[Start]) -> None:
    lab = make_lab()
    first, second = lab.train(lab.initial), make_lab().train(lab.initial)
    assert len(starts) == 1
    assert (first.cached, second.cached) == (False, True)
    assert first.result == second.result


@pytest.mark.parametrize(
    "overrides",
    [
        ("optim.lr=0.06",), ("train.steps=31it",), ("train.batch_size=17",), ("train.eval_every=5it",),
        ("train.precision=bf16",), ("train.channels_last=true",), ("train.drop_last=true",),
        ("schedule.warmup=3it",), ("seeds.order=1",), ("seeds.split=1",), ("data.crop=1",), ("data.limit=95",),
        ("optim.clip_norm=1",), ("train.eval_batch_size=7",), ("data.scaling=l2",), ("prunable.exclude=[fc]",),
    ],
    ids=lambda overrides: overrides[0],
)  # fmt: skip
def test_whatever_changes_a_number_changes_the_key(make_lab: Callable[..., Lab], overrides: tuple[str, ...]) -> None:
    one, other = make_lab(), make_lab(*overrides)
    assert one._train_inputs(one.initial, None) != other._train_inputs(other.initial, None)


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.threads=3",), ("train.checkpoint_steps=2",), ("train.checkpoint_minutes=1",), ("rewind.to=9it",),
        ("method.rounds=5",), ("controls.reinit=2",), ("seeds.mask=3",), ("name=other",), ("optim.eps=1e-3",),
        ("optim.betas=[0.5,0.5]",),
    ],
    ids=lambda overrides: overrides[0],
)  # fmt: skip
def test_what_changes_no_number_of_a_dense_sgd_run_leaves_the_key(
    make_lab: Callable[..., Lab], overrides: tuple[str, ...]
) -> None:
    one, other = make_lab(), make_lab(*overrides)
    assert one._train_inputs(one.initial, None) == other._train_inputs(other.initial, None)


def test_same_mask_and_seeds_in_two_stores_give_the_same_bits(
    make_lab: Callable[..., Lab], half: Callable[..., Mask]
) -> None:
    """T1.5: a round that prunes nothing repeats the round before it."""
    outcomes: list[Trained] = []
    for runs in ("one", "two"):
        lab = make_lab(*MOMENTUM, *AUGMENTED, runs=runs)
        torch.manual_seed(len(outcomes))  # whatever state the global generator is in
        outcomes.append(lab.train(replace(lab.initial, mask=half(lab.initial.mask))))
    one, two = outcomes
    assert not one.cached
    assert not two.cached
    assert (one.folder / "state.safetensors").read_bytes() == (two.folder / "state.safetensors").read_bytes()
    assert {**one.result, "seconds": 0} == {**two.result, "seconds": 0}


def test_a_later_wish_for_a_kept_step_trains_only_up_to_it(make_lab: Callable[..., Lab], starts: list[Start]) -> None:
    lab = make_lab(*MOMENTUM, *AUGMENTED)
    reference = make_lab(*MOMENTUM, *AUGMENTED, runs="reference").train(lab.initial, keep=[5, 7])
    starts.clear()
    dense = lab.train(lab.initial, keep=[7])
    again = lab.train(lab.initial, keep=[5, 7])
    assert [len(start.rates) for start in starts] == [30, 5]
    assert again.key == dense.key
    assert not again.cached  # something was trained
    assert lab.train(lab.initial, keep=[5, 7]).cached
    assert len(starts) == 2
    for step in (5, 7):
        assert again.at(step) == reference.at(step)
        assert again.optimizer_at(step) == reference.optimizer_at(step)
        assert_same_bits(again.at(step).tensors(), reference.at(step).tensors())


def test_steps_outside_the_training_cannot_be_kept(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    with pytest.raises(LotteryError, match=r"got \[31\], expected steps between 0 and 30"):
        lab.train(lab.initial, keep=[31])
    with pytest.raises(LotteryError, match=r"got \[5\], expected steps between 10 and 30"):
        lab.train(replace(lab.initial, step=10, steps=20), keep=[5])


def test_asking_for_a_step_that_was_not_kept(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    trained = lab.train(lab.initial, keep=[7])
    with pytest.raises(LotteryError, match=r"step 8 of training .* was not kept; kept: \[7\]"):
        trained.at(8)


@pytest.mark.parametrize("name", ["result.json", "state.safetensors", "state_00000007.safetensors"])
@pytest.mark.parametrize("how", ["a byte", "missing", "truncated"])
def test_an_altered_result_is_refused(make_lab: Callable[..., Lab], name: str, how: str) -> None:
    lab = make_lab()
    folder = lab.train(lab.initial, keep=[7]).folder
    data = (folder / name).read_bytes()
    if how == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(changed(data) if how == "a byte" else data[: len(data) // 2])

    def use(trained: Trained) -> None:
        trained.state.tensors()
        trained.at(7).tensors()

    with pytest.raises(LotteryError, match=str(folder / name)) as caught:
        use(make_lab().train(lab.initial, keep=[7]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", '{"result.json": "0123"}', "no json"])
def test_a_seal_that_does_not_vouch_for_the_result_is_refused(make_lab: Callable[..., Lab], content: str) -> None:
    lab = make_lab()
    folder = lab.train(lab.initial).folder
    (folder / "DONE").write_text(content)
    with pytest.raises(
        LotteryError, match=r"result\.json: changed since the stage was finished; .* store verify --remove"
    ):
        lab.train(lab.initial)


def test_a_network_without_momentum_keeps_an_empty_optimizer_state(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("rewind.optimizer=rewind")
    dense = lab.train(lab.initial, keep=[7])
    kept = dense.optimizer_at(7)
    assert kept is not None
    assert kept.tensors() == {}
    assert lab.train(lab.rewind.ticket(dense, dense, lab.initial.mask)).result["steps"] == 23


# -- Lightning ------------------------------------------------------------------------------------------------------


def test_nothing_of_lightning_reaches_terminal_or_folder(
    make_lab: Callable[..., Lab], capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    lab = make_lab()
    trained = lab.train(lab.initial)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert all(path.is_file() for path in trained.folder.iterdir())


def kill_after_the_batch_that_ends_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM while Lightning is at work between two chunks, or after the last."""

    def on_train_batch_end(module: MaskedTraining, *_: object) -> None:
        if module.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MaskedTraining, "on_train_batch_end", on_train_batch_end)


def test_a_signal_between_two_chunks_saves_at_the_next_step(
    make_lab: Callable[..., Lab], signals: Callable[[], StopFlag], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_lab(runs="undisturbed").train(make_lab().initial)
    kill_after_the_batch_that_ends_at(10, monkeypatch)
    stop = signals()
    lab = make_lab(stop=stop)
    with pytest.raises(Interrupted, match="SIGTERM at step 11;"):
        lab.train(lab.initial)
    stop.signum = None
    assert lab.train(lab.initial).result["state_digest"] == expected.result["state_digest"]


def continued(lab: Lab, stop: StopFlag, starts: list[Start]) -> dict[str, object]:
    """The result of a training that was interrupted after its last step; no step is taken again."""
    stop.signum = None
    trained = lab.train(lab.initial)
    assert starts[-1].rates == []
    return {**trained.result, "seconds": 0}


def test_a_signal_after_the_last_step_saves_there(
    make_lab: Callable[..., Lab], signals: Callable[[], StopFlag], monkeypatch: pytest.MonkeyPatch,
    starts: list[Start],
) -> None:  # fmt: skip
    expected = make_lab(runs="undisturbed").train(make_lab().initial)
    stop = signals()
    lab = make_lab(stop=stop)
    with monkeypatch.context() as patch:
        kill_after_the_batch_that_ends_at(30, patch)
        with pytest.raises(Interrupted, match="SIGTERM at step 30;"):
            lab.train(lab.initial)
    with pytest.raises(Interrupted, match="SIGTERM between two trainings;"):
        lab.train(replace(lab.initial, steps=7))
    assert continued(lab, stop, starts) == {**expected.result, "seconds": 0}


@pytest.mark.parametrize(
    ("split", "step", "occurrence"),
    [("validation", 0, 1), ("validation", 10, 1), ("validation", 30, 1), ("train", 30, 1), ("test", 30, 2)],
)
def test_a_signal_while_the_network_is_measured_saves_and_no_batch_is_measured_again(
    make_lab: Callable[..., Lab], signals: Callable[[], StopFlag], monkeypatch: pytest.MonkeyPatch,
    split: str, step: int, occurrence: int,
) -> None:  # fmt: skip
    """At a point of the curve, and at the final scores: the last is measured with the early-stop weights put in."""
    options = ("optim.lr=2.0", "train.eval_batch_size=7", "train.batch_size=8")  # so that the best step is not the last
    met: list[str] = []
    measured: list[tuple[int, str, int]] = []  # step, split, number of the batch
    original, armed = MaskedTraining.batches, False

    def batches(module: MaskedTraining, of: str, first: int = 0) -> Iterator[object]:
        at = module.progress.step
        met.extend([of] if at == step else [])
        for number, batch in enumerate(original(module, of, first), first):
            if armed and at == step and of == split and met.count(of) == occurrence and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            measured.append((at, of, number))
            yield batch

    monkeypatch.setattr(MaskedTraining, "batches", batches)
    expected = make_lab(*options, runs="undisturbed").train(make_lab(*options).initial)
    assert expected.result["early_stop_step"] < 30
    undisturbed = list(measured)
    measured.clear()
    met.clear()
    stop, armed = signals(), True
    lab = make_lab(*options, stop=stop)
    with pytest.raises(Interrupted, match=f"SIGTERM at step {step};"):
        lab.train(lab.initial)
    stop.signum, armed = None, False
    assert {**lab.train(lab.initial).result, "seconds": 0} == {**expected.result, "seconds": 0}
    assert measured == undisturbed


def test_our_handlers_are_back_after_every_training(
    make_lab: Callable[..., Lab], signals: Callable[[], StopFlag], on_batch: list[Callable[[int], object]]
) -> None:
    stop = signals()
    ours = [signal.getsignal(signum) for signum in HANDLED]
    lab = make_lab(stop=stop)
    lab.train(lab.initial)
    assert [signal.getsignal(signum) for signum in HANDLED] == ours
    on_batch.append(lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 12 else None)
    with pytest.raises(Interrupted):
        lab.train(replace(lab.initial, steps=20))
    assert [signal.getsignal(signum) for signum in HANDLED] == ours


def test_a_second_ctrl_c_leaves_at_once_and_the_last_checkpoint_stays(
    make_lab: Callable[..., Lab], signals: Callable[[], StopFlag], on_batch: list[Callable[[int], object]]
) -> None:
    stop = signals()
    lab = make_lab("train.checkpoint_steps=5", stop=stop)

    def impatient(step: int) -> None:
        if step == 12:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    on_batch.append(impatient)
    with pytest.raises(KeyboardInterrupt):
        lab.train(lab.initial)
    assert signal.getsignal(signal.SIGINT) == stop._handle
    on_batch.clear()
    stop.signum = None
    drawn: list[int] = []
    on_batch.append(drawn.append)
    lab.train(lab.initial)
    assert drawn == list(range(10, 30))


def test_slurm_is_not_detected(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    """anchors E.3: under SLURM Lightning would install handlers of its own, and complain about srun and tasks."""
    expected = make_lab(runs="undisturbed").train(make_lab().initial)
    slurm = {"NTASKS": "4", "JOB_NAME": "lottery", "JOB_ID": "17", "NNODES": "2", "NTASKS_PER_NODE": "2", "PROCID": "0"}
    for name, value in (slurm | {"LOCALID": "0", "NODEID": "0", "NODELIST": "n[1-2]"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    handlers: list[object] = []
    measure = MaskedTraining.measure

    def measured(module: MaskedTraining) -> None:
        handlers.append(signal.getsignal(signal.SIGUSR1))
        measure(module)

    monkeypatch.setattr(MaskedTraining, "measure", measured)
    lab = make_lab()
    assert lab.train(lab.initial).result["state_digest"] == expected.result["state_digest"]
    assert set(handlers) == {signal.SIG_DFL}
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_an_exception_inside_a_training_comes_out_as_it_is_and_can_be_run_again(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    expected = make_lab(runs="undisturbed").train(lab.initial, keep=[7])
    original = train.save_state

    def full_disk(state: object, path: Path) -> None:
        if path.name == "state.safetensors":
            raise LotteryError(f"{path}: cannot be written: No space left on device")
        original(state, path)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "save_state", full_disk)
    with pytest.raises(LotteryError, match="No space left"):
        lab.train(lab.initial, keep=[7])
    monkeypatch.setattr(train, "save_state", original)
    trained = lab.train(lab.initial, keep=[7])
    assert {**trained.result, "seconds": 0} == {**expected.result, "seconds": 0}


def test_a_killed_sealing_loses_no_training(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, starts: list[Start]
) -> None:
    """Between the last result and DONE the checkpoint is still there."""
    lab = make_lab("train.checkpoint_steps=10")

    def killed(path: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lottery.stages.store.file_digest", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.train(lab.initial)
    trained = lab.train(lab.initial)
    assert [len(start.rates) for start in starts] == [30, 0]
    assert not (trained.folder / "checkpoint.safetensors").exists()


def test_removing_a_finished_stage_computes_it_again(make_lab: Callable[..., Lab], starts: list[Start]) -> None:
    lab = make_lab()
    first = lab.train(lab.initial)
    shutil.rmtree(first.folder)
    assert lab.train(lab.initial).result["state_digest"] == first.result["state_digest"]
    assert len(starts) == 2
