"""Figures of stability: the error along the lines between networks, the overlap of several masks. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from lottery.analysis.masks import read_mask
from lottery.analysis.read import Row
from lottery.analysis.style import canvas, percent
from lottery.errors import LotteryError
from lottery.stability.overlap import Overlap, overlap

MOST = 30  # rounds in a matrix that can be read
WRITTEN = 12  # up to here each cell has its numbers


def draw_lmc(rows: Sequence[Row], heading: str, path: Path) -> bool:
    """The tickets' test (else training) error on the line between copies, a curve a round, coloured by density.

    False, and nothing drawn, where no such curve was measured.
    """
    from matplotlib import colormaps

    tickets = [row for row in rows if row["control"] is None]
    key = next(
        (k for k in ("probe/lmc_curve_test", "probe/lmc_curve_train") if any(row.get(k) for row in tickets)), None
    )
    if key is None:
        return False
    shown = [row for row in tickets if row.get(key)]
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(shown)))
    with canvas(path, heading) as figure:
        axes = figure.add_subplot()
        for row, colour in zip(shown, colours, strict=True):
            curve = row[key]
            words = f"round {row['round']}, {percent(row['density'])} %" if len(shown) <= MOST // 2 else None
            axes.plot(np.linspace(0, 1, len(curve)), [100 * error for error in curve], color=colour, label=words)
        axes.set_xlabel("position on the line between two copies")
        axes.set_ylabel(f"{key.rpartition('_')[2]} error (%)")
        axes.grid(axis="y")
        if len(shown) <= MOST // 2:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return True


def draw_rounds(run: Path, rows: Sequence[Row], heading: str, path: Path) -> bool:
    """The overlap of every two tickets of a study; False where there are fewer than three, or too many to be read.

    A mask file that is not there or damaged is left to `store verify`: then nothing is drawn either.
    """
    tickets = [row for row in rows if row["control"] is None and row["kept"]]
    if not 3 <= len(tickets) <= MOST:
        return False
    try:
        masks = [read_mask(run / "masks" / f"round_{row['round']:03d}.safetensors") for row in tickets]
        pairs = {
            (i, j): overlap(masks[i].bits, masks[j].bits, masks[i].sizes) for i, j in combinations(range(len(masks)), 2)
        }
    except LotteryError:
        return False
    draw_overlap([f"round {row['round']}" for row in tickets], pairs, heading, path)
    return True


def draw_overlap(labels: Sequence[str], pairs: Mapping[tuple[int, int], Overlap], heading: str, path: Path) -> None:
    """A heat map of IoU; in each cell its value, and below it, in brackets, what chance would give."""
    n = len(labels)
    grid = np.full((n, n), np.nan)
    top = max(found.iou for found in pairs.values())
    with canvas(path, heading, height=2.2 + 0.45 * min(n, WRITTEN)) as figure:
        axes = figure.add_subplot()
        for (i, j), found in pairs.items():
            for row, column in ((i, j), (j, i)):
                grid[row, column] = found.iou
                if n <= WRITTEN:
                    text = f"{found.iou:.2f}\n({found.iou_chance:.2f})"
                    colour = "black" if found.iou > 0.55 * top else "white"
                    axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        image = axes.imshow(np.ma.masked_invalid(grid), cmap="viridis", vmin=0, vmax=top or 1, aspect="auto")
        axes.set_xticks(range(n), labels, rotation=30, ha="right")
        axes.set_yticks(range(n), labels)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="IoU (in brackets: by chance)" if n <= WRITTEN else "IoU")
