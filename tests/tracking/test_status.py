"""status.json: what it says while a study runs, and how it ends, for those who look from elsewhere."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line_tools import QUICK, call
from rich.console import Console

from lottery.__main__ import main
from lottery.errors import Interrupted, LotteryError
from lottery.lease import kernel
from lottery.record import progress as progress_module
from lottery.record import status as module
from lottery.record.names import STATUS
from lottery.record.progress import AtWork, StudyProgress
from lottery.record.status import Status, StatusFile
from lottery.state import StateRef
from lottery.ticket import Mask, Ticket
from lottery.tracking.terminal import Terminal

PATIENCE = 120.0
# Long enough to be looked at; 100 000 steps of a tiny network take half a minute.
LONG = (*QUICK, "train.steps=100000it", "train.eval_every=50000it", "train.checkpoint_steps=1000")


@pytest.fixture
def ticket() -> Ticket:
    mask = Mask.ones({"w": torch.Size([2])})
    return Ticket(mask, StateRef.of({"w": torch.zeros(2)}), step=100, order_step=100, steps=900)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [1000.0]
    for each in (module, progress_module):
        monkeypatch.setattr(each, "monotonic", lambda: now[0])
    return now


def read(folder: Path) -> Status:
    found = Status.read(folder)
    assert found is not None
    return found


# -- the estimate ------------------------------------------------------------------------------------------------------


def test_time_left_from_the_mean_of_the_trainings_so_far(clock: list[float], ticket: Ticket) -> None:
    """Two trainings of 10 s and 20 s: 15 s each; half of one and two whole ones are left of five: 37.5 s."""
    progress = StudyProgress(trainings=5)
    for seconds in (10, 20):
        clock[0] += seconds
        progress.finished(cached=False)
    progress.tick(ticket, 550)
    assert progress.seconds_left == pytest.approx(15 * (0.5 + 2))


def test_a_training_that_continues_is_timed_from_where_it_continues(clock: list[float], ticket: Ticket) -> None:
    """From step 550 to 640 of 100 … 1000 in 9 s: 10 steps a second, 36 s for the rest, 90 s for each that follows."""
    progress = StudyProgress(trainings=3)
    progress.tick(ticket, 550)
    assert progress.seconds_left is None
    clock[0] += 9
    progress.tick(ticket, 640)
    assert progress.seconds_left == pytest.approx(36 + 2 * 90)


def test_found_trainings_and_waiting_are_no_training_time(clock: list[float], ticket: Ticket) -> None:
    progress = StudyProgress(trainings=3)
    clock[0] += 0.01
    progress.finished(cached=True)
    progress.waiting = "waiting for another study"
    clock[0] += 1000
    progress.tick(ticket, 110)
    assert progress.waiting is None
    clock[0] += 10
    progress.finished(cached=False)
    assert progress.seconds_left == pytest.approx(10)


def test_time_left_with_workers_counts_what_they_did_together(clock: list[float], ticket: Ticket) -> None:
    """Two workers have done one training and two halves in 20 s, of eight: six are left, at 10 s each."""
    progress = StudyProgress(trainings=8)
    progress.works(1, AtWork(0, None, 0, 10, 100, 0.1))
    assert progress.seconds_left == 0  # 0 s for a tenth so far
    clock[0] += 20
    progress.worked(1, training=True)
    for worker, control in ((1, "reinit"), (2, None)):
        progress.works(worker, AtWork(1, control, 0, 50, 100, 0.5))
    assert progress.seconds_left == pytest.approx(6 * 20 / 2)
    assert progress.finished_trainings == 1
    assert progress.shown == AtWork(1, None, 0, 50, 100, 0.5)
    progress.finished(cached=False)  # its row is on record
    assert progress.finished_trainings == 1
    progress.finished(cached=True)  # found, not trained by a worker
    assert progress.finished_trainings == 2
    for worker in (1, 2):  # both have ended, and this process goes on alone
        progress.worked(worker, training=False)
    progress.tick(ticket, 550)
    assert progress.shown.steps == 1000
    clock[0] += 9
    progress.tick(ticket, 640)
    assert progress.seconds_left == pytest.approx(36 + 5 * 90)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_written_at_every_change_and_every_five_seconds(tmp_path: Path, clock: list[float], ticket: Ticket) -> None:
    progress = StudyProgress(trainings=3)
    file = StatusFile(progress)
    file.open(tmp_path)
    progress.at(2, "reinit", 1)
    for seconds, step in ((1, 200), (5, 300), (1, 400)):
        clock[0] += seconds
        progress.tick(ticket, step)
        file.tick()
    found = read(tmp_path)
    assert (found.state, found.round, found.control, found.copy) == ("running", 2, "reinit", 1)
    assert (found.step, found.steps, found.trainings_done, found.trainings) == (300, 1000, 0, 3)
    assert found.seconds_left == pytest.approx(5 / (1 / 9) * (7 / 9 + 2), abs=0.1)
    assert found.alive(kernel()) is True
    assert found.alive("another machine") is None


@pytest.mark.parametrize(
    ("error", "state", "cause", "signum"),
    [
        (None, "done", None, None),
        (LotteryError("loss is nan"), "failed", "loss is nan", None),
        (ValueError("first line\nsecond"), "failed", "ValueError: first line", None),
        (Interrupted(signal.SIGUSR2, "at step 7"), "interrupted", "interrupted by SIGUSR2 at step 7", "SIGUSR2"),
        (KeyboardInterrupt(), "interrupted", "interrupted by SIGINT", "SIGINT"),
    ],
)
def test_how_a_study_ends(
    tmp_path: Path, error: BaseException | None, state: str, cause: str | None, signum: str | None
) -> None:
    file = StatusFile(StudyProgress())
    file.open(tmp_path)
    file.end(error)
    found = read(tmp_path)
    assert (found.state, found.cause, found.signal, found.seconds_left) == (state, cause, signum, None)


def test_whoever_was_overtaken_keeps_silent(tmp_path: Path) -> None:
    """A process that lost its study to another (init stands for it: it lives) must not call the study failed."""
    file = StatusFile(StudyProgress())
    file.open(tmp_path)
    other = {**json.loads((tmp_path / STATUS).read_text()), "pid": 1, "started": module.start_time(1)}
    (tmp_path / STATUS).write_text(json.dumps(other))
    file.end(LotteryError("taken over"))
    assert read(tmp_path).state == "running"
    (tmp_path / STATUS).write_text(json.dumps({**other, "started": "long dead"}))
    file.end(LotteryError("taken over"))
    assert read(tmp_path).state == "failed"


def test_a_folder_that_is_gone_costs_the_notice_alone(tmp_path: Path, ticket: Ticket) -> None:
    """(A full disk fails in the same place: the temporary file cannot be written.)"""
    (tmp_path / "file").write_text("where a folder should be")
    terminal = Terminal()
    terminal.status.open(tmp_path / "file")
    terminal.status.write()
    terminal.status.end(LotteryError("it failed"))
    assert (tmp_path / "file").read_text() == "where a folder should be"


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"state": "running"}', b"\xff\xfe", b'{"state": 3'])
def test_what_cannot_be_understood_is_no_status(tmp_path: Path, content: bytes) -> None:
    assert Status.read(tmp_path) is None
    (tmp_path / STATUS).write_bytes(content)
    assert Status.read(tmp_path) is None


def test_a_value_of_another_type_is_no_status(tmp_path: Path) -> None:
    StatusFile(StudyProgress()).open(tmp_path)
    whole = json.loads((tmp_path / STATUS).read_text())
    assert read(tmp_path) == Status(**whole)
    for name, value in (("round", "3"), ("seconds_left", "soon"), ("state", None), ("waiting", 5)):
        (tmp_path / STATUS).write_text(json.dumps({**whole, name: value}))
        assert Status.read(tmp_path) is None


@pytest.mark.parametrize(
    ("environ", "job", "restarts"),
    [
        ({}, "", 0),
        ({"SLURM_JOB_ID": "31"}, "31", 0),
        (
            {"SLURM_JOB_ID": "28", "SLURM_ARRAY_JOB_ID": "25", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"},
            "25_3",
            2,
        ),
    ],
)
def test_the_job_is_named_as_squeue_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], job: str, restarts: int
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    StatusFile(StudyProgress()).open(tmp_path)
    assert (read(tmp_path).job, read(tmp_path).restarts) == (job, restarts)


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_waiting_is_said_once_and_over_with_the_next_step(tmp_path: Path, ticket: Ticket) -> None:
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), width=140)
    terminal.open(tmp_path, "a study", trainings=2)
    terminal.progress.at(1)
    text = "waiting for lth/0123456789ab, process 7 on node3: train 9f86d081884c"
    for _ in range(3):
        terminal.waiting(text)
    assert read(tmp_path).waiting == text
    terminal.tick(ticket, 150, 0.5, None)
    terminal.status.write()
    assert read(tmp_path).waiting is None
    terminal.waiting(text)  # again, later
    terminal.close()
    logged = (tmp_path / "study.log").read_text()
    assert logged.count(f"round 1: {text}") == 2
    assert logging.getLogger("lottery").handlers == []


# -- real studies ------------------------------------------------------------------------------------------------------


def shown(runs: Path) -> dict[str, Any]:
    """What `lottery status` says of the one study."""
    found = call("status", "--json", "--runs", str(runs))
    assert found.status == 0, found.err
    [study] = json.loads(found.out)["studies"]
    return study


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def child(args: list[str]) -> None:
    """The command line, in a forked process, silent."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os._exit(main(args))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], BaseProcess]]:
    """Starts the long study, each time in a forked process (which saves the seconds that importing takes)."""
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.1)
    started: list[BaseProcess] = []

    def start() -> BaseProcess:
        process = multiprocessing.get_context("fork").Process(target=child, args=([*LONG, f"paths.runs={tmp_path}"],))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join(PATIENCE)


