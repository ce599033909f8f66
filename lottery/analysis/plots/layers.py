"""Layer tickets: accuracy and speed-up against how many units (layers, blocks) are removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lottery.analysis.axes import accuracy_axis
from lottery.analysis.plots.curves import Curve, curves
from lottery.analysis.plots.experiments import DENSITIES, By, Experiment, check_table, experiments
from lottery.analysis.plots.sheet import Published, draw_curve, draw_dense, draw_published, heading, legend, sheet
from lottery.analysis.style import DENSE, HEIGHT, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REMOVED = (*DENSITIES, "config.method.remove")
SPEEDUP = "probe/cost_step_speedup"


def layers(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
) -> list[Path]:
    """Test accuracy, and where it was measured (probes=[light,cost]) the speed-up of a training step, against the
    number of units removed: each criterion and rewind point, means over seeds.

    published: points {"x": units removed, "y": accuracy, "label", "series"}; with "panel": "speedup" of the right axis.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError where no units were removed, and for several
    architectures or data sets that `by` does not tell apart.
    """
    check_table(frame, ["removed_units", "test_accuracy"])
    frame = frame.assign(removed=frame["removed_units"].map(lambda names: len(names) if isinstance(names, list) else 0))
    groups = experiments(frame, by, REMOVED)
    timed = SPEEDUP in frame and frame[SPEEDUP].notna().any()
    with sheet(path, heading(frame, title), HEIGHT, 8.4 if timed else WIDTH) as (figure, paths):
        panels = figure.subplots(1, 2 if timed else 1, squeeze=False)[0].tolist()
        draw(panels[0], groups, "test_accuracy", band, [p for p in published if p.get("panel") != "speedup"])
        panels[0].set_ylabel("test accuracy (%)")
        if timed:
            draw(panels[1], groups, SPEEDUP, band, [p for p in published if p.get("panel") == "speedup"])
            panels[1].set_ylabel("speed-up of a training step")
            panels[1].axhline(1, color=DENSE, linestyle=(0, (5, 3)), linewidth=1.1)
        legend(figure, panels, band)
    return paths


def draw(
    axes: Axes, groups: Sequence[Experiment], value: str, band: str = "range", published: Published = ()
) -> list[Curve]:
    """A measurement against the column `removed`."""
    unit = 100.0 if value == "test_accuracy" else 1.0
    found = curves(groups, value, "removed", band, ["removed"], controls=False)
    for curve in found:
        draw_curve(axes, curve, unit)
    if value == "test_accuracy":
        draw_dense(axes, groups, value, unit)
    draw_published(axes, published, found, unit)
    counts = sorted(
        {int(count) for curve in found for count in curve.points["x"]} | {int(point["x"]) for point in published}
    )
    axes.set_xticks(counts)
    axes.set_xlabel("units removed")
    axes.grid(axis="y")
    if value == "test_accuracy":
        accuracy_axis(axes, *axes.dataLim.intervaly)
    return found
