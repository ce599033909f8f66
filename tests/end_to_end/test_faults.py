"""What may go wrong around a study: disks, other processes, dead machines. Nothing finished is lost or differs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from command_line_tools import call
from omegaconf import DictConfig
from real_processes import PATIENCE, TRAININGS, begun, command, forked, record, rows, wait_for
from torch.optim import Optimizer
from training_tools import Start

from lottery import lease
from lottery.errors import Interrupted
from lottery.lease import NAME, Holder
from lottery.stages.lab import Lab
from lottery.study import Study
from lottery.training.module import MaskedTraining

ELSEWHERE = replace(Holder.this_process("dead/machine"), id="x", host="node7", kernel="another")


@pytest.fixture(autouse=True)
def _no_silent_processes(monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    """None that another test has seen silent: their leases are taken over at once."""
    monkeypatch.setattr(lease, "SILENT", {})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of the study when nothing happens to it."""
    runs = tmp_path_factory.mktemp("undisturbed")
    assert call(*command(runs)).status == 0
    return runs


# -- disks -------------------------------------------------------------------------------------------------------------


def mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=150k", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not allowed to mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.slow
def test_a_store_on_a_full_disk(disk: Path, tmp_path: Path, undisturbed: Path) -> None:
    """It is full in the middle of a write, after some trainings; with more room the same command goes on."""
    runs = tmp_path / "runs"
    outcome = call(*command(runs, f"paths.store={disk}"))
    assert outcome.status == 1
    assert "No space left on device" in outcome.line
    finished = rows(runs)
    assert 0 < len(finished) < TRAININGS
    mount("-o", "remount,size=10m", str(disk))
    assert call(*command(runs, f"paths.store={disk}")).status == 0
    assert rows(runs)[: len(finished)] == finished
    assert record(runs, disk) == record(undisturbed)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_ends_no_training(
    disk: Path, tmp_path: Path, undisturbed: Path, on_batch: list[Callable[[int], object]]
) -> None:
    """The disk is full for the moment: the training goes on, says so, and there is room when it is done."""
    runs, ballast = tmp_path / "runs", disk / "ballast"

    def fill(step: int) -> None:
        if step == 60:
            with pytest.raises(OSError, match="No space"), ballast.open("wb") as file:
                file.write(bytes(1 << 20))
        if step == 200:
            ballast.unlink(missing_ok=True)

    mount("-o", "remount,size=10m", str(disk))
    mount("-o", "remount,size=256k", str(disk))
    on_batch.append(fill)
    outcome = call(*command(runs, f"paths.store={disk}", "rewind.to=40it"))
    assert outcome.status == 0
    assert "the training goes on without this checkpoint" in outcome.out
    on_batch.clear()
    again = tmp_path / "again"
    assert call(*command(again, "rewind.to=40it")).status == 0
    assert record(runs, disk) == record(again)


def test_a_store_that_becomes_read_only(
    disk: Path, tmp_path: Path, undisturbed: Path, on_batch: list[Callable[[int], object]]
) -> None:
    """As a file system does that has met an error: before a checkpoint of the third training."""
    runs, trainings = tmp_path / "runs", [0]

    def protect(step: int) -> None:
        trainings[0] += step == 80
        if step == 80 and trainings[0] == 3:
            mount("-o", "remount,ro", str(disk))

    mount("-o", "remount,size=10m", str(disk))
    on_batch.append(protect)
    process = forked(command(runs, f"paths.store={disk}"), tmp_path / "output")
    process.join(PATIENCE)
    said = (tmp_path / "output").read_text()
    assert process.exitcode == 1, said
    assert "Read-only file system" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert [row["round"] for row in rows(runs)] == [0, 1]
    refused = call(*command(runs, f"paths.store={disk}"))
    assert refused.status == 2
    assert "paths.store: cannot write to" in refused.line
    mount("-o", "remount,rw", str(disk))
    on_batch.clear()
    assert call(*command(runs, f"paths.store={disk}")).status == 0
    assert record(runs, disk) == record(undisturbed)


