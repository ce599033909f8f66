"""Draws how a mask was searched for, from a run folder's search.csv: accuracy, swaps and overlap, and the scores."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lottery.analysis.style import canvas, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entry = dict[str, float | None]


def read_search(run: Path) -> list[Entry]:
    """The entries of search.csv, what was not measured as None; none where nothing was searched for."""
    path = run / "search.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)]


def draw_search(run: Path, heading: str, path: Path) -> bool:
    """Draw search.png, of the first search where there are several; False where nothing was searched for."""
    entries = read_search(run)
    entries = [entry for entry in entries if entry["round"] == entries[0]["round"]]
    if len(entries) < 2:
        return False
    colour = looks([None])[0].colour
    with canvas(path, f"{heading}, search of round {entries[0]['round']:.0f}", height=3.2) as figure:
        left, middle, right = figure.subplots(1, 3)
        measured = _line(left, entries, "val_accuracy", 100, colour)
        if measured:
            left.set_ylabel("validation accuracy (%)")
        else:
            _line(left, entries, "train_loss", 1, colour)
            left.set_ylabel("training loss")
        _line(middle, entries, "swaps", 1, colour)
        middle.set_yscale("symlog", linthresh=1)
        middle.set_ylim(bottom=0)
        middle.set_ylabel("weights swapped a step")
        overlap = middle.twinx()
        _line(overlap, entries, "magnitude_iou", 1, "0.5")
        overlap.set_ylim(0, 1.02)
        overlap.set_ylabel("overlap with magnitude (grey)")
        _draw_scores(right, entries)
        for axes in (left, middle, right):
            axes.set_xlabel("step of the search")
    return True


def _line(axes: Axes, entries: Sequence[Entry], name: str, unit: float, colour: str) -> bool:
    points = [(entry["step"], unit * value) for entry in entries if (value := entry[name]) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour)
    return bool(points)


def _draw_scores(axes: Axes, entries: Sequence[Entry]) -> None:
    """The histogram of the scores at every entry: the darker, the more (each column on its own logarithmic scale)."""
    from math import log1p

    bins = [name for name in entries[0] if name.startswith("score_bin_")]
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        counts = [log1p(entry[name] or 0) for name in bins]
        step, low, high = (entry[name] or 0.0 for name in ("step", "score_low", "score_high"))
        end = (following["step"] or 0.0) if following else step * (1 + 1 / len(entries))
        height = (high - low) / len(bins) or 1e-12
        edges = [low + height * number for number in range(len(bins) + 1)]
        axes.pcolormesh([step, end], edges, [[c / max(counts)] for c in counts], cmap="Greys", vmin=0, vmax=1)
    axes.set_ylabel("scores (darker: more)")
