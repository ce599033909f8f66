"""Rewind point against barrier, accuracy and distances (instability analysis, stabilised tickets)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lottery.analysis.axes import accuracy_axis
from lottery.analysis.instability import STYLES
from lottery.analysis.plots.curves import Curve, at_density, common_densities, curves
from lottery.analysis.plots.experiments import DENSITIES, By, Experiment, check_table, experiments, missing
from lottery.analysis.plots.sheet import (
    Published,
    draw_control_keys,
    draw_curve,
    draw_dense,
    draw_published,
    heading,
    legend,
    sheet,
)
from lottery.analysis.stability import STABLE
from lottery.analysis.style import DENSE, percent
from lottery.errors import LotteryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = (*DENSITIES, "config.rewind.to", "config.method.points", "config.method.measured", "step_rewind", "label")
MOST = 2  # densities that are shown unless asked for
DISTANCES = {
    "l2_order": "another data order: L2",
    "angle_order": "another data order: angle (°)",
    "l2_pruning": "pruning: L2",
    "angle_pruning": "pruning: angle (°)",
}


def rewind(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    densities: Sequence[float] = (),
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
) -> list[Path]:
    """Left the barrier between copies, right the test accuracy, both against the step that tickets are rewound to
    (Frankle et al. 2019, 2020): tickets and controls of each density, means over seeds.

    densities: kept / prunable; by default the lowest two. The dense network, trained anew from each point, is there
        where it was measured (method.measured with 0).
    published: points {"x": step, "y": accuracy, "label", "series"}; with "panel": "barrier" those of the left axis.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError where no barrier was measured.
    """
    check_table(frame, ["step_rewind"])
    rows = frame[frame["round"] > 0]
    splits = (f"probe/lmc_error_{split}" for split in ("test", "train", "validation"))
    barrier = next((key for key in splits if key in rows and rows[key].notna().any()), None)
    if barrier is None:
        raise LotteryError(missing("probe/lmc_error_test"))
    groups = experiments(frame, by, POINTS)
    measured = [
        replace(group, rows=group.rows[group.rows[barrier].notna() & (group.rows["density"] < 1)]) for group in groups
    ]
    asked = list(densities) or common_densities(measured, MOST)
    split = barrier.rpartition("_")[2]
    with sheet(path, heading(frame, title), 4.0, 8.0) as (figure, paths):
        left, right = figure.subplots(1, 2)
        of_barrier = [point for point in published if point.get("panel") == "barrier"]
        draw(left, groups, barrier, asked, band, of_barrier)
        dots = (0, (1, 2))
        left.axhline(
            100 * STABLE,
            color=DENSE,
            linestyle=dots,
            linewidth=1.1,
            zorder=1.5,
            label=f"stable below {100 * STABLE:g} points",
        )
        left.set_ylabel(f"barrier in {split} error (points)")
        left.set_ylim(0, max(left.get_ylim()[1], 100 * STABLE * 1.15))
        drawn = draw(right, groups, "test_accuracy", asked, band, [p for p in published if p.get("panel") != "barrier"])
        draw_control_keys(right, drawn)
        draw_dense(right, groups, "test_accuracy", 100.0)
        ends = right.dataLim.intervaly
        accuracy_axis(right, *ends)
        right.set_ylabel("test accuracy (%)")
        legend(figure, [right, left], band)
    return paths


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
    """How far another data order, and pruning, move the kept weights (Frankle et al. 2019, "Stabilizing", Fig. 3): L2
    distances and angles, an axis for each, against the step that tickets are rewound to; means over seeds.

    densities: kept / prunable; by default the lowest that the most experiments have.
    published: points {"x": step, "y": distance or degrees, "label", "series"}, with "panel": "l2_order", "angle_order",
        "l2_pruning" or "angle_pruning".

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError where none of the four was measured.
    """
    check_table(frame, ["step_rewind"])
    shown = [name for name in DISTANCES if f"probe/{name}" in frame and frame[f"probe/{name}"].notna().any()]
    if not shown:
        raise LotteryError(missing("probe/l2_order"))
    groups = experiments(frame, by, POINTS)
    any_of = [f"probe/{name}" for name in shown]
    measured = [
        replace(group, rows=group.rows[group.rows[any_of].notna().any(axis=1) & (group.rows["density"] < 1)])
        for group in groups
    ]
    asked = list(densities) or common_densities(measured, 1)
    lines = ceil(len(shown) / 2)
    with sheet(path, heading(frame, title), 1.0 + 2.5 * lines, 8.0) as (figure, paths):
        panels = figure.subplots(lines, 2, squeeze=False).flatten().tolist()
        for axes, name in zip(panels, shown, strict=False):
            points = [point for point in published if point.get("panel") == name]
            draw_control_keys(axes, draw(axes, groups, f"probe/{name}", asked, band, points, 1.0))
            axes.set_ylabel(DISTANCES[name])
            axes.set_ylim(0, None)
        for axes in panels[len(shown) :]:
            axes.remove()
        legend(figure, panels[: len(shown)], band)
    return paths


def draw(
    axes: Axes,
    groups: Sequence[Experiment],
    value: str,
    densities: Sequence[float],
    band: str = "range",
    published: Published = (),
    unit: float = 100.0,
) -> list[Curve]:
    """A measurement against the rewind step, a line style for each density. `unit`: what values are multiplied by,
    those of published points too; fractions are drawn in per cent.
    """
    found: list[Curve] = []
    for number, density in enumerate([*densities, *([] if 1.0 in densities else [1.0])]):
        rows = [replace(group, rows=_rewound(group.rows, density)) for group in groups]
        if not any(value in group.rows and group.rows[value].notna().any() for group in rows):
            continue
        for curve in curves(rows, value, "step_rewind", band, ["step_rewind"]):
            style = STYLES[number % len(STYLES)] if curve.control is None or not curve.experiment else curve.style
            curve = replace(curve, style=style)
            if density == 1:
                curve = replace(
                    curve,
                    words=", ".join(filter(None, [curve.experiment, "dense, again from there"])),
                    style="solid",
                    marker="x",
                )
                curve = curve if curve.experiment else replace(curve, colour=DENSE)
            elif len(densities) > 1:
                curve = replace(curve, words=f"{curve.words} {percent(density)} %")
            draw_curve(axes, curve, unit)
            found.append(curve)
    draw_published(axes, published, found, unit)
    _step_axis(
        axes, sorted({step for curve in found for step in curve.points["x"]} | {point["x"] for point in published})
    )
    return found


def _rewound(rows: pd.DataFrame, density: float) -> pd.DataFrame:
    return at_density(rows[rows["round"] > 0], density)


def _step_axis(axes: Axes, steps: Sequence[float]) -> None:
    """Log from the first step that is not 0."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    positive = [step for step in steps if step]
    axes.set_xscale("symlog", linthresh=min(positive, default=1))
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(steps) > 6:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel("rewound to step")
    axes.grid(axis="y")
