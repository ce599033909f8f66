"""Calibration, out-of-distribution detection and corruption against density, or of several methods at one density."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lottery.analysis.plots.curves import (
    at_density,
    colour_of,
    common_densities,
    dense_levels,
    once,
    points,
)
from lottery.analysis.plots.density import DENSITY, draw, label_of
from lottery.analysis.plots.experiments import By, Experiment, check_table, experiments, missing
from lottery.analysis.plots.sheet import Published, heading, legend, sheet
from lottery.analysis.style import DENSE, WIDTH, percent
from lottery.errors import ConfigError, LotteryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUALITY = ("probe/ece", "probe/nll", "probe/brier")
ACCURACIES = ("test_accuracy", "probe/accuracy_fgsm", "probe/accuracy_corrupted", "probe/accuracy_noise",
              "probe/accuracy_blur", "probe/accuracy_contrast", "probe/accuracy_brightness")  # fmt: skip
SHORT = {
    "test_accuracy": "clean",
    "probe/accuracy_fgsm": "FGSM",
    "probe/accuracy_corrupted": "corrupted,\nmean of these",
}


def quality(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    values: Sequence[str] = (),
    density: str = "density",
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
) -> list[Path]:
    """Calibration, out-of-distribution detection, accuracy under attack and corruption against density, each an axis.

    values: the columns, such as "probe/ece"; by default ECE (or NLL), ROC-AUC of each other data set, FGSM and the mean
        of the corruptions, as far as they were measured.
    published: points as of `accuracy`, with "value": the column whose axis they belong to.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError where none was measured.
    """
    if density not in DENSITY:
        raise ConfigError.of("density", density, f"one of {', '.join(DENSITY)}")
    check_table(frame, values)
    shown = list(values) or _measured(frame)
    groups = experiments(frame, by)
    columns = min(2, len(shown))
    lines = ceil(len(shown) / columns)
    with sheet(path, heading(frame, title), 1.0 + 2.4 * lines, WIDTH if columns == 1 else 8.4) as (figure, paths):
        panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
        for axes, value in zip(panels, shown, strict=False):
            here = [point for point in published if point.get("value") == value]
            draw(axes, groups, value, density, band, here, 3.0)
        for axes in panels[len(shown) :]:
            axes.remove()
        for axes in panels[: len(shown)][:-columns]:
            axes.set_xlabel("")
        legend(figure, panels[: len(shown)], band)
    return paths


def _measured(frame: pd.DataFrame) -> list[str]:
    have = [str(name) for name in frame if frame[name].notna().any()]
    calibration = [name for name in QUALITY if name in have]
    others = [name for name in have if name.startswith("probe/ood_auc_")]
    accuracies = [name for name in ("probe/accuracy_fgsm", "probe/accuracy_corrupted") if name in have]
    found = [*(calibration[:1] if others or accuracies else calibration), *others, *accuracies]
    if not found:
        raise LotteryError(missing("probe/ece"))
    return found


def robustness(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    at: float | None = None,
    by: By = None,
    band: str = "range",
    title: str | None = None,
) -> list[Path]:
    """Several methods side by side: accuracy on clean, attacked and corrupted test images at one density, beside the
    dense networks. Markers are means over seeds, bars reach from the lowest to the highest.

    at: the density, kept / prunable; by default the lowest that the most experiments have.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError where only clean accuracy was measured.
    """
    shown = [name for name in ACCURACIES if name in frame and frame[name].notna().any()]
    check_table(frame, ["test_accuracy"])
    if shown == ["test_accuracy"]:
        raise LotteryError(missing("probe/accuracy_corrupted"))
    frame = frame[frame[shown].notna().all(axis=1)]
    groups = experiments(frame, by)
    chosen = at if at is not None else common_densities(groups, 1)[0]
    words = f"{heading(frame, title)}; {percent(chosen)} % of the weights" if title is None else title
    with sheet(path, words) as (figure, paths):
        axes = figure.subplots()
        draw_robustness(axes, groups, shown, chosen, band)
        legend(figure, axes, band)
    return paths


def draw_robustness(
    axes: Axes, groups: Sequence[Experiment], values: Sequence[str], density: float, band: str = "range"
) -> None:
    """A place for each measurement, in it a marker for each experiment, dense first."""
    order = sorted(values, key=lambda name: (name == "probe/accuracy_corrupted", ACCURACIES.index(name)))
    levels = dense_levels(groups, order[0])
    shared = len(levels) == 1 and levels[0][1] is None
    arms = [("dense", DENSE, "x", once(pd.concat([group.dense for group in groups])))] if shared else []
    for number, group in enumerate(groups):
        colour, marker = colour_of(number)
        rows = at_density(group.rows[(group.rows["round"] > 0) & group.rows["control"].isna()], density)
        arms += [] if shared else [(f"{group.words}, dense", colour, "x", once(group.dense))]
        arms.append((group.words or "ticket", colour, marker, rows))
    arms = [arm for arm in arms if len(arm[3])]
    step = min(0.12, 0.85 / len(arms))
    for place, (words, colour, marker, rows) in enumerate(arms):
        found = pd.concat([points(rows.assign(_at=0.0), value, "_at", band, ["_at"]) for value in order])
        mean = 100 * found["mean"]
        bars = [(mean - 100 * found["low"]).clip(lower=0), (100 * found["high"] - mean).clip(lower=0)]
        x = [spot + step * (place - (len(arms) - 1) / 2) for spot in range(len(order))]
        axes.errorbar(x, mean, bars, fmt=marker, color=colour, elinewidth=1.2, capsize=2, markersize=5,
                      label=f"{words} (n = {int(found['n'].min())})")  # fmt: skip
    axes.set_xticks(range(len(order)), [SHORT.get(name, name.rpartition("_")[2]) for name in order])
    axes.set_xlim(-0.5, len(order) - 0.5)
    for spot in range(1, len(order)):
        axes.axvline(spot - 0.5, color="#E3E3E3", linewidth=0.7, zorder=0)
    axes.set_ylabel(label_of("test_accuracy"))
    axes.grid(axis="y")
