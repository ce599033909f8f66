"""Several workers in one study: the same bits as one process, whatever is killed, and nothing is trained twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import ROOT, environment
from omegaconf import DictConfig
from real_processes import (
    PATIENCE,
    TRAININGS,
    Checkpoints,
    assert_interrupted,
    command,
    forked,
    record,
    rows,
    wait_for,
)  # fmt: skip
from training_tools import small_config

from lottery import workers
from lottery.__main__ import main
from lottery.compose import composed
from lottery.ranks import alone
from lottery.ranks.place import Place
from lottery.record.progress import StudyProgress
from lottery.stages.lab import Lab
from lottery.tracking.trackers import NoTracker
from lottery.workers import number_of

TWO = "trainer.workers=2"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a study with two workers, which are forked: this process has used one thread only."""
    monkeypatch.setattr(workers, "fresh", lambda: True)
    monkeypatch.setattr("lottery.workers.GO_SECONDS", 0.01)

    def start(*overrides: str, runs: str = "runs") -> ForkProcess:
        return forked(command(tmp_path / runs, TWO, *overrides), tmp_path / f"{runs}.log")

    return start


@pytest.fixture(scope="module")
def alone_found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds."""
    runs = tmp_path_factory.mktemp("alone")
    assert main(command(runs)) == 0
    return record(runs)


def children(process: ForkProcess | subprocess.Popen[bytes]) -> list[int]:
    """The processes that this one has started."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def under_way(start: Any, runs: Path, *overrides: str) -> tuple[ForkProcess, list[int]]:
    """A study of which a training is under way, and its two workers."""
    checkpoints = Checkpoints(runs)
    process = start(*overrides)
    wait_for(lambda: checkpoints.written() or not process.is_alive())
    found = children(process)
    assert len(found) == 2
    return process, found


def test_the_same_rows_masks_and_bits(tmp_path: Path, start: Any, alone_found: dict[str, Any]) -> None:
    process = start()
    process.join(PATIENCE)
    assert process.exitcode == 0, (tmp_path / "runs.log").read_text()
    assert record(tmp_path / "runs") == alone_found
    assert not any(row["cached"] for row in rows(tmp_path / "runs"))  # they were computed now, by workers
    assert not list((tmp_path / "runs").rglob(".lease*"))


@pytest.mark.slow
def test_workers_that_are_spawned(tmp_path: Path, alone_found: dict[str, Any]) -> None:
    """As in a notebook, or where a GPU is: a process that may have threads is not forked."""
    assert not workers.fresh()
    assert main(command(tmp_path, TWO)) == 0
    assert record(tmp_path) == alone_found
    assert not any(row["cached"] for row in rows(tmp_path))


@pytest.mark.slow
def test_workers_killed_one_by_one(tmp_path: Path, start: Any, alone_found: dict[str, Any]) -> None:
    """The first in its first training, the second in one after; the study ends without them."""
    runs, log = tmp_path / "runs", tmp_path / "runs.log"
    process, (first, second) = under_way(start, runs)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: "was killed" in log.read_text())
    checkpoints = Checkpoints(runs)
    wait_for(lambda: checkpoints.written() or not process.is_alive())
    os.kill(second, signal.SIGKILL)
    process.join(PATIENCE)
    assert process.exitcode == 0, log.read_text()
    assert log.read_text().count("was killed (out of memory?)") == 2
    assert record(runs) == alone_found


@pytest.mark.slow
def test_the_main_process_killed(tmp_path: Path, start: Any, alone_found: dict[str, Any]) -> None:
    """Its workers save their trainings and end by themselves; the same command goes on."""
    runs = tmp_path / "runs"
    process, found = under_way(start, runs)
    process.kill()
    process.join(PATIENCE)
    wait_for(lambda: not running(found))
    again = start()
    again.join(PATIENCE)
    assert "continue training" in (tmp_path / "runs.log").read_text()
    assert again.exitcode == 0
    assert record(runs) == alone_found


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_ends_all(tmp_path: Path, start: Any, alone_found: dict[str, Any], signum: signal.Signals) -> None:
    runs, log = tmp_path / "runs", tmp_path / "runs.log"
    process, found = under_way(start, runs, "train.checkpoint_steps=5")
    os.kill(process.pid or 0, signum)
    process.join(PATIENCE)
    assert_interrupted(signum, process.exitcode, log.read_text())
    assert not running(found)
    assert not list(runs.rglob(".lease*"))
    again = start()
    again.join(PATIENCE)
    assert "continue training" in log.read_text()
    assert record(runs) == alone_found


