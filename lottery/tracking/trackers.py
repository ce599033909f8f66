"""Where results are mirrored while a study runs. The run folder is the record of truth; a tracker may be lost."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Protocol

from lottery.config import Config
from lottery.tracking.folder import Row
from lottery.tracking.rows import probe_figures


class Tracker(Protocol):
    """A sink for one study's results. No method may raise for a reason of the sink's own."""

    def start(self, config_yaml: str) -> None:
        """Before the first round."""

    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None:
        """A finished round or control: its row, its training curve [step, split, loss, accuracy], its mask's file."""

    def figure(self, path: Path) -> None:
        """A figure drawn at the end."""

    def close(self, status: str) -> None:
        """After the last round, or after a failure: "finished" or "failed"."""


class NoTracker:
    """Nothing beyond the run folder's own files."""

    def start(self, config_yaml: str) -> None: ...

    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None: ...

    def figure(self, path: Path) -> None: ...

    def close(self, status: str) -> None: ...


class CsvTracker(NoTracker):
    """`rounds.csv` in the run folder: the table for a spreadsheet, one column a layer's density."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rounds.csv"
        self.rows: list[Row] = []

    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None:
        nested = ("layer_density", "collapsed_layers")
        flat = {key: value for key, value in row.items() if key not in nested and not key.startswith("probe/")}
        flat |= {key: " ".join(row[key]) for key in ("collapsed_layers", "removed_units") if key in row}
        flat |= {f"density/{name}": value for name, value in row["layer_density"].items()} | probe_figures(row)
        self.rows.append(flat)
        columns = list(dict.fromkeys(key for known in self.rows for key in known))
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def make_tracker(config: Config, key: str, folder: Path) -> Tracker:
    """The tracker that the configuration names."""
    name = config.tracker.name
    if name == "wandb":
        from lottery.tracking.mirror import Mirror
        from lottery.tracking.wandb import WandbSink

        return Mirror(config, key, folder, WandbSink(config.tracker, key, folder / "wandb"))
    if name == "trackio":
        from lottery.tracking.mirror import Mirror
        from lottery.tracking.trackio import TrackioSink

        return Mirror(config, key, folder, TrackioSink(config.tracker, key, Path(config.paths.runs) / ".trackio"))
    return CsvTracker(folder) if name == "csv" else NoTracker()
