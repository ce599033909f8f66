"""The error along the lines between networks (linear mode connectivity), means over seeds."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lottery.analysis.plots.curves import nominal
from lottery.analysis.plots.experiments import By, Experiment, check_table, experiments, missing
from lottery.analysis.plots.sheet import heading, sheet
from lottery.analysis.stability import LINES, density_key, draw_group, how
from lottery.analysis.style import HEIGHT, WIDTH
from lottery.errors import ConfigError, LotteryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 3  # beside one another
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
) -> list[Path]:
    """The tickets' error along the lines that were measured, coloured by density, an axis for each experiment and
    rewind point: means over the seeds, in bands from the lowest to the highest (Frankle et al. 2020, Fig. 2).

    between: "copies" of a ticket, it and the "previous" one, or all on the "path" to it.
    split: of which images; by default of test, else of training images.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError where nothing was measured, or in different
    ways, and for several architectures or data sets that `by` does not tell apart.
    """
    if between not in BETWEEN:
        raise ConfigError.of("between", between, f"one of {', '.join(BETWEEN)}")
    check_table(frame)
    name = BETWEEN[between]
    key = _key(frame, name, split)
    tickets = frame[frame["control"].isna() & frame[key].notna()]
    groups = [group for group in experiments(frame, by) if group.rows.index.isin(tickets.index).any()]
    measured = _one_way(tickets, name, key)
    columns = min(PANELS, len(groups))
    lines = ceil(len(groups) / columns)
    height = HEIGHT if len(groups) == 1 else 1.3 + 2.2 * lines
    words = ", ".join([heading(frame, title), measured] if title is None else [title])
    lowest = float(tickets["density"].min())
    with sheet(path, words, height, WIDTH if columns < PANELS else 8.0) as (figure, paths):
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
        for axes, group in zip(panels, groups, strict=False):
            draw(axes, group, key, name, lowest)
        for axes in panels[len(groups) :]:
            axes.remove()
        for axes in panels[: len(groups)][-columns:]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel(LINES[name], fontsize="medium")
        figure.supylabel(f"{key.rpartition('_')[2]} error (%)", fontsize="medium")
        density_key(figure, panels[: len(groups)], lowest)
    return paths


def draw(axes: Axes, group: Experiment, key: str, name: str, lowest: float) -> None:
    """The mean curve of each density, and its band where it is of several studies."""
    rows = group.rows[group.rows["control"].isna()]
    rows = rows[rows[key].notna()]
    at = nominal(rows)
    if name == "lmc_path":  # a path holds those of the rounds before
        rows = rows[rows["round"] == rows.groupby("run")["round"].transform("max")]
    for density, of in rows.groupby(at.loc[rows.index], sort=False):
        curves = np.array([[np.nan if value is None else value for value in curve] for curve in of[key]], dtype=float)
        means: dict[str, Any] = {"density": density, f"probe/{name}_points": of[f"probe/{name}_points"].iloc[0]}
        if pd.isna(means[f"probe/{name}_points"]):
            means[f"probe/{name}_points"] = curves.shape[1]
        draw_group(axes, [means | {key: curves.mean(axis=0).tolist()}], key, name, lowest)
        if len(curves) > 1:
            line = axes.lines[-1]
            low, high = (100 * end(curves, axis=0) for end in (np.min, np.max))
            axes.fill_between(line.get_xdata(), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    words = [group.words, f"n = {rows['run'].nunique()}"]
    axes.set_title(", ".join(filter(None, words)), fontsize="medium")


def _key(frame: pd.DataFrame, name: str, split: str | None) -> str:
    """The column of the curves."""
    if split is not None and split not in SPLITS:
        raise ConfigError.of("split", split, f"one of {', '.join(SPLITS)}")
    keys = [f"probe/{name}_curve_{each}" for each in ([split] if split else SPLITS)]
    tickets = frame[frame["control"].isna()]
    found = next((key for key in keys if key in tickets and tickets[key].notna().any()), None)
    if found is None:
        raise LotteryError(missing(keys[0]))
    return found


def _one_way(tickets: pd.DataFrame, name: str, key: str) -> str:
    """How they were measured. LotteryError where not all were in one way."""
    kept = [column for column in tickets if str(column).startswith(f"probe/{name}_")]
    rows = tickets[kept].drop(columns=[key]).astype(object).where(tickets[kept].notna(), None).to_dict("records")
    ways = sorted({how(_whole(row), name, key.rpartition("_")[2]) for row in rows})
    if len(ways) > 1:
        raise LotteryError(f"lines measured in different ways are not to be compared: {' and '.join(ways)}")
    return ways[0]


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """Counts as whole numbers, which a column with gaps does not keep."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in row.items()
    }
