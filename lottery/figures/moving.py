"""Figure of masks that move in training: layer densities and the share of weights explored, against the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from lottery.figures.axes import short
from lottery.figures.curves import look_of
from lottery.figures.experiments import By, Experiment, NothingToDraw, check_table, experiments, missing
from lottery.figures.searches import draw_series
from lottery.figures.sheet import heading, legend, paths_of, sheet
from lottery.figures.style import percent
from lottery.record.run import Run

NAMED = 6  # of more layers only the first and the last are named
EXPECTED = (0, (1, 1.2))


def moving(
    frame: pd.DataFrame, path: str | Path, *, by: By = None, title: str | None = None, vector: bool = True
) -> list[Path]:
    """Draw layer densities and the share of weights ever kept against the training step, for masks that move.

    Left: the density of each layer, of one study; of several, that of the network. Right: the share explored, beside
    what is expected where weights grow at random: 1 - (1 - d) Π(1 - α d / (1 - d)), with each layer's counts. Means
    over seeds, in bands from lowest to highest; each density is a curve.
    Returns the paths written. Raises LotteryError where no mask moved, and for studies without the course of the mask.
    """
    check_table(frame, ["probe/explored"])
    rows = frame[frame["probe/explored"].notna() & frame["control"].isna()]
    groups = experiments(frame[frame["run"].isin(rows["run"])], by)
    alone = rows["run"].nunique() == 1
    what = f"densit{'ies of layers' if alone else 'y'}, and weights explored, against the training step"
    with sheet(path, heading(frame, title, what), 4.0, 9.0, vector, 2, sharex=True) as panels:
        left, right = panels
        for number, (name, courses) in enumerate(named_courses(groups, rows)):
            if alone:
                draw_layer_densities(left, courses[0])
            else:
                draw_series(left, [100 * course["density"] for course in courses], number, name)
            draw_series(right, [100 * course["explored"] for course in courses], number, name)
            expected = pd.concat([100 * course["expected"].astype(float) for course in courses], axis=1).mean(axis=1)
            if expected.notna().any():
                own = None if number else "expected of growth at random"
                right.plot(expected.index, expected, color=look_of(number)[0], linestyle=EXPECTED, label=own)
        left.set_ylabel("weights kept (%)")
        right.set_ylabel("weights ever kept (%)")
        for axes in panels:
            axes.set_xlabel("training step")
            axes.set_ylim(0, None)
            axes.grid(axis="y")
        legend(panels)
    return paths_of(path, vector)


def named_courses(groups: Sequence[Experiment], rows: pd.DataFrame) -> list[tuple[str, list[pd.DataFrame]]]:
    """Return each experiment at each density, with its name, and the course of the mask in each of its studies."""
    found = []
    for group in groups:
        own = rows[rows["run"].isin(group.rows["run"])]
        densities = own["config.method.density"] if "config.method.density" in own else own["density"].round(3)
        for density, part in sorted(own.groupby(densities), reverse=True):
            courses = [course(row) for row in part.to_dict("records")]
            several = f"{percent(float(density))} %" if densities.nunique() > 1 else ""
            name = ", ".join(filter(None, [group.words, several])) or "explored"
            found.append((f"{name} (n = {len(courses)})", courses))
    return found


def course(row: dict[Any, Any]) -> pd.DataFrame:
    """Return the course of the mask of a row, by step. Raises NothingToDraw where the study did not keep it."""
    points = Run(row["run"]).details(row["round"]).get("moving")
    if not points:
        raise NothingToDraw(f"{row['run']}: {missing('moving')}")
    return pd.DataFrame(points).set_index("step")


def draw_layer_densities(axes: Axes, course: pd.DataFrame) -> None:
    """Draw the density of each layer, from the first (dark) to the last (light)."""
    from matplotlib import colormaps

    layers = pd.DataFrame(course["layer_density"].tolist(), index=course.index)
    for place, name in enumerate(layers):
        told = len(layers.columns) <= NAMED or place in (0, len(layers.columns) - 1)
        colour = colormaps["viridis"](0.9 * place / max(1, len(layers.columns) - 1))
        axes.plot(layers.index, 100 * layers[name], color=colour, linewidth=1.2, label=short(name) if told else None)
