"""Show a running study on the terminal: a row a round, and a live line for the present training.

Also keeps the status file in the run folder up to date, for readers elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console

from lottery.analysis.verdict import levels, network, verdict
from lottery.record.names import STUDY_LOG
from lottery.record.progress import AtWork, StudyProgress
from lottery.record.status import StatusFile, duration

if TYPE_CHECKING:
    from lottery.record.rows import Row
    from lottery.ticket import Ticket

LOG = logging.getLogger("lottery")

# title, width, function from a row to the text; together at most 80 characters
COLUMNS: list[tuple[str, int, Any]] = [
    ("round", 5, lambda r: str(r["round"])),
    ("network", 10, lambda r: network(r) + (f" {r['copy']}" if r["control"] else "")),
    ("density", 7, lambda r: f"{100 * r['density']:.2f}%"),
    ("train %", 7, lambda r: _accuracy(r["train_accuracy"])),
    ("val %", 6, lambda r: _accuracy(r["val_accuracy"])),
    ("test %", 6, lambda r: _accuracy(r["test_accuracy"])),
    ("stop step", 9, lambda r: "-" if r["early_stop_step"] is None else f"{r['early_stop_step']:,}"),
    ("stop %", 6, lambda r: _accuracy(r["early_stop_test_accuracy"])),
    ("seconds", 7, lambda r: "cached" if r["cached"] else f"{r['seconds']:.1f}"),
]


def _accuracy(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _steps(step: int, steps: int, loss: float, accuracy: float | None) -> str:
    """Describe a training under way, such as `step 300/1,200  loss 0.1234  val acc 91.20`."""
    text = f"step {step:,}/{steps:,}  loss {loss:.4f}"
    return text if accuracy is None else f"{text}  val acc {100 * accuracy:.2f}"


def header() -> str:
    return "  ".join(f"{title:>{width}}" for title, width, _ in COLUMNS)


def line(row: Row) -> str:
    """Format one row of the table, for the terminal and the log."""
    return "  ".join(f"{show(row):>{width}}" for _, width, show in COLUMNS)


def closing(rows: Sequence[Row], method: str, folder: Path) -> list[str]:
    """Return the last lines of a study: the verdict, where there is one, and where everything is."""
    said = verdict(levels(rows, method))
    return [*([said] if said else []), f"done: {len(rows)} rows, masks, curves and figures in {folder}"]


class _Show(logging.Handler):
    """A handler that prints log records on the console, above the live line if there is one; it notes the warnings."""

    def __init__(self, console: Console, warnings: list[str]) -> None:
        super().__init__(logging.INFO)
        self.console, self.warnings = console, warnings

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        if style:
            self.warnings.append(record.getMessage())
        self.console.print(record.getMessage(), style=style, markup=False, highlight=False, soft_wrap=True)


class Terminal:
    """A display and log of a study. Without a terminal it prints plain lines, and progress every 30 s."""

    PLAIN_SECONDS = 30.0

    def __init__(self, live: bool = True) -> None:
        self.console = Console()
        self.live = live and self.console.is_terminal
        self.warnings: list[str] = []  # logged so far
        self._handlers: list[logging.Handler] = []
        self._before = LOG.level, LOG.propagate  # of the logger, restored by `close`
        self._bar: bars.Progress | None = None
        self._lines: dict[int, bars.TaskID] = {}  # 0: the line of the study; others: those of the workers
        self._texts: dict[int, str] = {}  # what each worker does, as text
        self._plain_at = monotonic()
        self._waited_for = ""
        self.progress = StudyProgress()
        self.status = StatusFile(self.progress)

    def open(self, folder: Path, title: str, trainings: int) -> None:
        """Start the display, and the log and status in the run folder."""
        self.progress.trainings = trainings
        self.show_log(folder, title)
        if self.live:
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"), bars.BarColumn(30), bars.TextColumn("{task.fields[text]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._show("starting", "", 0.0)
        self.status.open(folder)

    def show_log(self, folder: Path, title: str) -> None:
        """Show the log on the console from now on, keep it in the run folder, and begin it with the table's header."""
        file = logging.FileHandler(folder / STUDY_LOG)
        file.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
        self._handlers = [file, _Show(self.console, self.warnings)]
        self._before = LOG.level, LOG.propagate
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        for handler in self._handlers:
            LOG.addHandler(handler)
        LOG.info(title)
        LOG.info(header())

    def tick(self, ticket: Ticket, step: int, loss: float, accuracy: float | None) -> None:
        """Show progress. Called a few times a second while a training runs."""
        now = self.progress
        now.tick(ticket, step)
        self._waited_for = ""
        self.status.tick()
        text = _steps(now.step, now.steps, loss, accuracy) + self._left()
        where = f"{now.where} (training {now.done + 1}" + (f" of {now.trainings})" if now.trainings else ")")
        if not self._show(where, text, now.share):
            self._plain(f"{where}: {text}")

    def working(self, worker: int, at: dict[str, Any]) -> None:
        """Show what a worker trains: a line for each worker, below the line of the study."""
        share = (at["step"] - at["first"]) / max(1, at["steps"] - at["first"])
        now = AtWork(at["round"], at["control"], at["copy"], at["step"], at["steps"], share)
        self.progress.works(worker, now)
        self.status.tick()
        text = _steps(now.step, now.steps, at["loss"], at["accuracy"])
        self._texts[worker] = f"{now.where}: {text}"
        self._show(now.where, text, share, worker)
        study = self._study_text()
        if not self._show(*study):
            self._plain("; ".join([f"{study[0]} {study[1]}", *(self._texts[each] for each in sorted(self._texts))]))

    def worked(self, worker: int, training: bool) -> None:
        """Note that a worker has finished a stage. training: whether it was a training."""
        self.progress.worked(worker, training)
        self._texts.pop(worker, None)
        self._show("", "", 0.0, worker)
        self._show(*self._study_text())

    def afterwards(self, text: str) -> None:
        """Show what goes on after the trainings, such as "drawing the figures"."""
        self._show("trained", text, 1.0)

    def _study_text(self) -> tuple[str, str, float]:
        """Return the line of a study with workers: its name, the trainings done and the time left, the share done."""
        done, planned = self.progress.finished_trainings, self.progress.trainings
        text = f"{done} of {planned} trainings" if planned else f"{done} trainings"
        return "all", text + self._left(), min(1.0, done / planned) if planned else 0.0

    def _left(self) -> str:
        left = self.progress.seconds_left
        return "" if left is None else f"  {duration(left)} left"

    def _plain(self, text: str) -> None:
        """Without a terminal: log a line of progress now and then."""
        if not self.console.is_terminal and monotonic() - self._plain_at > self.PLAIN_SECONDS:
            self._plain_at = monotonic()
            LOG.info("%s", text)

    def waiting(self, text: str) -> None:
        """Show that another process computes the next stage. text: names it, such as "waiting for study ... on node3".

        May be called repeatedly: only a new text is logged. The next tick or round clears it.
        """
        self.progress.waiting = text
        self._show(self.progress.where, text, 0.0)
        if text == self._waited_for:
            return self.status.tick()
        self._waited_for = text
        LOG.info("%s: %s", self.progress.where, text)
        self.status.write()

    def _show(self, where: str, text: str, share: float, line: int = 0) -> bool:
        """Update a live line. Returns whether there is a live display."""
        if self._bar is None:
            return False
        if line not in self._lines:
            self._lines[line] = self._bar.add_task("", total=1.0, text="")
        self._bar.update(self._lines[line], description=where, completed=share, text=text)
        return True

    def round(self, row: Row, cached: bool) -> None:
        """Show a finished round's row."""
        LOG.info(line(row))
        self.progress.finished(cached)
        self.status.write()
        self._waited_for = ""
        self._plain_at = monotonic()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        for handler in self._handlers:
            LOG.removeHandler(handler)
            handler.close()
        if self._handlers:
            level, LOG.propagate = self._before
            LOG.setLevel(level)
        self._handlers = []
