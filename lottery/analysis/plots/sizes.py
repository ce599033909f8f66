"""Width and depth of the dense network against the accuracy of its tickets at a density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lottery.analysis.axes import accuracy_axis
from lottery.analysis.plots.curves import Curve, at_density, common_densities, curves, points
from lottery.analysis.plots.experiments import (
    DENSITIES,
    By,
    Experiment,
    check_table,
    differing,
    experiments,
)
from lottery.analysis.plots.sheet import (
    Published,
    draw_control_keys,
    draw_curve,
    draw_published,
    heading,
    legend,
    sheet,
)
from lottery.analysis.plots.words import entries, value_words
from lottery.analysis.style import DENSE, HEIGHT, WIDTH, percent
from lottery.errors import LotteryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 4


def width_depth(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    densities: Sequence[float] = (),
    value: str = "test_accuracy",
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
) -> list[Path]:
    """Accuracy against the size of the network, an axis for each density: tickets and controls of each experiment
    beside the dense networks, means over seeds (Liu et al. 2022, Figs. 1 and 2).

    densities: kept / prunable; by default those that the most experiments have, at most four.
    by: the columns whose values make a curve; by default whatever the studies differ in besides their networks.
    published: points {"x": prunable weights of the dense network, "y", "label", "series"}, and "density" for the axis.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError for several data sets, and where there is but
    one network.
    """
    check_table(frame, ["prunable", value])
    sizes = size_words(frame)
    if len(sizes) < 2:
        raise LotteryError(
            f"width_depth: one network only ({'; '.join(sizes.values())}): draw accuracy against density"
        )
    models = [name for name in map(str, frame) if name.startswith("config.model.")]
    groups = experiments(frame, by, [*DENSITIES, *models], architectures=True)
    asked = list(densities) or common_densities(groups, PANELS)
    width = WIDTH if len(asked) == 1 else 1.4 + 2.5 * len(asked)
    with sheet(path, heading(frame, title), HEIGHT, width) as (figure, paths):
        panels = figure.subplots(1, len(asked), sharey=True, squeeze=False)[0].tolist()
        for axes, density in zip(panels, asked, strict=True):
            here = [point for point in published if point.get("density") in (None, density)]
            draw(axes, groups, value, density, band, here)
            _size_axis(axes, sizes)
            axes.set_xlabel("network, by its size")
        low, high = (f(axes.dataLim.intervaly[i] for axes in panels) for f, i in ((min, 0), (max, 1)))
        accuracy_axis(panels[0], low, high)
        panels[0].set_ylabel("test accuracy (%)" if value == "test_accuracy" else value)
        legend(figure, panels, band)
    return paths


def draw(
    axes: Axes, groups: Sequence[Experiment], value: str, density: float, band: str = "range", published: Published = ()
) -> list[Curve]:
    """Accuracy of the tickets of one density, and of the dense networks, against prunable weights."""
    dense = pd.concat([group.dense for group in groups]).drop_duplicates(["seed", "prunable", "weights_digest"])
    of_dense = Curve("dense", DENSE, "x", (0, (5, 3)), points(dense, value, "prunable", band, ["prunable"]))
    at = [replace(group, rows=at_density(group.rows[group.rows["round"] > 0], density)) for group in groups]
    found = [of_dense, *curves(at, value, "prunable", band, ["prunable"])]
    for curve in found:
        draw_curve(axes, curve, 100.0)
    draw_control_keys(axes, found)
    draw_published(axes, published, found[1:], 100.0)
    axes.set_title(f"{percent(density)} % of the weights", fontsize="medium")
    axes.grid(axis="y")
    return found


def size_words(frame: pd.DataFrame) -> dict[int, str]:
    """Prunable weights of each network -> what it is called on the axis: what differs in its options, or its name."""
    studies = frame.drop_duplicates("run")
    differ = [name for name in differing(studies) if name.startswith("config.model.")]
    if len(differ) == 1:
        words = studies[differ[0]].map(value_words)
    else:
        known = entries(studies)
        words = studies["run"].map(lambda run: known[run].subject.rpartition(" on ")[0] if run in known else "")
    return dict(sorted(zip(studies["prunable"].astype(int), words, strict=True)))


def _size_axis(axes: Axes, sizes: dict[int, str]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.set_xticklabels([words or f"{size:,}" for size, words in sizes.items()])
    axes.xaxis.set_minor_locator(NullLocator())
    if sum(map(len, sizes.values())) > 18:
        axes.tick_params(axis="x", rotation=45)
