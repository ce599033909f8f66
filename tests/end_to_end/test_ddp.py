"""`trainer=ddp` on real processes: one process's study up to rounding, one writer, nothing lost when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import QUICK, call
from rank_tools import free_port
from real_processes import PATIENCE, Checkpoints, assert_interrupted, forked, wait_for
from safetensors.torch import load_file

from lottery.__main__ import main
from lottery.ticket import Mask

# Batch normalisation, augmentation, momentum, weight decay; 202 images are four batches of 43, and one of 30.
STUDY = (
    "data=digits", "data.limit=202", "data.validation=60", "data.flip=true", "data.crop=1",
    "model=tiny", "optim.momentum=0.9", "optim.weight_decay=1e-3", "optim.lr=0.02",
    "method.rounds=2", "rewind=weights", "rewind.to=15it",
    "train.steps=60it", "train.batch_size=43", "train.eval_every=20it", "train.checkpoint_steps=15",
    "tracker=none", "trainer.progress=false", "trainer.threads=1",
)  # fmt: skip
DDP = ("trainer=ddp", "trainer.accelerator=cpu")
# Of weights of order 1. About 5e-7 is found; where rounding moves an activation across the kink of a ReLU, more.
TOLERANCE = 1e-3
EXACT = ("round", "control", "copy", "density", "density_weights", "kept", "prunable", "collapsed_layers",
         "step_rewind", "steps")  # fmt: skip


def study(runs: Path, *trainer: str) -> list[str]:
    configs = runs.parent / "configs"
    (configs / "model").mkdir(parents=True, exist_ok=True)
    (configs / "model" / "tiny.yaml").write_text("_target_: tiny_networks.convolutional\ndropout: 0.0\n")
    return [*STUDY, *(trainer or DDP), f"paths.runs={runs}", "--config-dir", str(configs)]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], list[ForkProcess]]:
    """Starts the study as two ranks, as torchrun does; their output is in `rank0` and `rank1`. (Forks save imports.)"""

    def start(runs: Path) -> list[ForkProcess]:
        port, processes = free_port(), []
        for rank in range(2):
            with monkeypatch.context() as patch:
                for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("MASTER_PORT", port)):
                    patch.setenv(name, str(value))
                processes.append(forked(study(runs), tmp_path / f"rank{rank}"))
        return processes

    return start


def ended(*processes: ForkProcess) -> list[int | None]:
    """The exit statuses, when they have come."""
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def rows(runs: Path) -> list[dict[str, Any]]:
    """The table of the one study."""
    (folder,) = (path for path in (runs / "study").iterdir())
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def record(runs: Path) -> dict[str, Any]:
    """Everything that the study found: rows, masks, and the bytes of states."""
    (folder,) = (runs / "study").iterdir()
    states = (path for path in (runs / ".store").rglob("*.safetensors") if path.name[0] != ".")
    return {
        "rows": [{k: v for k, v in row.items() if k not in ("seconds", "cached")} for row in rows(runs)],
        "masks": {path.name: Mask.load(path).digest for path in (folder / "masks").iterdir()},
        "states": {path.relative_to(runs): path.read_bytes() for path in states},
    }


def trained(runs: Path) -> list[dict[str, Any]]:
    """The trained networks, round by round."""
    (folder,) = (runs / "study").iterdir()
    keys = [json.loads(path.read_text())["stages"]["train"] for path in sorted((folder / "rounds").iterdir())]
    return [load_file(runs / ".store" / "train" / key / "state.safetensors") for key in keys]


def child_of(pid: int | None) -> int | None:
    """The one process that `pid` has started."""
    listed = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid=,args="], capture_output=True, text=True)
    found = [int(line.split()[0]) for line in listed.stdout.splitlines() if "lottery.ranks.follow" in line]
    return found[0] if found else None


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_two_processes_find_what_one_finds(tmp_path: Path, ranks: Callable[[Path], list[ForkProcess]]) -> None:
    """Rounds of IMP, on two ranks; killed in every way and continued, with the same bits."""
    one, two, killed = tmp_path / "one", tmp_path / "two", tmp_path / "killed"
    assert main(study(one, "trainer=cpu")) == 0
    assert ended(*ranks(two)) == [0, 0], (tmp_path / "rank0").read_text()

    assert len(rows(one)) == 3
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        assert [theirs[name] for name in EXACT] == [mine[name] for name in EXACT]
        for name in ("train_loss", "val_loss", "test_loss", "probe/l2_from_start"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-2), name
        for name in ("train_accuracy", "val_accuracy", "test_accuracy"):
            assert theirs[name] == pytest.approx(mine[name], abs=0.03), name
    for mine, theirs in zip(trained(one), trained(two), strict=True):
        assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < TOLERANCE

    # Only rank 0 writes and speaks.
    (folder,) = (two / "study").iterdir()
    assert (tmp_path / "rank1").read_text() == ""
    assert len((tmp_path / "rank0").read_text().splitlines()) == len((folder / "study.log").read_text().splitlines())
    assert sorted(path.name for path in two.iterdir()) == [".store", "study"]
    facts = [json.loads(path.read_text())["environment"] for path in (two / ".store").rglob("stage.json")]
    assert [fact["processes"] for fact in facts] == ["2"] * 3

    # A rank is killed, then rank 0, then both are asked to leave: the same command goes on, however it is started.
    output = tmp_path / "output"
    begun = Checkpoints(killed)
    process = forked(study(killed), output)  # here rank 0 starts the other one
    wait_for(lambda: begun.written() or not process.is_alive())
    other = child_of(process.pid)
    assert other is not None, output.read_text()
    os.kill(other, signal.SIGKILL)
    assert ended(process) == [1]
    *_, last = output.read_text().splitlines()
    assert last == "lottery: rank 1 was ended by SIGKILL"
    assert output.read_text().count("lottery:") == 1

    begun = Checkpoints(killed)
    first, second = ranks(killed)
    wait_for(lambda: begun.written() or not first.is_alive())
    first.kill()
    assert ended(first, second)[0] == -signal.SIGKILL
    assert second.exitcode not in (0, None)
    assert (tmp_path / "rank1").read_text() == ""

    begun = Checkpoints(killed)
    first, second = ranks(killed)
    wait_for(lambda: begun.written() or not first.is_alive())
    os.kill(second.pid or 0, signal.SIGTERM)
    assert ended(first, second) == [143, 143]
    assert_interrupted(signal.SIGTERM, first.exitcode, (tmp_path / "rank0").read_text())
    assert (tmp_path / "rank1").read_text() == ""

    assert main(study(killed)) == 0
    assert record(killed) == record(two)
    assert main(study(killed)) == 0  # found, by one process: nobody is started
    assert child_of(os.getpid()) is None


def test_a_wrong_number_of_tasks_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_PROCID", "0")
    for tasks in ("1", "3"):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
        outcome = call(*QUICK, *DDP, "trainer.nodes=2")
        assert outcome.status == 2
        assert "srun --ntasks-per-node" in outcome.line or "set tasks_per_node=2 (--ntasks-per-node)" in outcome.line
    assert "SLURM started 3 tasks, but trainer.devices=2 and trainer.nodes=2 need 4" in outcome.line
    monkeypatch.setenv("SLURM_PROCID", "1")  # the other tasks leave it to the first
    outcome = call(*QUICK, *DDP, "trainer.nodes=2")
    assert (outcome.status, outcome.err) == (2, "")
    assert not list(tmp_path.iterdir())


def test_what_slurm_left_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SLURM_NTASKS of an allocation, seen by a process that srun did not start; and variables that are no numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    line = call(*QUICK, *DDP, "trainer.devices=2").line
    assert "SLURM_NTASKS=4 in the environment speaks of 4 tasks, but trainer.devices=2" in line
    assert "`unset SLURM_NTASKS`" in line
    monkeypatch.setenv("SLURM_NTASKS", "4(x2)")
    assert (
        "SLURM_NTASKS=4(x2) in the environment: expected a whole number" in call(*QUICK, *DDP, "trainer.devices=2").line
    )
    assert not list(tmp_path.iterdir())


def test_gpus_that_are_not_there_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    outcome = call(*QUICK, "trainer=ddp", "trainer.devices=3")
    assert (outcome.status, outcome.line) == (
        2,
        "lottery: trainer.devices: 3 GPUs are needed on this machine, 1 are there",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_train_a_shallow_network(tmp_path: Path) -> None:
    """Of a layer ticket; what rank 0 stores is the dense network's state, as one process does."""
    options = ["data=digits", "data.limit=64", "model=resnet20", "model.depth=14", "model.width=4", "method=layers"]
    options += ["layer_criterion=l1", "method.remove=[2]", "method.scored=init", "train.steps=6it"]
    options += ["train.batch_size=16", "probes=none", "tracker=none", "trainer.progress=false", "trainer.threads=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*options, "trainer=cpu", f"paths.runs={one}"]) == 0
    assert ended(forked([*options, *DDP, "trainer.devices=2", f"paths.runs={two}"], tmp_path / "output")) == [0]
    assert [row["removed_units"] for row in rows(two)] == [row["removed_units"] for row in rows(one)]
    assert len(rows(two)[1]["removed_units"]) == 2
    for mine, theirs in zip(trained(one), trained(two), strict=True):
        assert set(mine) == set(theirs)
        assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < TOLERANCE
