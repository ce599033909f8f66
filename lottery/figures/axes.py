"""Axes that several figures use: density, accuracy, steps, and heat maps of layer densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullFormatter

from lottery.figures.style import EMPTY, percent, spaced

CHARACTER = 0.08  # inches for a character of a tick label, with a margin
ACCURACY_SPAN = 1.0  # an axis spans at least so many percentage points, so that noise looks small
LONGEST_NAME = 32  # characters


def density_axis(
    axes: Axes, densities: Sequence[float], words: str = "weights remaining (%)", inches: float = 5.4
) -> None:
    """Set up a log x axis, `inches` wide and dense at the left (Frankle & Carbin 2019), labelled at these densities."""
    shown = [density for density in densities if density > 0]
    hidden, shown = len(densities) - len(shown), shown or [1.0]
    axes.set_xscale("log")
    pad = max(1.08, (max(shown) / min(shown)) ** 0.03)
    axes.set_xlim(max(shown) * pad, min(shown) / pad)
    axes.xaxis.set_major_locator(FixedLocator(spaced(shown, CHARACTER / inches)))
    axes.xaxis.set_major_formatter(lambda density, _: percent(density))
    axes.xaxis.set_minor_locator(FixedLocator(sorted(set(shown))))  # small ticks where labels have no room
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(words + (f"; not shown: {hidden} with none left" if hidden else ""))


def step_axis(axes: Axes) -> None:
    """Start the y axis at 0, so that heights are in proportion, and write steps with thousands separators."""
    axes.set_ylim(0, 1.08 * max(1, axes.dataLim.intervaly[1]))
    axes.yaxis.set_major_formatter("{x:,.0f}")


def accuracy_axis(panels: Sequence[Axes]) -> None:
    """Give all panels one range of accuracies (%), which ends little above 100 %."""
    low = min(axes.dataLim.intervaly[0] for axes in panels)
    high = max(axes.dataLim.intervaly[1] for axes in panels)
    if not low <= high:  # nothing is drawn
        return
    span, middle = max(high - low, ACCURACY_SPAN), (low + high) / 2
    for axes in panels:
        axes.set_ylim(middle - 0.55 * span, min(middle + 0.55 * span, 100 + 0.02 * span))


def short(name: str) -> str:
    """Shorten a parameter's name for a tick label: keep its end, which tells layers apart."""
    name = name.removesuffix(".weight")
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def heat_map(axes: Axes, values: Sequence[Sequence[float | None]], least: float | None = None) -> QuadMesh:
    """Draw densities on a log colour scale from `least` or the lowest above 0: empty is grey, not measured white."""
    grid = np.array(values, dtype=float)  # None -> nan
    given = grid if least is None else np.array([least])  # NaN where no density is above 0
    present = given[given > 0]
    smallest = float(present.min()) if present.size else 1.0
    lowest = min(_ticks(smallest)[0], smallest)
    colours = colormaps["viridis"].with_extremes(under=EMPTY, bad="white")
    shown = np.ma.masked_invalid(np.where(grid <= 0, lowest / 10, grid))
    gap = 0.4 if len(values) <= 40 else 0
    mesh = axes.pcolormesh(shown, cmap=colours, norm=LogNorm(lowest, 1), edgecolors="white", linewidth=gap)
    axes.set_ylim(len(values), 0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return mesh


def density_scale(mesh: Any, panels: list[Axes], height: float, empty: bool) -> None:
    """Add the colour scale of heat maps beside them; if a layer is `empty`, also a legend entry for grey."""
    figure = mesh.axes.figure
    place: Any = panels if len(panels) > 1 else panels[0]
    scale = figure.colorbar(mesh, ax=place, label="layer density (%)", aspect=max(12.0, 9 * (height - 0.9)), pad=0.02)
    ticks = _ticks(mesh.norm.vmin)
    scale.set_ticks(ticks, labels=[percent(tick) for tick in ticks])
    scale.minorticks_off()
    scale.outline.set_visible(False)
    patch = [Patch(color=EMPTY, label="empty")]
    if empty and len(panels) > 1:
        figure.legend(handles=patch, loc="outside upper right")
    elif empty:
        mesh.axes.legend(handles=patch, loc="lower right", bbox_to_anchor=(1, 1))


def _ticks(lowest: float) -> list[float]:
    """Return ticks of a log scale from at most `lowest` to 1: steps of 1-2-5, or decades if these are many."""
    decades = max(1, math.ceil(-math.log10(lowest)))
    steps = (1, 2, 5) if decades <= 3 else (1,)
    ticks = [step * 10.0**-power for power in range(decades, 0, -1) for step in steps] + [1.0]
    start = max(index for index, tick in enumerate(ticks[:-1]) if index == 0 or tick <= lowest)
    return ticks[start:]


def every(axis: Any, labels: Sequence[str], most: float) -> None:
    """Label all cells of an axis, or every second, third … so that there are at most about `most` labels."""
    stride = math.ceil(len(labels) / max(most, 1))
    chosen = range(0, len(labels), stride)
    axis.set_ticks([index + 0.5 for index in chosen], labels=[labels[index] for index in chosen])