@pytest.mark.slow
def test_running_interrupted_running_again_killed(tmp_path: Path, study: Callable[[], BaseProcess]) -> None:
    process = study()
    wait_for(lambda: bool(list(tmp_path.glob("study/*/status.json"))) and shown(tmp_path)["seconds_left"] is not None)
    seen = shown(tmp_path)
    assert (seen["state"], seen["round"], seen["steps"], seen["pid"]) == ("running", 0, 100000, process.pid)
    assert 0 < seen["step"] < 100000
    assert 0 < seen["seconds_left"] < 3600

    os.kill(process.pid or 0, signal.SIGUSR2)
    process.join(PATIENCE)
    assert process.exitcode == 128 + signal.SIGUSR2
    seen = shown(tmp_path)
    assert (seen["state"], seen["signal"]) == ("interrupted", "SIGUSR2")
    assert seen["detail"].startswith("interrupted by SIGUSR2 at step ")

    process = study()
    wait_for(lambda: shown(tmp_path)["pid"] == process.pid and shown(tmp_path)["state"] == "running")
    process.kill()
    process.join(PATIENCE)
    assert read(next(tmp_path.glob("study/*"))).state == "running"
    seen = shown(tmp_path)
    assert (seen["state"], seen["detail"]) == ("killed", "its process is gone")


