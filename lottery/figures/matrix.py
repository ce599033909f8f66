"""Draw the overlaps of every two masks as a matrix. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from lottery.figures.axes import CHARACTER
from lottery.figures.style import WIDTH
from lottery.stability.overlap import Overlap

MOST = 30  # masks in a legible matrix
WRITTEN = 12  # up to so many masks each cell shows numbers
FAINTEST = 0.1  # the colour scale reaches at least this IoU, so that tiny overlaps look tiny
SHORT_NAME = 18  # characters; longer names stand at the rows only


class Mean(NamedTuple):
    """Means over several overlaps."""

    iou: float
    iou_chance: float


def matrix_size(names: Sequence[str]) -> tuple[float, float]:
    """Return height and width of the figure in inches."""
    n, longest = len(names), max(map(len, names))
    height = 2.2 + 0.45 * n if n <= WRITTEN else min(9.0, 2.2 + 0.2 * n)
    wide = 1.9 + CHARACTER * (longest + 4) + 0.55 * n if n <= WRITTEN else WIDTH + 1
    return height, max(4.5, wide)


def draw_matrix(axes: Axes, names: Sequence[str], pairs: Mapping[tuple[int, int], Overlap | Mean]) -> None:
    """Draw IoU as a heat map, beside the value expected by chance. Keys of `pairs` are (i, j) with i <= j.

    Chance is in brackets in the same cell; where there are too many masks for numbers, in the mirrored cell above the
    diagonal. Long names stand at the rows only, with the numbers of the columns.
    """
    n = len(names)
    grid = np.full((n, n), np.nan)
    written = n <= WRITTEN
    for (i, j), found in pairs.items():
        grid[j, i] = found.iou
        if i != j:
            grid[i, j] = found.iou if written else found.iou_chance
    top = max(float(np.nanmax(grid)), FAINTEST)
    image = axes.imshow(np.ma.masked_invalid(grid), cmap="viridis", vmin=0, vmax=top, aspect="auto")
    for (i, j), found in pairs.items() if written else ():
        colour = "black" if found.iou > 0.55 * top else "white"
        for row, column in {(i, j), (j, i)}:
            text = f"{found.iou:.2f}\n({found.iou_chance:.2f})"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    small: dict[str, Any] = {} if written else {"fontsize": 7}
    if max(map(len, names)) > SHORT_NAME:
        axes.set_xticks(range(n), map(str, range(1, n + 1)), **small)
        axes.set_yticks(range(n), [f"{name}  {k}" for k, name in enumerate(names, 1)], **small)
    else:
        axes.set_xticks(range(n), names, rotation=30 if written else 90, ha="right" if written else "center", **small)
        axes.set_yticks(range(n), names, **small)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    words = "IoU (in brackets: by chance)" if written else "IoU; above the diagonal: by chance"
    axes.figure.colorbar(image, ax=axes, label=words)
