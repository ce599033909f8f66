"""Figure of layer tickets: accuracy and speed-up against the number of removed units (layers, blocks)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from lottery.figures.axes import accuracy_axis
from lottery.figures.curves import Curve, curves, dense_levels
from lottery.figures.experiments import DENSITIES, By, Experiment, NothingToDraw, check_table, experiments, measured
from lottery.figures.sheet import DASHED, Published, draw_panel, heading, legend, on_panel, paths_of, sheet
from lottery.figures.style import DENSE, HEIGHT, WIDTH
from lottery.figures.words import words_and_unit

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
    vector: bool = True,
) -> list[Path]:
    """Draw test accuracy against the number of removed units: each criterion and rewind point, means over seeds.

    Controls stand beside their tickets. A second axis shows the speed-up of a training step, where it was measured
    (probes=[light,cost]).
    published: points {"x": units removed, "y": accuracy, "label", "series"}; with "panel": "speedup" of the right axis.
    Returns the paths written. Raises LotteryError where no units were removed, and for several architectures or
    data sets that `by` does not tell apart.
    """
    check_table(frame, ["removed_units", "test_accuracy"])
    counts = frame["removed_units"].map(lambda names: len(names) if isinstance(names, list) else 0)
    if not counts.any():
        raise NothingToDraw("removed_units: no unit is removed in these runs yet")
    groups = experiments(
        frame.assign(removed=counts.groupby([frame["run"], frame["round"]]).transform("max")), by, REMOVED
    )
    values = ["test_accuracy", *measured(frame, [SPEEDUP])]
    width = 8.4 if len(values) == 2 else WIDTH
    what = f"{' and '.join(words_and_unit(value)[0] for value in values)} against units removed"
    with sheet(path, heading(frame, title, what), HEIGHT, width, vector, len(values)) as panels:
        draw_removed(panels[0], groups, "test_accuracy", band, [p for p in published if p.get("panel") != "speedup"])
        accuracy_axis(panels[:1])
        for axes in panels[1:]:
            draw_removed(axes, groups, SPEEDUP, band, on_panel(published, "panel", "speedup"))
            axes.axhline(1, color=DENSE, linestyle=DASHED, linewidth=1.1)
        legend(panels, band)
    return paths_of(path, vector)


def draw_removed(
    axes: Axes, groups: Sequence[Experiment], value: str, band: str = "range", published: Published = ()
) -> list[Curve]:
    """Draw a measurement against the column `removed`, and return its curves."""
    found = curves(groups, value, "removed", band, ["removed"])
    draw_panel(axes, value, found, dense_levels(groups, value) if value == "test_accuracy" else (), published)
    counts = {int(count) for curve in found for count in curve.points["x"]} | {int(point["x"]) for point in published}
    axes.set_xticks(sorted(counts))
    axes.set_xlabel("units removed")
    return found
