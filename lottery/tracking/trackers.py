"""Trackers, which mirror results while a study runs. The run folder is the record of truth; a tracker may fail."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lottery.config import Config
from lottery.methods.shows import OWN, shows
from lottery.record.names import CSV, WANDB
from lottery.record.progress import StudyProgress
from lottery.record.rows import Row
from lottery.tracking.items import probe_figures

if TYPE_CHECKING:
    from lottery.recipe import Recipe
    from lottery.stages.crew import Crew
    from lottery.stages.lab import Lab
    from lottery.ticket import Ticket


class StudyTracker(Protocol):
    """A mirror of one study's results elsewhere. Its methods must not raise when that service fails."""

    def start(self, config_yaml: str) -> None:
        """Begin. Called before the first round."""

    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None:
        """Record a finished round or control. curve: entries [step, split, loss, accuracy]. mask: the mask's file."""

    def points(self, place: Row, curve: list[list[Any]]) -> None:
        """Record new points of a curve while the training goes on. place: its round, control and copy."""

    def figure(self, path: Path) -> None:
        """Record a figure drawn at the end of the study."""

    def close(self, status: str) -> None:
        """End, after the last round or a failure. status: "finished" or "failed"."""


class NoTracker:
    """A tracker that writes nothing."""

    def start(self, config_yaml: str) -> None: ...

    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None: ...

    def points(self, place: Row, curve: list[list[Any]]) -> None: ...

    def figure(self, path: Path) -> None: ...

    def close(self, status: str) -> None: ...


class CsvTracker(NoTracker):
    """A CSV file of the rows in the run folder, for spreadsheets, with one column for each layer's density."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CSV
        self.rows: list[Row] = []

    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None:
        nested = ("layer_density", "collapsed_layers")
        flat = {key: value for key, value in row.items() if key not in nested and not key.startswith("probe/")}
        flat |= {key: " ".join(row[key]) for key in ("collapsed_layers", "removed_units") if key in row}
        flat |= {f"density/{name}": value for name, value in row["layer_density"].items()} | probe_figures(row)
        self.rows.append(flat)
        columns = list(dict.fromkeys(key for known in self.rows for key in known))
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def with_rates(curve: list[list[Any]], ticket: Ticket, recipe: Recipe) -> list[list[Any]]:
    """Return the curve of a ticket's training with the learning rate of the step after each point."""
    last = recipe.total - 1
    steps = dict.fromkeys(point[0] for point in curve) if ticket.steps else ()
    return [*curve, *([step, "lr", recipe.lr(last if ticket.hold_lr else min(step, last)), None] for step in steps)]


def follow(lab: Lab, tracker: StudyTracker, progress: StudyProgress, method: str, crew: Crew | None = None) -> None:
    """Pass the points of each training to the tracker, as they come, where it is known which round it will be.

    method: its `_target_`. crew: the study's workers. Of a method with several parts, a user's own method, and
    trainings further ahead than the next round, the points come with their round. Copies' for probes do not come.
    """

    def points(ticket: Ticket, curve: list[list[Any]]) -> None:
        if not str(progress.control or "").endswith("copy"):
            place = {"round": progress.round, "control": progress.control, "copy": progress.copy}
            tracker.points(place, with_rates(curve, ticket, ticket.recipe or lab.recipe))

    if OWN.fullmatch(method) and shows(method).ladder:
        lab.on_points = points
        if crew is not None:
            crew.on_points = lambda place, curve: tracker.points(place, curve) if progress.next(place) else None


def make_tracker(config: Config, key: str, folder: Path) -> StudyTracker:
    """Return the tracker that the configuration names."""
    name = config.tracker.name
    if name == "wandb":
        from lottery.tracking.mirror import Mirror
        from lottery.tracking.wandb import WandbSink

        return Mirror(config, key, folder, WandbSink(config.tracker, key, folder / WANDB))
    return CsvTracker(folder) if name == "csv" else NoTracker()
