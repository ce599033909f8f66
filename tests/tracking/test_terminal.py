"""What a person sees: rows that read the same every time, and a live line that is updated between short chunks."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lottery.state import StateRef
from lottery.ticket import Mask, Ticket
from lottery.tracking.terminal import Terminal, duration, header, line

ROW = {
    "round": 3, "control": "reinit", "copy": 1, "density": 0.512, "kept": 7680, "train_accuracy": 0.9,
    "val_accuracy": None, "test_accuracy": 0.8123, "early_stop_step": None, "early_stop_test_accuracy": None,
    "seconds": 2.25, "cached": False,
}  # fmt: skip


@pytest.fixture
def ticket() -> Ticket:
    mask = Mask.ones({"w": torch.Size([2])})
    return Ticket(mask, StateRef.of({"w": torch.zeros(2)}), step=100, order_step=100, steps=900)


def test_a_row_stands_under_the_header() -> None:
    assert len(line(ROW)) == len(header()) <= 80
    assert "reinit 1" in line(ROW)
    assert "51.20%" in line(ROW)
    assert "81.23" in line(ROW)


def test_a_cached_row_says_so() -> None:
    assert line({**ROW, "cached": True}).split()[-1] == "cached"


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (65, "1m05s"), (3725, "1h02m")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_live_line_says_where_the_training_is(tmp_path: Path, ticket: Ticket) -> None:
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=140)
    terminal.live = True
    terminal.open(tmp_path, "a study", trainings=7)
    terminal.progress.at(2, "reinit", 0)
    terminal.tick(ticket, 500, 0.25, 0.875)
    terminal.tick(ticket, 550, 0.25, 0.875)
    assert terminal._bar is not None
    task = terminal._bar.tasks[0]
    assert task.description == "round 2 reinit 0 (training 1 of 7)"
    assert task.completed == pytest.approx(0.5)
    assert "step 550/1,000  loss 0.2500  val acc 87.50" in task.fields["text"]
    assert "left" in task.fields["text"]
    terminal.close()


def at(round: int | None, control: str | None = None, step: int = 300) -> dict[str, Any]:
    return {
        "round": round, "control": control, "copy": 0, "first": 100, "step": step, "steps": 1000, "loss": 0.5,
        "accuracy": None,
    }  # fmt: skip


def test_each_worker_has_a_line_below_the_one_of_the_study(tmp_path: Path) -> None:
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=140)
    terminal.live = True
    terminal.open(tmp_path, "a study", trainings=7)
    terminal.working(2, at(1, "reinit"))
    terminal.working(1, at(None, step=550))
    terminal.worked(2, training=True)
    assert terminal._bar is not None
    study, second, first = terminal._bar.tasks
    assert (study.description, second.description, first.description) == ("all", "", "on the way")
    assert study.fields["text"].startswith("1 of 7 trainings  ")
    assert "left" in study.fields["text"]
    assert first.completed == pytest.approx(0.5)
    assert first.fields["text"] == "step 550/1,000  loss 0.5000"
    terminal.close()


def test_without_a_terminal_one_line_says_what_all_workers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terminal, "PLAIN_SECONDS", 0.0)
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), width=140)
    terminal.open(tmp_path, "a study", trainings=0)
    terminal.working(1, at(2))
    terminal.working(2, at(2, "random"))
    terminal.close()
    last = terminal.console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert (
        last == "all 0 trainings; round 2: step 300/1,000  loss 0.5000; round 2 random 0: step 300/1,000  loss 0.5000"
    )


def test_the_line_says_what_goes_on_after_the_trainings(tmp_path: Path, ticket: Ticket) -> None:
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=140)
    terminal.live = True
    terminal.open(tmp_path, "a study", trainings=1)
    terminal.tick(ticket, 500, 0.25, 0.875)
    terminal.tick(ticket, 1000, 0.25, 0.875)
    terminal.progress.finished(cached=False)
    terminal.afterwards("drawing the figures")
    assert terminal._bar is not None
    [task] = terminal._bar.tasks
    assert (task.description, task.fields["text"], task.completed) == ("trained", "drawing the figures", 1.0)
    assert terminal.progress.seconds_left is None
    terminal.close()


def test_the_log_holds_what_was_shown(tmp_path: Path) -> None:
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), width=140)
    terminal.open(tmp_path, "a study", trainings=0)
    terminal.round(ROW, cached=False)
    logging.getLogger("lottery").warning("[watch] out")  # brackets are no markup
    terminal.close()
    shown = terminal.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    logged = (tmp_path / "study.log").read_text().splitlines()
    assert shown[1:3] == [header(), line(ROW)]
    assert [text.split("  ", 1)[1] for text in logged] == shown
    assert terminal._handlers == []
