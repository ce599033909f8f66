"""Figures of calibration, out-of-distribution detection and corruption: against density, or at one density."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from lottery.errors import LotteryError
from lottery.figures.curves import at_density, common_densities, dense_levels, look_of, once, points
from lottery.figures.density import DENSITY, check_density, draw_densities
from lottery.figures.experiments import By, Experiment, check_table, experiments, measured, missing
from lottery.figures.sheet import Published, heading, legend, on_panel, paths_of, sheet
from lottery.figures.style import DENSE, WIDTH, percent
from lottery.figures.words import words_and_unit

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
    """Draw calibration, out-of-distribution detection, accuracy under attack and corruption against density.

    Each measurement has an axis.
    values: the columns, such as "probe/ece"; by default ECE (or NLL), ROC-AUC of each other data set, FGSM and the mean
        of the corruptions, as far as they were measured.
    published: points as of `accuracy`, with "value": the column whose axis they belong to.
    Returns the paths of PNG, SVG and PDF. Raises LotteryError where none was measured.
    """
    check_density(density)
    check_table(frame, values)
    shown = list(values) or default_values(frame)
    groups = experiments(frame, by)
    columns = min(2, len(shown))
    height, width = 1.0 + 2.4 * ceil(len(shown) / columns), WIDTH if columns == 1 else 8.4
    what = f"quality of the predictions against {DENSITY[density]}"
    with sheet(path, heading(frame, title, what), height, width, count=len(shown), most=columns) as panels:
        for axes, value in zip(panels, shown, strict=True):
            draw_densities(axes, groups, value, density, band, on_panel(published, "value", value), 3.0)
        for axes in panels[:-columns]:
            axes.set_xlabel("")
        legend(panels, band)
    return paths_of(path)


def default_values(frame: pd.DataFrame) -> list[str]:
    """Return the columns that `quality` draws by default. Raises LotteryError where none was measured."""
    calibration = measured(frame, QUALITY)
    others = measured(frame, [str(name) for name in frame if str(name).startswith("probe/ood_auc_")])
    others += measured(frame, ["probe/accuracy_fgsm", "probe/accuracy_corrupted"])
    if not calibration + others:
        raise LotteryError(missing("probe/ece"))
    return [*(calibration[:1] if others else calibration), *others]


def robustness(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    at: float | None = None,
    by: By = None,
    band: str = "range",
    title: str | None = None,
) -> list[Path]:
    """Draw the accuracy of several methods at one density on clean, attacked and corrupted test images.

    The dense networks stand beside them. Markers are means over seeds; bars show the band.
    at: the density, kept / prunable; by default the lowest that the most experiments have.
    Returns the paths of PNG, SVG and PDF. Raises LotteryError where only clean accuracy was measured.
    """
    check_table(frame, ["test_accuracy"])
    shown = measured(frame, ACCURACIES)
    if shown == ["test_accuracy"]:
        raise LotteryError(missing("probe/accuracy_corrupted"))
    frame = frame[frame[shown].notna().all(axis=1)]
    groups = experiments(frame, by)
    chosen = at if at is not None else common_densities(groups, 1)[0]
    what = "accuracy (%) on clean, attacked and corrupted test images"
    words = heading(frame, title, what, f"{percent(chosen)} % of the prunable weights")
    with sheet(path, words) as panels:
        draw_robustness(panels[0], groups, shown, chosen, band)
        legend(panels, band)
    return paths_of(path)


def draw_robustness(
    axes: Axes, groups: Sequence[Experiment], values: Sequence[str], density: float, band: str = "range"
) -> None:
    """Draw a marker for each experiment at each measurement, dense first."""
    order = sorted(values, key=lambda name: (name == "probe/accuracy_corrupted", ACCURACIES.index(name)))
    levels = dense_levels(groups, order[0])
    shared = len(levels) == 1 and levels[0][1] is None  # all experiments have the same dense networks
    arms = [("dense", DENSE, "x", once(pd.concat([group.dense for group in groups])))] if shared else []
    for number, group in enumerate(at_density(groups, density)):
        colour, marker, _ = look_of(number)
        rows = group.rows[group.rows["control"].isna()]
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
    axes.set_ylabel(words_and_unit("test_accuracy")[0])
    axes.grid(axis="y")
