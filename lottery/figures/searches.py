"""Figure of searches for masks: how they converge, and how much of the mask still changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter

from lottery.figures.curves import look_of
from lottery.figures.experiments import By, Experiment, NothingToDraw, check_table, experiments, missing
from lottery.figures.sheet import DASHED, heading, legend, paths_of, sheet
from lottery.figures.style import DENSE, finite, percent
from lottery.record.names import SEARCH
from lottery.record.run import Run

WIDE = 10.0  # values over a wider ratio are on a log scale
BINS = "score_bin_"  # prefix of the columns with histograms of the scores


def search(
    frame: pd.DataFrame, path: str | Path, *, by: By = None, title: str | None = None, vector: bool = True
) -> list[Path]:
    """Draw validation error, weights swapped a step, and overlap with the magnitude mask against the search's step.

    The training loss replaces a missing validation error. Each density has a row of axes, each experiment a curve: the
    mean over seeds, in a band from the lowest to the highest. For one study, histograms of the scores are drawn too.
    Returns the paths written. Raises LotteryError where nothing was searched for.
    """
    check_table(frame, ["search_steps"])
    frame = frame[frame["run"].isin(frame.loc[frame["search_steps"].notna(), "run"])]
    groups = experiments(frame, by)
    entries = {run: first_search(Path(run)) for run in frame["run"].unique()}
    column = "config.method.density"
    densities = sorted(frame[column].dropna().unique(), reverse=True) if column in frame else [None]
    scored = len(entries) == 1 and any(not table.filter(like=BINS).empty for table in entries.values())
    height, width = 0.9 + 2.6 * len(densities), 12.0 if scored else 9.0
    columns, words = 4 if scored else 3, heading(frame, title, "search for the mask, by its step")
    with sheet(path, words, height, width, vector, columns * len(densities), columns, sharex=True) as panels:
        if scored:
            _draw_scores(panels[3], *entries.values())
        for number, density in enumerate(densities):
            line = panels[columns * number :][:3]
            rows = [g.rows if density is None else g.rows[g.rows[column] == density] for g in groups]
            draw_searches(line, groups, [[entries[run] for run in each["run"].unique()] for each in rows], frame)
            if len(densities) > 1:
                line[0].set_title(f"{percent(density)} % of the prunable weights", fontsize="medium", loc="left")
        for axes in panels[-columns:]:
            axes.set_xlabel("step of the search")
        legend(panels)
    return paths_of(path, vector)


def first_search(run: Path) -> pd.DataFrame:
    """Return the entries of a study's first searched round, by step. Raises NothingToDraw where there are none."""
    entries = Run(run).search
    if not entries:
        raise NothingToDraw(f"{run}: {SEARCH}: {missing('search_csv')}")
    table = pd.DataFrame(entries).astype(float)
    return table[table["round"] == table["round"].iloc[0]].set_index("step")


def draw_searches(
    line: Sequence[Axes], groups: Sequence[Experiment], found: Sequence[Sequence[pd.DataFrame]], frame: pd.DataFrame
) -> None:
    """Draw the three axes of one density; `found`: the searches of each experiment."""
    error, swaps, overlap = line
    validated = all(table["val_accuracy"].notna().any() for tables in found for table in tables)
    for number, (group, tables) in enumerate(zip(groups, found, strict=True)):
        if tables:
            name = f"{group.words or 'search'} (n = {len(tables)})"
            errors = [100 * (1 - table["val_accuracy"]) if validated else table["train_loss"] for table in tables]
            draw_series(error, errors, number, name)
            draw_series(swaps, [table["swaps"] for table in tables], number, name)
            draw_series(overlap, [table["magnitude_iou"] for table in tables], number, name)
    words = "validation error (%)" if validated else "training loss (nats)"
    least, most = error.dataLim.intervaly if error.lines else (1, 1)
    error.set_ylabel(f"{words}, log scale" if most > WIDE * least > 0 else words)
    if most > WIDE * least > 0:
        error.set_yscale("log")
        error.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
        error.yaxis.set_major_formatter("{x:g}")
        error.yaxis.set_minor_formatter(NullFormatter())
    most = float(swaps.dataLim.intervaly[1]) if swaps.lines else 0.0
    if most > WIDE:
        swaps.set_yscale("symlog", linthresh=1)
        swaps.yaxis.set_major_formatter("{x:,.0f}")
    swaps.set_ylim(0, 1.5 * most if most else None)
    swaps.set_ylabel("weights swapped a step")
    overlap.set_ylim(0, 1.02)
    overlap.set_ylabel("IoU with magnitude")
    dense = frame[(frame["round"] == 0) & frame["control"].isna()]
    if validated and dense["val_accuracy"].notna().any():
        level = 100 * (1 - dense.groupby("seed")["val_accuracy"].first().mean())
        error.axhline(level, color=DENSE, linestyle=DASHED, linewidth=1.1, label="dense")
    for axes in line:
        axes.grid(axis="y")


def draw_series(axes: Axes, series: Sequence[pd.Series], number: int, name: str) -> None:
    """Draw the mean and range of several series at each step."""
    table = pd.concat(series, axis=1).dropna(how="all")
    if table.empty:
        return
    colour, _, style = look_of(number)
    axes.plot(table.index, table.mean(axis=1), color=colour, linestyle=style, linewidth=1.3, label=name)
    axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.16, linewidth=0)


def _draw_scores(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the histogram of the scores at every entry: the darker, the more (each column on its own log scale)."""
    counts = np.log1p(table.filter(like=BINS).fillna(0))
    ends = [*table.index[1:], table.index[-1] * (1 + 1 / len(table))]
    for (step, shades), end in zip(counts.iterrows(), ends, strict=True):
        low, high = table.loc[step, ["score_low", "score_high"]].fillna(0)
        if finite(low) and finite(high) and shades.max() > 0:
            width = max(high - low, len(shades) * 1e-12)  # above 0 even where all scores are equal
            edges = np.linspace(low, low + width, len(shades) + 1)
            column = (shades / shades.max()).to_numpy()[:, None]
            axes.pcolormesh([step, end], edges, column, cmap="Greys", vmin=0, vmax=1)
    axes.set_ylabel("scores (darker: more)")
