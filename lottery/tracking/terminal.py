"""What a person sees while a study runs: a row a round, and a live line of the training under way.

Those who look from elsewhere read `status.json`, which is kept up to date from here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console

from lottery.tracking.status import Progress, StatusFile, duration

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
        self._bar: bars.Progress | None = None
        self._task: bars.TaskID | None = None
        self._plain_at = monotonic()
        self._waited_for = ""
        self.progress = Progress()
        self.status = StatusFile(self.progress)

    def open(self, folder: Path, title: str, trainings: int) -> None:
        """Start showing, and writing study.log in the run folder."""
        self.progress.trainings = trainings
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
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"), bars.BarColumn(30), bars.TextColumn("{task.fields[text]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("starting", total=1.0, text="")
            self._bar.start()
        self.status.open(folder)

    def tick(self, ticket: Ticket, step: int, loss: float, accuracy: float | None) -> None:
        """A few times a second while a training runs."""
        now = self.progress
        now.tick(ticket, step)
        self._waited_for = ""
        self.status.tick()
        text = f"step {now.step:,}/{now.steps:,}  loss {loss:.4f}"
        if accuracy is not None:
            text += f"  val acc {100 * accuracy:.2f}"
        if now.seconds_left is not None:
            text += f"  {duration(now.seconds_left)} left"
        where = f"{now.where} (training {now.done + 1}" + (f" of {now.trainings})" if now.trainings else ")")
        if self._show(where, text, now.share) or self.console.is_terminal:
            return
        if monotonic() - self._plain_at > self.PLAIN_SECONDS:
            self._plain_at = monotonic()
            LOG.info("%s: %s", where, text)

    def waiting(self, text: str) -> None:
        """Somebody else computes what comes next: `text` says who, such as "waiting for study ... on node3".

        To be called as often as one likes while it lasts: logged when it is news, cleared by the next tick or round.
        """
        self.progress.waiting = text
        self._show(self.progress.where, text, 0.0)
        if text == self._waited_for:
            return self.status.tick()
        self._waited_for = text
        LOG.info("%s: %s", self.progress.where, text)
        self.status.write()

    def _show(self, where: str, text: str, share: float) -> bool:
        """Update the live line, if there is one."""
        if self._bar is None or self._task is None:
            return False
        self._bar.update(self._task, description=where, completed=share, text=text)
        return True

    def round(self, row: Row, cached: bool) -> None:
        """A finished round's row."""
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
