"""What a person sees while a study runs: a row a round, and a live line of the training under way."""

from __future__ import annotations

import logging
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from lottery.ticket import Ticket
    from lottery.tracking.folder import Row

LOG = logging.getLogger("lottery")

# title, width, how a row's value is shown
COLUMNS: list[tuple[str, int, Any]] = [
    ("round", 5, lambda r: str(r["round"])),
    ("control", 10, lambda r: f"{r['control']} {r['copy']}" if r["control"] else "-"),
    ("density", 8, lambda r: f"{100 * r['density']:.2f}%"),
    ("kept", 9, lambda r: f"{r['kept']:,}"),
    ("train acc", 9, lambda r: percent(r["train_accuracy"])),
    ("val acc", 8, lambda r: percent(r["val_accuracy"])),
    ("test acc", 8, lambda r: percent(r["test_accuracy"])),
    ("stop step", 9, lambda r: "-" if r["early_stop_step"] is None else f"{r['early_stop_step']:,}"),
    ("test@stop", 9, lambda r: percent(r["early_stop_test_accuracy"])),
    ("seconds", 8, lambda r: "cached" if r["cached"] else f"{r['seconds']:.1f}"),
]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def header() -> str:
    return "  ".join(f"{title:>{width}}" for title, width, _ in COLUMNS)


def line(row: Row) -> str:
    """One row of the table; the same text on the terminal, in study.log and when a study is run again."""
    return "  ".join(f"{show(row):>{width}}" for _, width, show in COLUMNS)


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class _Show(logging.Handler):
    """Log records on the console, above the live line if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self.console.print(record.getMessage(), style=style, markup=False, highlight=False, soft_wrap=True)


class Terminal:
    """Shows and logs. Not on a terminal it prints plain lines, and one about progress every half minute."""

    PLAIN_SECONDS = 30.0

    def __init__(self, live: bool = True) -> None:
        self.console = Console()
        self.live = live and self.console.is_terminal
        self._handlers: list[logging.Handler] = []
        self._before = LOG.level, LOG.propagate  # of the logger, which is given back as it was
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._plain_at = monotonic()
        self._started = monotonic()
        self.trainings = 0  # planned; 0 = unknown
        self.done = 0
        self.now = ""  # which round and control is under way
        self._fresh: list[float] = []  # wall seconds of the trainings that were not cached
        self._last = monotonic()

    def open(self, folder: Path, title: str, trainings: int) -> None:
        """Start showing, and writing study.log in the run folder."""
        self.trainings = trainings
        file = logging.FileHandler(folder / "study.log")
        file.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
        self._handlers = [file, _Show(self.console)]
        self._before = LOG.level, LOG.propagate
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        for handler in self._handlers:
            LOG.addHandler(handler)
        LOG.info(title)
        LOG.info(header())
        if self.live:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[text]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._progress.add_task("starting", total=1.0, text="")
            self._progress.start()
        self._last = monotonic()

    def tick(self, ticket: Ticket, step: int, loss: float, accuracy: float | None) -> None:
        """A few times a second while a training runs."""
        done = (step - ticket.step) / max(1, ticket.steps)
        text = f"step {step:,}/{ticket.step + ticket.steps:,}  loss {loss:.4f}"
        if accuracy is not None:
            text += f"  val acc {100 * accuracy:.2f}"
        text += self._left(done)
        where = f"{self.now} (training {self.done + 1}" + (f" of {self.trainings})" if self.trainings else ")")
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=where, completed=done, text=text)
        elif not self.console.is_terminal and monotonic() - self._plain_at > self.PLAIN_SECONDS:
            self._plain_at = monotonic()
            LOG.info("%s: %s", where, text)

    def _left(self, done: float) -> str:
        """Time left, from the mean of the trainings so far and the share of the present one that is done."""
        if not self.trainings:
            return ""
        spent = monotonic() - self._last
        mean = sum(self._fresh) / len(self._fresh) if self._fresh else spent / max(done, 1e-3)
        left = max(mean * (1 - done), 0) + mean * max(self.trainings - self.done - 1, 0)
        return f"  {duration(left)} left"

    def round(self, row: Row, cached: bool) -> None:
        """A finished round's row."""
        LOG.info(line(row))
        self.done += 1
        if not cached:
            self._fresh.append(monotonic() - self._last)
        self._last = self._plain_at = monotonic()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        for handler in self._handlers:
            LOG.removeHandler(handler)
            handler.close()
        if self._handlers:
            level, LOG.propagate = self._before
            LOG.setLevel(level)
        self._handlers = []