def test_points_of_curves_come_while_workers_train(tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before their round is recorded, once each, with the values of the round's own curve."""

    class Writes(NoTracker):
        def note(self, place: dict[str, Any], curve: list[list[Any]], done: bool) -> None:
            with (tmp_path / "events").open("a") as file:
                file.write(json.dumps([place["round"], place["control"], curve, done]) + "\n")

        def points(self, place: dict[str, Any], curve: list[list[Any]]) -> None:
            self.note(place, curve, False)

        def round(self, row: dict[str, Any], curve: list[list[Any]], mask: Path) -> None:
            self.note(row, curve, True)

    monkeypatch.setattr("lottery.study.make_tracker", lambda *_: Writes())
    process = start("train.steps=900it", "train.eval_every=50it", "controls.reinit=1")
    process.join(PATIENCE)
    assert process.exitcode == 0
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    curves = {(round, control): curve for round, control, curve, done in events if done}
    live: dict[tuple[int, str | None], list[Any]] = {place: [] for place in curves}
    recorded = set()
    for round, control, curve, done in events:
        assert done or (round, control) not in recorded, "points come before their round"
        recorded |= {(round, control)} if done else set()
        live[round, control] += [] if done else curve
    assert len(live[0, None]) > 10
    assert any(points for (round, control), points in live.items() if control)
    for place, points in live.items():
        assert len({str(point) for point in points}) == len(points)
        assert {str(point) for point in points} <= {str(point) for point in curves[place]}


def test_points_wait_until_it_is_known_where_their_curve_begins() -> None:
    now = StudyProgress()
    places = [{"round": round, "control": control} for round in range(3) for control in (None, "reinit")]

    def told() -> list[tuple[int, str | None]]:
        return [(place["round"], place["control"]) for place in places if now.next(place)]

    assert told() == [(0, None)]
    now.at(1)
    assert told() == [(1, None)]
    now.at(1, "copy", 1)  # the round is measured, and not recorded
    assert told() == []
    now.at(1, "reinit", 0)
    assert told() == [(1, "reinit"), (2, None)]


@pytest.mark.slow
def test_three_studies_on_one_store_train_nothing_twice(
    tmp_path: Path, start: Any, alone_found: dict[str, Any]
) -> None:
    names = [f"runs{number}" for number in range(3)]
    processes = [start(f"paths.store={tmp_path / 'store'}", runs=name) for name in names]
    for process, name in zip(processes, names, strict=True):
        process.join(PATIENCE)
        assert process.exitcode == 0, (tmp_path / f"{name}.log").read_text()
    computed = [row["weights_digest"] for name in names for row in rows(tmp_path / name) if not row["cached"]]
    assert len(computed) == len(set(computed)) == TRAININGS
    for name in names:
        assert record(tmp_path / name, tmp_path / "store") == alone_found


def test_an_error_is_that_of_one_process(tmp_path: Path, start: Any) -> None:
    """The first ticket diverges: the dense network's row is kept, and the one line names the round."""
    diverging = ("optim.name=sgd", "optim.lr=1e12", "optim.momentum=0.9")
    process = start(*diverging)
    process.join(PATIENCE)
    status = forked(command(tmp_path / "one", *diverging), tmp_path / "one.log")
    status.join(PATIENCE)
    assert process.exitcode == status.exitcode == 1
    last = [(tmp_path / name).read_text().splitlines()[-1] for name in ("runs.log", "one.log")]
    assert last[0] == last[1].replace("/one/", "/runs/")
    assert "loss" in last[0]


@pytest.mark.slow
def test_copies_for_probes_are_trained_by_workers(tmp_path: Path, start: Any) -> None:
    copies = ("probes=none", "+probes.order={_target_:lottery.probes.copies.DataOrder,copies:3}", "method.rounds=1")
    process = start(*copies)
    process.join(PATIENCE)
    assert process.exitcode == 0, (tmp_path / "runs.log").read_text()
    assert main(command(tmp_path / "one", *copies)) == 0
    assert record(tmp_path / "runs") == record(tmp_path / "one")
    assert record(tmp_path / "runs")["done"] > 3 * 3  # dense, ticket, control: three copies of each, and figures


@pytest.mark.slow
def test_auto_on_the_command_line(tmp_path: Path, alone_found: dict[str, Any]) -> None:
    """A real process on two processors, with nothing said of workers."""
    run = [sys.executable, "-m", "lottery", *command(tmp_path), "trainer.workers=auto"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(run, cwd=ROOT, env=environment(OMP_NUM_THREADS="2"), stdout=log, stderr=log)
    wait_for(lambda: len(children(process)) == 2 or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "log").read_text()
    assert process.wait(PATIENCE) == 0
    assert record(tmp_path) == alone_found


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processors and no GPU."""
    monkeypatch.setattr(alone, "OWN_THREADS", 8)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), 1),  # the threads are not given
        (("trainer.threads=1",), 1),  # nothing trains beside a round
        (("trainer.threads=1", "controls.reinit=1", "controls.random=2"), 4),
        (("trainer.threads=4", "controls.reinit=1", "controls.random=2"), 2),
        (("trainer.threads=1", "controls.reinit=1", "controls.random=20"), 8),
        (("trainer.threads=1", "trainer.workers=3"), 3),
        (("trainer.workers=3",), 3),
    ],
)
@pytest.mark.usefixtures("eight")
def test_auto_is_what_processors_and_trainings_allow(overrides: tuple[str, ...], expected: int) -> None:
    assert number_of(small_config(overrides), Place()) == expected


@pytest.mark.usefixtures("eight")
def test_auto_counts_the_parts_of_a_method() -> None:
    points = ("+exp=instability_lenet", "controls=none", "method.points=[0it,10it,20it]")
    assert number_of(composed([*points, "probes=none"]), Place()) == 3
    assert number_of(composed(list(points)), Place()) == 2 * 3  # two copies


@pytest.mark.usefixtures("eight")
def test_auto_keeps_to_what_slurm_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    cfg: DictConfig = small_config(("trainer.threads=1", "controls.random=5"))
    assert number_of(cfg, Place()) == 2
    assert number_of(cfg, Place(world=2)) == 1  # they train one network together


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("trainer.workers=0",), "trainer.workers: got 0, expected auto, or a number from 1 to 1024"),
        (("trainer.workers=many",), "trainer.workers: got 'many', expected auto, or a number from 1 to 1024"),
        (("trainer.workers=2", "trainer.devices=2"), "trainer.workers: got 2, expected 1 or auto where several"),
    ],
)
def test_a_wrong_number_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], line: str
) -> None:
    assert main(command(tmp_path, *overrides)) == 2
    assert capsys.readouterr().err.startswith(f"lottery: {line}")


def test_a_worker_begins_with_another_part(make_lab: partial[Lab]) -> None:
    lab = make_lab()
    assert lab.parts("abcd") == list("abcd")
    lab.first_part = 1 / 2
    assert lab.parts("abcde") == list("cdeab")
