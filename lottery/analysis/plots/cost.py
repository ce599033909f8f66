"""What tickets cost to find, against their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lottery.analysis.axes import accuracy_axis
from lottery.analysis.plots.curves import Curve, at_density, common_densities, curves
from lottery.analysis.plots.experiments import By, Experiment, check_table, experiments
from lottery.analysis.plots.sheet import Published, draw_curve, draw_dense, draw_published, heading, legend, sheet
from lottery.analysis.plots.words import config_of
from lottery.analysis.style import HEIGHT, WIDTH, percent
from lottery.errors import ConfigError, LotteryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {  # label, and what it is divided by
    "steps": ("thousand training batches", 1000),
    "seconds": ("minutes of training and search", 60),
    "joules": ("J per 1,000 images of inference", 1),
}
AT_INIT = ("PruningAtInit", "RandomPruning")  # need no dense training
SEVERAL = ("Instability", "Regimes")  # whose rows do not hold all their trainings
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
    """Test accuracy against what a ticket cost to find and train, an axis for each density: means over seeds.

    x: "steps", the batches of all trainings and searches that lead to the ticket, its own training included, and that
        of the dense network where it is pruned; "seconds", the same on the machine that they ran on, without what
        scores took; "joules", of its inference, which is what probes=cost measures.
    densities: kept / prunable; by default those that the most experiments have, at most three. One experiment alone is
        drawn over all its densities.
    published: points {"x": batches, seconds or joules, "y": accuracy, "label", "series"}, and "density" for the axis.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError where it was not measured, and for methods
    whose rounds do not hold all that led to them.
    """
    if x not in COSTS:
        raise ConfigError.of("x", x, f"one of {', '.join(COSTS)}")
    check_table(frame, ["probe/cost_joules"] if x == "joules" else ["test_accuracy", x])
    frame = with_cost(frame, x)
    groups = experiments(frame, by)
    asked: list[float | None] = [*(list(densities) or common_densities(groups, PANELS))]
    asked = [None] if len(groups) == 1 and not densities else asked
    width = WIDTH if len(asked) == 1 else 1.4 + 2.6 * len(asked)
    with sheet(path, heading(frame, title), HEIGHT, width) as (figure, paths):
        panels = figure.subplots(1, len(asked), sharey=True, sharex=True, squeeze=False)[0].tolist()
        for axes, density in zip(panels, asked, strict=True):
            here = [point for point in published if density is None or point.get("density") in (None, density)]
            draw(axes, groups, x, density, band, here)
        low, high = (f(axes.dataLim.intervaly[i] for axes in panels) for f, i in ((min, 0), (max, 1)))
        accuracy_axis(panels[0], low, high)
        panels[0].set_ylabel("test accuracy (%)")
        for axes in panels:
            axes.set_xlabel(COSTS[x][0])
            axes.set_xlim(0, 1.1 * max(place.dataLim.intervalx[1] for place in panels))
        legend(figure, panels, band, "" if x == "joules" else "the dense network's cost is in it where it is used")
    return paths


def draw(
    axes: Axes,
    groups: Sequence[Experiment],
    x: str,
    density: float | None,
    band: str = "range",
    published: Published = (),
) -> list[Curve]:
    """The tickets of one density, a marker an experiment; of None, all of them, joined."""
    tickets = [
        replace(group, rows=group.rows[group.rows["control"].isna() & (group.rows["round"] > 0)]) for group in groups
    ]
    if density is not None:
        tickets = [replace(group, rows=at_density(group.rows, density)) for group in tickets]
    found = curves(tickets, "test_accuracy", "cost", band, controls=False)
    unit = 1 / COSTS[x][1]
    for curve in found:
        draw_curve(axes, curve, 100.0, unit, joined=density is None)
        if density is None:
            _name_densities(axes, tickets[0], curve, unit)
    draw_dense(axes, groups, "test_accuracy", 100.0)
    draw_published(axes, published, found, 100.0, unit)
    axes.grid(axis="y")
    if density is not None:
        axes.set_title(f"{percent(density)} % of the weights", fontsize="medium")
    return found


def _name_densities(axes: Axes, group: Experiment, curve: Curve, unit: float) -> None:
    """The density beside each point."""
    at = group.rows.groupby("round")["density"].mean().tolist()
    every = -(-len(at) // 10)
    for number, (_, point) in enumerate(curve.points.iterrows()):
        if number % every == 0:
            place = (unit * point["x"], 100 * point["high"])
            words = f"{percent(at[number])} %"
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
            axes.annotate(
                words, place, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8, bbox=box, zorder=15
            )


def with_cost(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows with a column `cost`, of tickets: in batches, seconds, or joules."""
    if x == "joules":
        return frame.assign(cost=frame["probe/cost_joules"])
    tickets = frame[frame["control"].isna()].sort_values(["run", "round"])
    own = tickets[x].astype(float)
    if x == "steps" and "search_batches" in tickets:
        own = own + tickets["search_batches"].fillna(0)
    spent = pd.Series(0.0, index=tickets.index)
    for _, rows in tickets.groupby("run", sort=False):
        spent.loc[rows.index] = _spent(own.loc[rows.index], config_of(rows.iloc[0].to_dict()))
    return frame.assign(cost=spent)


def _spent(own: pd.Series, config: dict[str, Any]) -> pd.Series:
    """What each round took with all before it that it builds on; `own` are the rounds of a study, from 0 on."""
    method = config.get("method", {})
    kind = str(method.get("_target_", "")).rpartition(".")[2]
    if kind in SEVERAL:
        raise LotteryError(
            f"cost: the rounds of {kind} do not hold all trainings that led to them: draw IMP, or other methods"
        )
    if kind in AT_INIT or method.get("scored") == "init":
        return own
    if method.get("one_shot") or (kind == "LayerTickets" and not method.get("iterative")):
        return own.where(own.index == own.index[0], own + own.iloc[0])
    return own.cumsum()
