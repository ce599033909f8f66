"""The axes that figures have in common: density, accuracy, steps, and heat maps of layers. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lottery.analysis.style import EMPTY, percent, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

CHARACTER = 0.08  # inches that a character of a tick label takes, a little more than it does
ACCURACY_SPAN = 1.0  # percentage points that an axis shows at least, so that noise looks like noise
LONGEST_NAME = 32  # characters


def density_axis(
    axes: Axes, densities: Sequence[float], words: str = "weights remaining (%)", inches: float = 5.4
) -> None:
    """Log scale, dense at the left as in Frankle & Carbin 2019, labelled at those trained. `inches`: its width."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    shown = [density for density in densities if density > 0]
    hidden, shown = len(densities) - len(shown), shown or [1.0]
    axes.set_xscale("log")
    pad = max(1.08, (max(shown) / min(shown)) ** 0.03)
    axes.set_xlim(max(shown) * pad, min(shown) / pad)
    axes.xaxis.set_major_locator(FixedLocator(spaced(shown, CHARACTER / inches)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: percent(density)))
    axes.xaxis.set_minor_locator(FixedLocator(sorted(set(shown))))  # a small tick where there is no room for a label
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(words + (f"; not shown: {hidden} with none left" if hidden else ""))


def step_axis(axes: Axes, highest: float) -> None:
    """From 0, since twice as high is meant to be twice as long."""
    from matplotlib.ticker import StrMethodFormatter

    axes.grid(axis="y")
    axes.set_ylim(0, 1.08 * max(1, highest))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def accuracy_axis(axes: Axes, low: float, high: float) -> None:
    """All from `low` to `high` (%), never far above 100 %."""
    axes.grid(axis="y")
    span = max(high - low, ACCURACY_SPAN)
    middle = (low + high) / 2
    axes.set_ylim(middle - 0.55 * span, min(middle + 0.55 * span, 100 + 0.02 * span))


def short(name: str) -> str:
    """A parameter's name for a tick label: the end of it tells layers apart."""
    name = name.removesuffix(".weight")
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def heat_map(axes: Axes, values: Sequence[Sequence[float | None]], least: float | None = None) -> QuadMesh:
    """Densities in colour, on a log scale down to the lowest that is not zero, or to `least`; empty layers in grey."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    grid = np.array(values, dtype=float)  # None -> nan: not measured, left white
    lowest = _lowest(grid if least is None else np.array([least]))
    colours = colormaps["viridis"].with_extremes(under=EMPTY, bad="white")
    shades = np.where(grid <= 0, lowest / 10, grid)
    gap = 0.4 if len(values) <= 40 else 0
    shown = np.ma.masked_invalid(shades)
    mesh = axes.pcolormesh(shown, cmap=colours, norm=LogNorm(lowest, 1), edgecolors="white", linewidth=gap)
    axes.set_ylim(len(values), 0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return mesh


def density_scale(mesh: Any, axes: Any, height: float, empty: bool) -> None:
    """The colours of one or several heat maps, beside them; above it what grey means, where any is `empty`."""
    from matplotlib.patches import Patch

    place = mesh.axes
    words = "layer density (%)"
    scale = place.figure.colorbar(mesh, ax=axes, label=words, aspect=max(12.0, 9 * (height - 0.9)), pad=0.02)
    ticks = _ticks(mesh.norm.vmin)
    scale.set_ticks(ticks, labels=[percent(tick) for tick in ticks])
    scale.minorticks_off()
    scale.outline.set_visible(False)
    patch = [Patch(color=EMPTY, label="empty")]
    if empty and isinstance(axes, list):
        place.figure.legend(handles=patch, loc="outside upper right")
    elif empty:
        place.legend(handles=patch, loc="lower right", bbox_to_anchor=(1, 1))


def _lowest(densities: Any) -> float:
    """Where the scale begins: at a tick, such that whatever is not empty is on it."""
    present = densities[densities > 0]
    smallest = float(present.min()) if present.size else 1.0
    return min(_ticks(smallest)[0], smallest)


def _ticks(lowest: float) -> list[float]:
    """Ticks of a log scale from `lowest` or a little below it to 1: steps of 1-2-5, or decades where these are many."""
    decades = max(1, math.ceil(-math.log10(lowest)))
    steps = (1, 2, 5) if decades <= 3 else (1,)
    ticks = [step * 10.0**-power for power in range(decades, 0, -1) for step in steps] + [1.0]
    start = max(index for index, tick in enumerate(ticks[:-1]) if index == 0 or tick <= lowest)
    return ticks[start:]


def every(axis: Any, labels: Sequence[str], most: float) -> None:
    """Label the cells of an axis, or every second, third … so that at most about `most` labels stand there."""
    stride = math.ceil(len(labels) / max(most, 1))
    chosen = range(0, len(labels), stride)
    axis.set_ticks([index + 0.5 for index in chosen], labels=[labels[index] for index in chosen])
