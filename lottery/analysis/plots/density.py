"""Accuracy and early-stop step against density, over seeds, methods and controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lottery.analysis.axes import accuracy_axis, density_axis, step_axis
from lottery.analysis.plots.curves import Curve, curves
from lottery.analysis.plots.experiments import By, Experiment, check_table, experiments
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
from lottery.analysis.style import DATA
from lottery.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DENSITY = {"density": "prunable weights remaining (%)", "density_weights": "weights remaining (%)"}
LABELS = {  # column: words, and what it is multiplied by
    "test_accuracy": ("test accuracy (%)", 100.0),
    "val_accuracy": ("validation accuracy (%)", 100.0),
    "train_accuracy": ("training accuracy (%)", 100.0),
    "early_stop_test_accuracy": ("test accuracy at early stop (%)", 100.0),
    "early_stop_step": ("early-stop step", 1.0),
    "probe/ece": ("ECE (%)", 100.0),
    "probe/nll": ("NLL (nats)", 1.0),
    "probe/brier": ("Brier score", 1.0),
    "probe/accuracy_fgsm": ("FGSM accuracy (%)", 100.0),
    "probe/accuracy_corrupted": ("accuracy on corrupted images (%)", 100.0),
}


def label_of(column: str) -> str:
    """Words for the axis of a column."""
    return _unit(column)[0]


def _unit(column: str) -> tuple[str, float]:
    """Words, and what its values are multiplied by."""
    if column.startswith("probe/ood_auc_"):
        other = column.removeprefix("probe/ood_auc_")
        return f"OOD ROC-AUC, {DATA.get(other, other)} (%)", 100.0
    words = column.removeprefix("probe/").replace("_", " ")
    plain = (f"{words} (%)", 100.0) if column.startswith("probe/accuracy_") else (words, 1.0)
    return LABELS.get(column, plain)


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
) -> list[Path]:
    """Accuracy against density: the ticket's and the controls' curves of each experiment, means over its seeds.

    density: "density", of the prunable weights, or "density_weights", of all weights.
    value: the column that is shown, another accuracy such as "early_stop_test_accuracy".
    by: the columns whose values make a curve; by default whatever the studies differ in besides their seeds.
    band: "range", from the lowest to the highest seed, or an interval of the mean: "t", "bootstrap".
    published: points {"x": density, "y": value as in the table, "label": source, "series": a curve's words, a control
        or "dense"}, drawn hollow.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError for several architectures or data sets that
    `by` does not tell apart, and where nothing was measured.
    """
    return _figure(frame, path, value, density, by, band, published, title)


def early_stop(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    density: str = "density",
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
) -> list[Path]:
    """The step of the least validation loss against density, as `accuracy`: `y` of published points in steps."""
    return _figure(frame, path, "early_stop_step", density, by, band, published, title)


def _figure(
    frame: pd.DataFrame,
    path: str | Path,
    value: str,
    density: str,
    by: By,
    band: str,
    published: Published,
    title: str | None,
) -> list[Path]:
    if density not in DENSITY:
        raise ConfigError.of("density", density, f"one of {', '.join(DENSITY)}")
    check_table(frame, [value, density])
    groups = experiments(frame, by)
    with sheet(path, heading(frame, title)) as (figure, paths):
        axes = figure.subplots()
        draw(axes, groups, value, density, band, published)
        legend(figure, axes, band)
    return paths


def draw(
    axes: Axes,
    groups: Sequence[Experiment],
    value: str,
    density: str = "density",
    band: str = "range",
    published: Published = (),
    inches: float = 5.4,
) -> list[Curve]:
    """A measurement against density; accuracies in per cent. Returns what is drawn."""
    words, unit = _unit(value)
    found = curves(groups, value, density, band)
    for curve in found:
        draw_curve(axes, curve, unit)
    draw_control_keys(axes, found)
    levels = draw_dense(axes, groups, value, unit)
    points = draw_published(axes, published, found, unit)
    shown = pd.concat([curve.points for curve in found])
    density_axis(axes, [*shown["x"], *points["x"]], DENSITY[density], inches)
    ends = [
        *(unit * shown["low"].fillna(shown["mean"])),
        *(unit * shown["high"].fillna(shown["mean"])),
        *levels,
        *points["y"],
    ]
    if value == "early_stop_step":
        step_axis(axes, max(ends))
    elif "accuracy" in value:
        accuracy_axis(axes, min(ends), max(ends))
    else:
        axes.grid(axis="y")
    axes.set_ylabel(words)
    return found
