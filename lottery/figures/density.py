"""Figures of accuracy and early-stop step against density, over seeds, methods and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes

from lottery.errors import ConfigError
from lottery.figures.axes import CHARACTER, accuracy_axis, density_axis, step_axis
from lottery.figures.curves import Curve, curves, dense_levels, nominal
from lottery.figures.experiments import By, Experiment, NothingToDraw, check_table, experiments, missing
from lottery.figures.sheet import Level, Published, draw_panel, heading, legend, paths_of, sheet
from lottery.figures.style import percent
from lottery.figures.words import words_and_unit

DENSITY = {"density": "prunable weights remaining (%)", "density_weights": "weights remaining (%)"}
SHORTEST = 8  # characters of room that the name of a mask needs below its marker


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
    vector: bool = True,
) -> list[Path]:
    """Draw accuracy against density: a curve for the tickets and each control of an experiment, means over its seeds.

    Where all tickets have one density, they and the controls stand side by side, and no line joins them.
    density: "density", of the prunable weights, or "density_weights", of all weights.
    value: the column to draw, such as "early_stop_test_accuracy".
    by: columns whose values separate the curves; by default all options, seeds excepted, in which the studies differ.
    band: "range", from the lowest to the highest seed; "t" or "bootstrap", an interval of the mean; or "trainings",
        from the lowest to the highest training, where each copy of a control counts.
    published: points {"x": density, "y": value as in the table, "label": source, "series": a curve's words, a control
        or "dense"}, drawn hollow.
    Returns the paths of the PNG and, if `vector`, of SVG and PDF. Raises LotteryError where nothing was measured or
    nothing pruned, and for several architectures or data sets that `by` does not tell apart.
    """
    check_density(density)
    check_table(frame, [value, density])
    groups = experiments(frame, by)
    alone = not published and at_one_density(groups, value, density, band)
    if alone and len(alone) == 1 and frame["run"].nunique() == 1:
        raise NothingToDraw(f"{value}: one ticket and no control, which is one dot; the table has its number")
    place = f"at {_percent_of(alone, density)}" if alone else f"against {DENSITY[density]}"
    what = f"{words_and_unit(value)[0]} {place}"
    with sheet(path, heading(frame, title, what), vector=vector) as panels:
        draw_densities(panels[0], groups, value, density, band, published)
        legend(panels, band)
    return paths_of(path, vector)


def early_stop(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    density: str = "density",
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
    vector: bool = True,
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
        frame, path, density=density, value=value, by=by, band=band, published=published, title=title, vector=vector
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
    """Draw a measurement against density, or at the only one; return its curves. inches: the width of the axes."""
    found = curves(groups, value, density, band)
    if not found:
        raise NothingToDraw(missing(value))
    levels = dense_levels(groups, value)
    if not published and (arms := at_one_density(groups, value, density, band)):
        draw_arms(axes, value, arms, levels, density, inches)
        return arms
    left = [replace(curve, points=curve.points[curve.points["x"] > 0]) for curve in found]
    left = [curve for curve in left if len(curve.points)]  # a log axis has no 0; its label counts these
    draw_panel(axes, value, left, levels, published)
    places = [*pd.concat([curve.points["x"] for curve in found]), *(point["x"] for point in published)]
    density_axis(axes, places, DENSITY[density], inches)
    _measured_axis(axes, value)
    return found


def at_one_density(
    groups: Sequence[Experiment], value: str, density: str = "density", band: str = "range"
) -> list[Curve]:
    """Return a curve of one point for each experiment and control if all tickets have one density; else no curve.

    Raises NothingToDraw where nothing is pruned: a single point, of the dense network, is no figure.
    """
    pruned = [replace(group, rows=group.rows[group.rows["round"] > 0]) for group in groups]
    rows = pd.concat([group.rows for group in pruned])
    if rows.empty:
        raise NothingToDraw(f"{value}: nothing is pruned in these runs yet")
    if nominal(rows[rows["control"].isna()]).nunique(dropna=False) > 1:
        return []
    arms = curves(pruned, value, density, band)
    return arms if all(len(arm.points) == 1 and arm.points["x"].iloc[0] > 0 for arm in arms) else []


def draw_arms(
    axes: Axes, value: str, arms: Sequence[Curve], dense: Sequence[Level], density: str, inches: float = 5.4
) -> None:
    """Draw curves of one point side by side, named below where there is room."""
    placed = [replace(arm, points=arm.points.assign(x=float(place))) for place, arm in enumerate(arms)]
    draw_panel(axes, value, placed, dense)
    room = int(inches / len(arms) / CHARACTER)
    names = [fill(", ".join(dict.fromkeys(filter(None, [arm.experiment, arm.words]))), room) for arm in arms]
    axes.set_xticks(range(len(arms)), names if room >= SHORTEST else [""] * len(arms))
    axes.set_xlim(-0.5, len(arms) - 0.5)
    axes.set_xlabel(f"networks with {_percent_of(arms, density)}")
    _measured_axis(axes, value)


def _percent_of(arms: Sequence[Curve], density: str) -> str:
    """Return "10 % of the prunable weights"; an inverted mask may keep another share than the ticket."""
    shares = dict.fromkeys(percent(arm.points["x"].iloc[0]) for arm in arms)
    return f"{' or '.join(shares)} % of the {DENSITY[density].partition(' remaining')[0]}"


def _measured_axis(axes: Axes, value: str) -> None:
    """Set the range of the y axis."""
    if value == "early_stop_step":
        step_axis(axes)
    elif "accuracy" in value:
        accuracy_axis([axes])
