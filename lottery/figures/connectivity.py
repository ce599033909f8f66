"""Figures of the error along lines between networks (linear mode connectivity), as means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm

from lottery.errors import ConfigError, LotteryError
from lottery.figures.curves import nominal
from lottery.figures.experiments import By, Experiment, NothingToDraw, check_table, experiments, missing
from lottery.figures.sheet import heading, paths_of, sheet
from lottery.figures.style import HEIGHT, WIDTH, finite, percent

PANELS = 3  # axes in a row
STABLE = 0.02  # a barrier in error below this counts as stable (Frankle et al. 2020, section 3)
NAMED = 15  # a legend lists at most so many densities
LINES = {  # figures of the probe -> label of the x axis, words of the title
    "lmc": ("position on the line between two copies", "the line between two copies of a ticket"),
    "lmc_previous": ("position on the line from the round before", "the line from the round before"),
    "lmc_path": ("position on the path: 0 is the dense network, n the n-th after it", "the path of tickets"),
}
SPLITS = ("test", "train", "validation")
BETWEEN = {"copies": "lmc", "previous": "lmc_previous", "path": "lmc_path"}


def lmc(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    between: str = "copies",
    split: str | None = None,
    by: By = None,
    title: str | None = None,
    vector: bool = True,
) -> list[Path]:
    """Draw the error of tickets along lines between networks, coloured by density (Frankle et al. 2020, Fig. 2).

    Each experiment and rewind point has an axis. Bands reach from the lowest to the highest seed.
    between: what a line joins: "copies" of a ticket, a ticket and its "previous" one, or the tickets on a "path" to it.
    split: the images that the error is measured on; by default the first measured one of test, train, validation.
    Returns the paths written. Raises LotteryError where nothing was measured, or in different ways, and for several
    architectures or data sets that `by` does not tell apart.
    """
    if between not in BETWEEN:
        raise ConfigError.of("between", between, f"one of {', '.join(BETWEEN)}")
    check_table(frame)
    name = BETWEEN[between]
    key = _key(frame, name, split)
    tickets = _measured(frame, key)
    groups = [group for group in experiments(frame, by) if group.rows.index.isin(tickets.index).any()]
    split = key.rpartition("_")[2]
    words = heading(frame, title, f"{split} error (%) along {LINES[name][1]}", one_way(tickets, name, split))
    columns, lowest = min(PANELS, len(groups)), float(tickets["density"].min())
    height = HEIGHT if len(groups) == 1 else 1.3 + 2.2 * ceil(len(groups) / columns)
    width = WIDTH if columns < PANELS else 8.0
    with sheet(path, words, height, width, vector, len(groups), columns, sharex=True, sharey=True) as panels:
        for axes, group in zip(panels, groups, strict=True):
            draw_lines(axes, group, key, name, lowest)
        for axes in panels[-columns:]:
            axes.tick_params(labelbottom=True)
        figure = panels[0].figure
        figure.supxlabel(LINES[name][0], fontsize="medium")
        figure.supylabel(f"{split} error (%)", fontsize="medium")
        if name == "lmc_path":
            panels[0].locator_params("x", integer=True)
        density_key(panels, lowest)
    return paths_of(path, vector)


def draw_lines(axes: Axes, group: Experiment, key: str, name: str, lowest: float) -> None:
    """Draw the mean curve of each density, with a band where several studies have it."""
    norm, colours = density_colours(lowest)
    rows = _measured(group.rows, key)
    at = nominal(rows)
    if name == "lmc_path":  # the path of the last round contains the earlier paths
        rows = rows[rows["round"] == rows.groupby("run")["round"].transform("max")]
    for density, of in rows.groupby(at.loc[rows.index], sort=False):
        curves = 100 * np.array(of[key].tolist(), dtype=float)
        points = of[f"probe/{name}_points"].iloc[0]  # points on each line of a path
        where = [k / ((curves.shape[1] if pd.isna(points) else points) - 1) for k in range(curves.shape[1])]
        colour = colours(norm(density))
        axes.plot(where, curves.mean(axis=0), color=colour, label=f"{percent(density)} %")
        if len(curves) > 1:
            axes.fill_between(where, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.grid(axis="y")
    if group.words:  # else the figure's title has n
        axes.set_title(f"{group.words}, n = {rows['run'].nunique()}", fontsize="medium")


def _key(frame: pd.DataFrame, name: str, split: str | None) -> str:
    """Return the column of the curves on `split`, or on the first measured split. Raises NothingToDraw if none was."""
    if split is not None and split not in SPLITS:
        raise ConfigError.of("split", split, f"one of {', '.join(SPLITS)}")
    keys = [f"probe/{name}_curve_{each}" for each in ([split] if split else SPLITS)]
    found = [key for key in keys if key in frame and len(_measured(frame, key))]
    if not found:
        raise NothingToDraw(missing(keys[0]))
    return found[0]


def _measured(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the tickets that have a curve and keep at least one weight."""
    tickets = frame[frame["control"].isna() & (frame["density"] > 0) & frame[key].notna()]
    return tickets[[any(finite(value) for value in curve) for curve in tickets[key]]] if len(tickets) else tickets


def one_way(tickets: pd.DataFrame, name: str, split: str) -> str:
    """Describe how lines were measured: "2 copies, 30 points, 10,000 test images, BN interpolated".

    name: prefix of the probe's columns, such as "lmc". Raises LotteryError where tickets were measured differently.
    """
    facts = [f"probe/{name}_{what}" for what in ("copies", "points", f"images_{split}", "bn_recomputed")]
    ways = sorted({_way(split, *row) for row in tickets.reindex(columns=facts).itertuples(index=False)})
    if len(ways) > 1:
        raise LotteryError(f"lines measured in different ways are not to be compared: {' and '.join(ways)}")
    return ways[0]


def _way(split: str, copies: Any, points: Any, images: Any, recomputed: Any) -> str:
    counts = ((copies, "copies"), (points, "points"), (images, f"{split} images"))
    facts = [f"{count:,.0f} {words}" for count, words in counts if finite(count) and count]
    facts += ["BN recomputed" if recomputed else "BN interpolated"] if finite(recomputed) else []
    return ", ".join(facts)


def density_colours(lowest: float) -> tuple[LogNorm, LinearSegmentedColormap]:
    """Map densities to colours on a log scale from `lowest` to 1; dense is dark. A `lowest` of 0 counts as 1 %."""
    shades = colormaps["viridis_r"](np.linspace(0.08, 1, 64))  # without the palest
    norm = LogNorm(min(lowest, 0.5) if lowest > 0 else 0.01, 1, clip=True)
    return norm, LinearSegmentedColormap.from_list("densities", shades)


def density_key(panels: Sequence[Axes], lowest: float) -> None:
    """Show the density of each curve: in a legend, or on a colour scale if there are too many curves."""
    figure: Any = panels[0].figure
    named = {line.get_label(): line for axes in panels for line in axes.lines}
    if len(named) <= NAMED:
        title = "prunable\nweights\nremaining"
        figure.legend(named.values(), named.keys(), title=title, loc="outside right center", fontsize="small")
        return
    norm, colours = density_colours(lowest)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), label="prunable weights remaining (%)")
    bar.ax.yaxis.set_major_formatter(lambda density, _: percent(density))
    bar.minorticks_off()
