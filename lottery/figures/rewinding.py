"""Figures of barrier, accuracy and distances against the rewind point (instability analysis, stabilised tickets)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from lottery.figures.axes import accuracy_axis
from lottery.figures.connectivity import SPLITS, STABLE, one_way
from lottery.figures.curves import STYLES, Curve, at_density, common_densities, curves, dense_levels
from lottery.figures.experiments import (
    DENSITIES,
    By,
    Experiment,
    NothingToDraw,
    check_table,
    experiments,
    measured,
    missing,
)
from lottery.figures.sheet import Level, Published, draw_panel, heading, legend, on_panel, paths_of, sheet
from lottery.figures.style import DENSE, percent
from lottery.figures.words import words_and_unit

POINTS = (*DENSITIES, "config.rewind.to", "config.method.points", "config.method.measured", "step_rewind", "label")
DISTANCES = ("l2_order", "angle_order", "l2_pruning", "angle_pruning")


def rewind(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    densities: Sequence[float] = (),
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
    vector: bool = True,
) -> list[Path]:
    """Draw barrier between copies (left) and test accuracy (right) against the rewind step (Frankle et al. 2019, 2020).

    Tickets and controls of each density are means over seeds. The dense network, trained again from each rewind point,
    is drawn where it was measured (method.measured with 0).
    densities: kept / prunable; by default the lowest two.
    published: points {"x": step, "y": accuracy, "label", "series"}; with "panel": "barrier" those of the left axis.
    Returns the paths written. Raises LotteryError where no barrier was measured, or in different ways.
    """
    check_table(frame, ["step_rewind"])
    rows = frame[frame["round"] > 0]
    barriers = measured(rows, [f"probe/lmc_error_{split}" for split in SPLITS])
    if not barriers:
        raise NothingToDraw(missing("probe/lmc_error_test"))
    barrier, accuracy = barriers[0], "test_accuracy"
    what = f"{words_and_unit(barrier)[0]} and test accuracy (%) against the rewind step"
    words = heading(frame, title, what, one_way(rows[rows[barrier].notna()], "lmc", barrier.rpartition("_")[2]))
    groups = experiments(frame, by, POINTS)
    asked = list(densities) or _common(groups, [barrier], 2)
    with sheet(path, words, 4.0, 8.0, vector, count=2) as (left, right):
        draw_rewound(left, groups, barrier, asked, band, on_panel(published, "panel", "barrier"))
        stable = f"stable below {100 * STABLE:g} points"
        left.axhline(100 * STABLE, color=DENSE, linestyle=(0, (1, 2)), linewidth=1.1, zorder=1.5, label=stable)
        left.set_ylim(0, max(left.get_ylim()[1], 100 * STABLE * 1.15))
        elsewhere = [point for point in published if point.get("panel") != "barrier"]
        draw_rewound(right, groups, accuracy, asked, band, elsewhere, dense_levels(groups, accuracy))
        accuracy_axis([right])
        legend([right, left], band)
    return paths_of(path, vector)


def stability(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    densities: Sequence[float] = (),
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
) -> list[Path]:
    """Draw how far another data order, and pruning, move the kept weights (Frankle et al. 2019, "Stabilizing", Fig. 3).

    L2 distances and angles have an axis each, against the rewind step; means over seeds.
    densities: kept / prunable; by default the lowest that the most experiments have.
    published: points {"x": step, "y": distance or degrees, "label", "series"}, with "panel": "l2_order", "angle_order",
        "l2_pruning" or "angle_pruning".
    Returns the paths of PNG, SVG and PDF. Raises LotteryError where none of the four was measured.
    """
    check_table(frame, ["step_rewind"])
    shown = measured(frame, [f"probe/{name}" for name in DISTANCES])
    if not shown:
        raise NothingToDraw(missing("probe/l2_order"))
    groups = experiments(frame, by, POINTS)
    asked = list(densities) or _common(groups, shown, 1)
    height = 1.0 + 2.5 * ceil(len(shown) / 2)
    what = "movement of the kept weights (L2 distance, angle in °) against the rewind step"
    with sheet(path, heading(frame, title, what), height, 8.0, count=len(shown), most=2) as panels:
        for axes, value in zip(panels, shown, strict=True):
            draw_rewound(axes, groups, value, asked, band, on_panel(published, "panel", value.removeprefix("probe/")))
            axes.set_ylim(0, None)
        legend(panels, band)
    return paths_of(path)


def _common(groups: Sequence[Experiment], any_of: list[str], most: int) -> list[float]:
    """Return the `most` lowest densities below 1 that the most experiments have, of tickets measured in `any_of`."""
    measured = [
        replace(group, rows=group.rows[group.rows[any_of].notna().any(axis=1) & (group.rows["density"] < 1)])
        for group in groups
    ]
    return common_densities(measured, most)


def draw_rewound(
    axes: Axes,
    groups: Sequence[Experiment],
    value: str,
    densities: Sequence[float],
    band: str = "range",
    published: Published = (),
    dense: Sequence[Level] = (),
) -> list[Curve]:
    """Draw a measurement against the rewind step, a line style for each density. `dense`: levels of dense networks."""
    found: list[Curve] = []
    for number, density in enumerate([*densities, *([] if 1.0 in densities else [1.0])]):
        of = curves(at_density(groups, density), value, "step_rewind", band, ["step_rewind"])
        found += [_at(curve, density, number, len(densities) > 1) for curve in of]
    steps = sorted(
        {x for curve in found for x in curve.points["x"]} | {point["x"] for point in published if "x" in point}
    )
    axes.set_xscale("symlog", linthresh=min((step for step in steps if step), default=1))  # log from the first step on
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    if len(steps) > 6:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel("rewound to step")
    draw_panel(axes, value, found, dense, published)
    return found


def _at(curve: Curve, density: float, number: int, several: bool) -> Curve:
    """Return the curve in the line style of the density with this number; if `several`, its words name the density."""
    if density == 1:
        words = ", ".join(filter(None, [curve.experiment, "dense, again from there"]))
        colour = curve.colour if curve.experiment else DENSE
        return replace(curve, words=words, style="solid", marker="x", colour=colour)
    if curve.control is None or not curve.experiment:
        curve = replace(curve, style=STYLES[number % len(STYLES)])
    return replace(curve, words=f"{curve.words} {percent(density)} %") if several else curve
