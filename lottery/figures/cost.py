"""Figure of accuracy against the cost of finding a ticket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from lottery.errors import ConfigError, LotteryError
from lottery.figures.axes import accuracy_axis
from lottery.figures.curves import Curve, at_density, common_densities, curves, dense_levels
from lottery.figures.experiments import By, Experiment, check_table, experiments
from lottery.figures.sheet import Published, draw_panel, heading, legend, on_panel, paths_of, sheet
from lottery.figures.style import HEIGHT, WIDTH, percent
from lottery.figures.words import config_of
from lottery.methods.shows import shows

COSTS = {  # label and divisor
    "steps": ("thousand training batches", 1000),
    "seconds": ("minutes of training and search", 60),
    "joules": ("J per 1,000 images of inference", 1),
}
PANELS = 3


def cost(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    x: str = "steps",
    densities: Sequence[float] = (),
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
) -> list[Path]:
    """Draw test accuracy against the cost of finding and training a ticket: an axis for each density, means over seeds.

    x: the cost. "steps": batches of the ticket's training and of all trainings and searches that it builds on; the
        dense network's training is included where it is pruned. "seconds": the time of these, without that of scores.
        "joules": the energy of the ticket's inference (probes=cost).
    densities: kept / prunable; by default those that the most experiments have, at most three. One experiment alone is
        drawn over all its densities.
    published: points {"x": batches, seconds or joules, "y": accuracy, "label", "series"}, and "density" for the axis.
    Returns the paths of PNG, SVG and PDF. Raises LotteryError where the cost was not measured, and for methods whose
    table lacks trainings that led to a round.
    """
    if x not in COSTS:
        raise ConfigError.of("x", x, f"one of {', '.join(COSTS)}")
    check_table(frame, ["probe/cost_joules"] if x == "joules" else ["test_accuracy", x])
    frame = with_cost(frame, x)
    groups = experiments(frame, by)
    asked: list[float | None] = [*(list(densities) or common_densities(groups, PANELS))]
    asked = [None] if len(groups) == 1 and not densities else asked
    width = WIDTH if len(asked) == 1 else 1.4 + 2.6 * len(asked)
    what = f"test accuracy (%) against cost: {COSTS[x][0]}"
    with sheet(path, heading(frame, title, what), HEIGHT, width, count=len(asked), sharex=True, sharey=True) as panels:
        for axes, density in zip(panels, asked, strict=True):
            here = published if density is None else on_panel(published, "density", None, density)
            draw_costs(axes, groups, x, density, band, here)
            axes.set_xlabel(COSTS[x][0])
            axes.label_outer()
        panels[0].set_xlim(0, 1.1 * max(axes.dataLim.intervalx[1] for axes in panels))
        accuracy_axis(panels)
        legend(panels, band, "" if x == "joules" else "the dense network's cost is in it where it is used")
    return paths_of(path)


def draw_costs(
    axes: Axes,
    groups: Sequence[Experiment],
    x: str,
    density: float | None,
    band: str = "range",
    published: Published = (),
) -> list[Curve]:
    """Draw the tickets of one density as a marker for each experiment; for None, all tickets, joined by lines."""
    if density is None:
        tickets = [replace(group, rows=group.rows[group.rows["round"] > 0]) for group in groups]
    else:
        tickets = at_density(groups, density)
        axes.set_title(f"{percent(density)} % of the prunable weights", fontsize="medium")
    found, unit = curves(tickets, "test_accuracy", "cost", band), 1 / COSTS[x][1]
    levels = dense_levels(groups, "test_accuracy")
    draw_panel(axes, "test_accuracy", found, levels, published, unit, joined=density is None)
    for curve in found if density is None else ():
        _name_densities(axes, tickets[0].rows.groupby("round")["density"].mean().tolist(), curve, unit)
    return found


def _name_densities(axes: Axes, densities: Sequence[float], curve: Curve, unit: float) -> None:
    """Write the density beside every point, or every second, third … so that at most ten points are labelled."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
    look: dict[str, Any] = {"ha": "center", "fontsize": 8, "bbox": box, "zorder": 15}
    points = list(zip(densities, curve.points["x"], curve.points["high"], strict=False))
    for density, cost, high in points[:: -(-len(densities) // 10)]:
        words, place = f"{percent(density)} %", (unit * cost, 100 * high)
        axes.annotate(words, place, xytext=(0, 6), textcoords="offset points", **look)


def with_cost(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """Return the rows with a column `cost`, filled for tickets: in batches, seconds, or joules."""
    if x == "joules":
        return frame.assign(cost=frame["probe/cost_joules"].where(frame["control"].isna()))
    tickets = frame[frame["control"].isna()].sort_values(["run", "round"])
    own = tickets[x].astype(float)
    if x == "steps" and "search_batches" in tickets:
        own = own + tickets["search_batches"].fillna(0)
    spent = pd.Series(0.0, index=tickets.index)
    for _, rows in tickets.groupby("run", sort=False):
        spent.loc[rows.index] = _spent(own.loc[rows.index], config_of(rows.iloc[0].to_dict()))
    return frame.assign(cost=spent)


def _spent(own: pd.Series, config: dict[str, Any]) -> pd.Series:
    """Return the cost of each round and the rounds that it builds on; `own`: the cost of each alone, from round 0."""
    method = config.get("method", {})
    target = str(method.get("_target_", ""))
    said = shows(target)
    if not said.ladder:
        kind = target.rpartition(".")[2]
        raise LotteryError(
            f"cost: the rounds of {kind} do not hold all trainings that led to them: draw IMP, or other methods"
        )
    if said.needs == "none" or method.get("scored") == "init":
        return own
    if method.get("one_shot") or (said.needs == "dense" and not method.get("iterative")):
        return own.where(own.index == own.index[0], own + own.iloc[0])
    return own.cumsum()
