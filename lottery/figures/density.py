"""Figures of accuracy and early-stop step against density, over seeds, methods and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from lottery.errors import ConfigError
from lottery.figures.axes import accuracy_axis, density_axis, step_axis
from lottery.figures.curves import Curve, curves, dense_levels
from lottery.figures.experiments import By, Experiment, NothingToDraw, check_table, experiments, missing
from lottery.figures.sheet import Published, draw_panel, heading, legend, paths_of, sheet

DENSITY = {"density": "prunable weights remaining (%)", "density_weights": "weights remaining (%)"}


def check_density(density: str) -> None:
    """Raise ConfigError unless `density` names a column of densities."""
    if density not in DENSITY:
        raise ConfigError.of("density", density, f"one of {', '.join(DENSITY)}")


def accuracy(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    density: str = "density",
    value: str = "test_accuracy",
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
    svg: bool = True,
) -> list[Path]:
    """Draw accuracy against density: a curve for the tickets and each control of an experiment, means over its seeds.

    density: "density", of the prunable weights, or "density_weights", of all weights.
    value: the column to draw, such as "early_stop_test_accuracy".
    by: columns whose values separate the curves; by default all options, seeds excepted, in which the studies differ.
    band: "range", from the lowest to the highest seed; "t" or "bootstrap", an interval of the mean; or "trainings",
        from the lowest to the highest training, where each copy of a control counts.
    published: points {"x": density, "y": value as in the table, "label": source, "series": a curve's words, a control
        or "dense"}, drawn hollow.
    Returns the paths of the PNG and, if `svg`, the SVG. Raises LotteryError where nothing was measured, and for several
    architectures or data sets that `by` does not tell apart.
    """
    check_density(density)
    check_table(frame, [value, density])
    groups = experiments(frame, by)
    with sheet(path, heading(frame, title), svg=svg) as panels:
        draw_densities(panels[0], groups, value, density, band, published)
        legend(panels, band)
    return paths_of(path, svg)


def early_stop(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    density: str = "density",
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
    svg: bool = True,
) -> list[Path]:
    """Draw the step of the lowest validation loss against density; arguments as of `accuracy`, published `y` in steps.

    Raises LotteryError where no ticket was trained: a mask that was only searched for has no such step.
    """
    check_table(frame)
    if "steps" in frame and (frame["round"] > 0).any():
        frame = frame[(frame["round"] == 0) | (frame["steps"] != 0)]
        if (frame["round"] == 0).all():
            raise NothingToDraw("early_stop_step: no ticket was trained")
    value = "early_stop_step"
    return accuracy(
        frame, path, density=density, value=value, by=by, band=band, published=published, title=title, svg=svg
    )


def draw_densities(
    axes: Axes,
    groups: Sequence[Experiment],
    value: str,
    density: str = "density",
    band: str = "range",
    published: Published = (),
    inches: float = 5.4,
) -> list[Curve]:
    """Draw a measurement against density and return its curves. `inches`: the width of the axes."""
    found = curves(groups, value, density, band)
    if not found:
        raise NothingToDraw(missing(value))
    left = [replace(curve, points=curve.points[curve.points["x"] > 0]) for curve in found]
    left = [curve for curve in left if len(curve.points)]  # a log axis has no 0; its label counts these
    draw_panel(axes, value, left, dense_levels(groups, value), published)
    places = [*pd.concat([curve.points["x"] for curve in found]), *(point["x"] for point in published)]
    density_axis(axes, places, DENSITY[density], inches)
    if value == "early_stop_step":
        step_axis(axes)
    elif "accuracy" in value:
        accuracy_axis([axes])
    return found
