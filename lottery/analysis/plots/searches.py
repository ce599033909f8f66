"""How searches for masks converge, and how much of the mask still changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lottery.analysis.plots.curves import PALETTE, STYLES
from lottery.analysis.plots.experiments import By, Experiment, check_table, experiments, missing
from lottery.analysis.plots.sheet import DASHED, heading, legend, sheet
from lottery.analysis.search import read_search
from lottery.analysis.style import DENSE, percent
from lottery.errors import LotteryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def search(frame: pd.DataFrame, path: str | Path, *, by: By = None, title: str | None = None) -> list[Path]:
    """Against the step of the search: validation error (training loss where there is none), weights swapped a step, and
    the overlap with the magnitude mask. A line of axes for each density, a curve for each experiment: means over seeds,
    in bands from the lowest to the highest.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError where nothing was searched for.
    """
    check_table(frame, ["search_steps"])
    frame = frame[frame["run"].isin(frame.loc[frame["search_steps"].notna(), "run"])]
    groups = experiments(frame, by)
    entries = {run: first_search(Path(run)) for run in frame["run"].unique()}
    column = "config.method.density"
    densities = sorted(frame[column].dropna().unique(), reverse=True) if column in frame else [None]
    with sheet(path, heading(frame, title), 0.9 + 2.6 * len(densities), 9.0) as (figure, paths):
        panels = figure.subplots(len(densities), 3, squeeze=False, sharex=True)
        for line, density in zip(panels, densities, strict=True):
            of = [g.rows if density is None else g.rows[g.rows[column] == density] for g in groups]
            draw(line, groups, [[entries[run] for run in rows["run"].unique()] for rows in of], frame)
            if len(densities) > 1:
                line[0].set_title(f"{percent(density)} % of the weights", fontsize="medium", loc="left")
        for axes in panels[-1]:
            axes.set_xlabel("step of the search")
        legend(figure, panels.flatten().tolist())
    return paths


def first_search(run: Path) -> pd.DataFrame:
    """The entries of a study's search, by step; of the first round that has one."""
    entries = read_search(run)
    if not entries:
        raise LotteryError(f"{run}: search.csv: {missing('search_csv')}")
    table = pd.DataFrame(entries).astype(float)
    return table[table["round"] == table["round"].iloc[0]].set_index("step")


def draw(
    line: Sequence[Axes], groups: Sequence[Experiment], found: Sequence[Sequence[pd.DataFrame]], frame: pd.DataFrame
) -> None:
    """The three axes of one density; `found`: the searches of each experiment."""
    error, swaps, overlap = line
    validated = all(table["val_accuracy"].notna().any() for tables in found for table in tables)
    for number, (group, tables) in enumerate(zip(groups, found, strict=True)):
        if not tables:
            continue
        name = f"{group.words or 'search'} (n = {len(tables)})"
        if validated:
            _line(error, [100 * (1 - table["val_accuracy"]) for table in tables], number, name)
        else:
            _line(error, [table["train_loss"] for table in tables], number, name)
        _line(swaps, [table["swaps"] for table in tables], number, name)
        _line(overlap, [table["magnitude_iou"] for table in tables], number, name)
    error.set_ylabel("validation error (%), log scale" if validated else "training loss, log scale")
    _log_axis(error)
    swaps.set_yscale("symlog", linthresh=1)
    swaps.set_ylim(0, 1.5 * swaps.dataLim.intervaly[1])
    swaps.set_ylabel("weights swapped a step")
    overlap.set_ylim(0, 1.02)
    overlap.set_ylabel("IoU with magnitude")
    dense = frame[(frame["round"] == 0) & frame["control"].isna()]
    if validated and dense["val_accuracy"].notna().any():
        level = 100 * (1 - dense.groupby("seed")["val_accuracy"].first().mean())
        error.axhline(level, color=DENSE, linestyle=DASHED, linewidth=1.1, label="dense")
    for axes in line:
        axes.grid(axis="y")


def _line(axes: Axes, series: Sequence[pd.Series], number: int, name: str) -> None:
    """Mean and range of the values at each step."""
    table = pd.concat(series, axis=1).dropna(how="all")
    if table.empty:
        return
    colour, style = PALETTE[number % len(PALETTE)][0], STYLES[number // len(PALETTE) % len(STYLES)]
    axes.plot(table.index, table.mean(axis=1), color=colour, linestyle=style, linewidth=1.3, label=name)
    axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.16, linewidth=0)


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