def test_a_store_without_atomic_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some object stores that are mounted as folders cannot replace a file by renaming another."""

    def rename(source: object, target: Path) -> None:
        if target.parent.name == "store":
            raise OSError(38, "Function not implemented")
        original(source, target)

    original = os.replace
    monkeypatch.setattr(os, "replace", rename)
    outcome = call(*command(tmp_path / "runs", f"paths.store={tmp_path / 'store'}"))
    assert outcome.status == 2
    assert "store is on a file system without atomic rename" in outcome.line
    assert not list(tmp_path.rglob("*.jsonl"))


# -- others at work ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[tuple[int, int]]]:
    """(process, step) of every training begun or continued so far, also by forked processes."""
    path, prepare = tmp_path / "trainings", MaskedTraining.prepare

    def told(module: MaskedTraining, optimizer: Optimizer) -> None:
        with path.open("a") as file:
            file.write(f"{os.getpid()} {module.progress.step}\n")
        prepare(module, optimizer)

    path.touch()
    monkeypatch.setattr(MaskedTraining, "prepare", told)
    return lambda: [(int(pid), int(step)) for pid, step in map(str.split, path.read_text().splitlines())]


@pytest.mark.slow
def test_two_processes_on_the_same_study(
    tmp_path: Path, undisturbed: Path, trainings: Callable[[], list[tuple[int, int]]]
) -> None:
    """The second waits for the first, says so, and prints the same table."""
    runs, outputs = tmp_path / "runs", [tmp_path / "one", tmp_path / "two"]
    processes = [forked(command(runs), output) for output in outputs]
    for process in processes:
        process.join(PATIENCE)
    texts = [output.read_text() for output in outputs]
    assert [process.exitcode for process in processes] == [0, 0], texts
    assert sum("waiting for imp_rewind/" in text and "this very study" in text for text in texts) == 1
    assert len(trainings()) == TRAININGS
    assert len({pid for pid, _ in trainings()}) == 1
    assert record(runs) == record(undisturbed)


@pytest.mark.slow
def test_two_studies_that_need_the_same_dense_run(
    tmp_path: Path, trainings: Callable[[], list[tuple[int, int]]]
) -> None:
    """Both at once, the first one killed in the middle of it: the second takes over where it was, at once."""
    runs, long = tmp_path / "runs", ("train.steps=2000it", "train.checkpoint_steps=100", "method.rounds=1")
    one = forked(command(runs, *long), tmp_path / "one")
    wait_for(lambda: bool(list(runs.rglob("checkpoint.safetensors"))))
    two = forked(command(runs, *long, "method.rate=0.5"), tmp_path / "two")
    wait_for(lambda: "the same train stage" in (tmp_path / "two").read_text() or not two.is_alive())
    one.kill()
    one.join()
    two.join(PATIENCE)
    assert two.exitcode == 0, (tmp_path / "two").read_text()
    [(first, start), (second, continued), *rest] = trainings()
    assert (first, start, second) == (one.pid, 0, two.pid)
    assert continued >= 100
    assert [pid for pid, _ in rest] == [two.pid] * 2  # its own round and control
    one = forked(command(runs, *long), tmp_path / "one")
    one.join(PATIENCE)
    assert one.exitcode == 0
    assert [pid for pid, _ in trainings()[4:]] == [one.pid] * 2
    assert begun(runs) == 5


def test_a_stage_of_a_machine_that_died_is_taken_over(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lease is there and nobody renews it; its checkpoint is there too, and is continued."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    study = Study(configure(runs="expected"))
    expected = study.run()
    again = Study(configure())
    dense = Path(again.config.paths.store) / "train" / study_stage(study, 0)
    dense.mkdir(parents=True)
    (dense / NAME).write_text(json.dumps(asdict(ELSEWHERE)))
    table = again.run()
    assert "waiting for dead/machine, process" in capsys.readouterr().out
    assert [row["weights_digest"] for row in table] == [row["weights_digest"] for row in expected]
    assert not list(dense.glob(".lease*"))


def study_stage(study: Study, round: int) -> str:
    """The key of a round's training."""
    details = json.loads((study.folder.path / "rounds" / f"round_{round:03d}.json").read_text())
    return str(details["stages"]["train"])


def test_who_slept_while_another_took_over_writes_no_more(
    make_lab: Callable[..., Lab], on_batch: list[Callable[[int], object]], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A suspended machine wakes up in mid-training. It waits for the new holder, who then dies, and continues."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    expected = make_lab(runs="undisturbed").train(make_lab().initial)
    lab = make_lab("train.checkpoint_steps=5")
    steps: list[int] = []

    def taken_over(step: int) -> None:
        steps.append(step)
        if len(steps) == 13:
            (held,) = lab.store.root.rglob(NAME)
            held.write_text(json.dumps(asdict(ELSEWHERE)))

    on_batch.append(taken_over)
    trained = lab.train(lab.initial)
    assert "taken over by dead/machine" in caplog.text
    assert "waiting for dead/machine" in caplog.text
    assert steps == [*range(15), *range(10, 30)]  # it found out at the checkpoint of step 15; the last good one is 10
    assert {**trained.result, "seconds": 0} == {**expected.result, "seconds": 0}


def test_a_run_folder_that_another_took_over_is_left_alone(
    configure: Callable[..., DictConfig], on_batch: list[Callable[[int], object]]
) -> None:
    study = Study(configure())
    on_batch.append(lambda step: step == 29 and (study.folder.path / NAME).write_text(json.dumps(asdict(ELSEWHERE))))
    with pytest.raises(lease.LeaseLost, match="taken over by dead/machine"):
        study.run()
    assert not (study.folder.path / "rounds.jsonl").exists()
    (study.folder.path / NAME).unlink()
    on_batch.clear()
    assert len(Study(configure()).run()) == 3


# -- what is shared ----------------------------------------------------------------------------------------------------


def test_more_rounds_and_another_method_train_only_what_is_new(
    configure: Callable[..., DictConfig], starts: list[Start]
) -> None:
    """IMP of 5 rounds, then 8: three more trainings. Controls and a second method: the dense run is there."""

    def trainings(*overrides: str) -> int:
        before = len(starts)
        Study(configure(*overrides)).run()
        return len(starts) - before

    assert trainings("method.rounds=5") == 6
    assert trainings("method.rounds=8") == 3
    assert trainings("method.rounds=8", "controls.reinit=1", "controls.random=1") == 16
    other = configure("method.rounds=1")
    other.method = {"_target_": "tiny_methods.RandomHalf", "rounds": 1}
    before = len(starts)
    Study(other).run()
    assert len(starts) - before == 1


def test_a_signal_while_waiting_ends_the_wait(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(configure())
    study.folder.path.mkdir(parents=True)
    (study.folder.path / NAME).write_text(json.dumps(asdict(ELSEWHERE)))
    monkeypatch.setattr(lease, "sleep", lambda seconds: setattr(study.stop, "signum", 15))
    with pytest.raises(Interrupted, match="SIGTERM while it waited for another process"):
        study.run()