def test_done_with_the_figures_of_the_last_ticket(tmp_path: Path) -> None:
    args = (*QUICK, "controls.random=1", f"paths.runs={tmp_path}")
    assert call(*args).status == 0
    seen = shown(tmp_path)
    assert (seen["state"], seen["detail"], seen["trainings_done"], seen["trainings"]) == ("done", None, 3, 3)
    rows = [json.loads(line) for line in next(tmp_path.glob("study/*/rounds.jsonl")).read_text().splitlines()]
    ticket = [row for row in rows if row["control"] is None][-1]
    assert (seen["density"], seen["test_accuracy"]) == (ticket["density"], ticket["test_accuracy"])
    assert rows[-1]["control"] == "random"


def test_failed_with_the_cause(tmp_path: Path) -> None:
    done = call(*QUICK, "optim.lr=1e30", f"paths.runs={tmp_path}")
    assert done.status == 1
    seen = shown(tmp_path)
    assert seen["state"] == "failed"
    assert f"lottery: {seen['detail']}" == done.line
    assert "loss" in seen["detail"]


def test_a_study_whose_data_are_missing_has_failed_too(tmp_path: Path) -> None:
    """It fails before the terminal is opened; its folder says so nevertheless."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "mnist.safetensors").write_bytes(b"damaged")
    done = call(*QUICK, "data=mnist", f"paths.data={data}", f"paths.runs={tmp_path}")
    assert done.status == 1
    assert shown(tmp_path)["state"] == "failed"
