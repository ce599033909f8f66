"""Figures of stability: the error along the lines between networks, the overlap of several masks. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lottery.analysis.masks import read_mask
from lottery.analysis.read import Row
from lottery.analysis.style import HEIGHT, canvas, percent
from lottery.errors import LotteryError
from lottery.stability.overlap import Overlap, overlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.figure import Figure

STABLE = 0.02  # a barrier in error below this counts as stable (Frankle et al. 2020, section 3)
MOST = 30  # rounds in a matrix that can be read
WRITTEN = 12  # up to here each cell has its numbers
FAINTEST = 0.1  # the IoU up to which colours reach at least, so that next to nothing looks like it
NAMED = 15  # curves of an axis that a legend can name
LINES = {  # of the probe's figures: what its lines join
    "lmc": "position on the line between two copies",
    "lmc_previous": "position on the line from the round before",
    "lmc_path": "position on the path: 0 is the dense network, n the n-th after it",
}


def how(row: Row, name: str, split: str) -> str:
    """How a row's barriers were measured: "2 copies, 30 points, 10,000 test images, BN interpolated"."""
    copies, points, recomputed = (row.get(f"probe/{name}_{what}") for what in ("copies", "points", "bn_recomputed"))
    images = row.get(f"probe/{name}_images_{split}")
    facts = [f"{copies} copies"] if copies else []
    facts += [f"{points} points"] if points else []
    facts += [f"{images:,} {split} images"] if images else []
    facts += [] if recomputed is None else ["BN recomputed" if recomputed else "BN interpolated"]
    return ", ".join(facts)


def several_points(tickets: Sequence[Row]) -> bool:
    """Whether a study has tickets of more than one rewind point."""
    return len({row["step_rewind"] for row in tickets if row["round"] > 0}) > 1


# -- lines between networks -------------------------------------------------------------------------------------------


def draw_lines(rows: Sequence[Row], heading: str, folder: Path) -> list[Path]:
    """The tickets' test (else training) error along the lines that were measured, coloured by density: lmc.png between
    copies, lmc_previous.png between rounds, lmc_path.png along all of them. An axis for each rewind point.

    Returns the files; what was not measured is not drawn.
    """
    tickets = [row for row in rows if row["control"] is None]
    return [folder / f"{name}.png" for name in LINES if _draw(tickets, name, heading, folder / f"{name}.png")]


def _draw(tickets: Sequence[Row], name: str, heading: str, path: Path) -> bool:
    keys = [f"probe/{name}_curve_{split}" for split in ("test", "train", "validation")]
    key = next((key for key in keys if any(row.get(key) for row in tickets)), None)
    if key is None:
        return False
    many = several_points(tickets)
    groups: dict[int, list[Row]] = {}
    for row in tickets:
        if row.get(key) and (row["round"] > 0 or not many):
            groups.setdefault(row["step_rewind"] if many else 0, []).append(row)
    if name == "lmc_path":  # a path holds those of the rounds before
        groups = {step: found[-1:] for step, found in groups.items()}
    if not groups:
        return False
    columns = min(3, len(groups))
    lines = math.ceil(len(groups) / columns)
    split = key.rpartition("_")[2]
    how_measured = how(next(iter(groups.values()))[0], name, split)
    title = f"{heading}; {how_measured}" if how_measured else heading
    with canvas(path, title, HEIGHT if lines == columns == 1 else 1.3 + 1.9 * lines) as figure:
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
        lowest = min(row["density"] for found in groups.values() for row in found)
        for place, (step, found) in zip(axes, groups.items(), strict=False):
            draw_group(place, found, key, name, lowest)
            if many:
                place.set_title(f"step {step:,}", fontsize="medium")
        for place in axes[len(groups) :]:
            place.remove()
        for place in axes[: len(groups)][-columns:]:  # the lowest of each column
            place.tick_params(labelbottom=True)
        figure.supxlabel(LINES[name], fontsize="medium")
        figure.supylabel(f"{split} error (%)", fontsize="medium")
        if name == "lmc_path":
            axes[0].xaxis.get_major_locator().set_params(integer=True)
        else:
            density_key(figure, axes[: len(groups)], lowest)
    return True


def draw_group(axes: Axes, rows: Sequence[Row], key: str, name: str, lowest: float) -> None:
    """The curves of one axis."""
    norm, colours = density_colours(lowest)
    for row in rows:
        error = [math.nan if value is None else 100 * value for value in row[key]]
        steps = (row.get(f"probe/{name}_points") or len(error)) - 1
        where = [k / steps for k in range(len(error))]
        words = f"{percent(row['density'])} %"
        axes.plot(where, error, color=colours(norm(row["density"])), label=words)
    axes.grid(axis="y")


def density_colours(lowest: float) -> tuple[LogNorm, LinearSegmentedColormap]:
    """Densities on a log scale, dense dark."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    shades = colormaps["viridis_r"](np.linspace(0.08, 1, 64))  # without the palest
    return LogNorm(min(lowest, 0.5), 1), LinearSegmentedColormap.from_list("densities", shades)


def density_key(figure: Figure, axes: Sequence[Axes], lowest: float) -> None:
    """Which curve has which density: in a legend, or beside a scale where there are too many."""
    named: dict[Any, Any] = {}
    for place in axes:
        named |= {line.get_label(): line for line in place.lines}
    if len(named) <= NAMED:
        title = "weights\nremaining"
        figure.legend(named.values(), named.keys(), title=title, loc="outside right center", fontsize="small")
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import FuncFormatter, NullLocator

    norm, colours = density_colours(lowest)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(axes), label="weights remaining (%)")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda density, _: percent(density)))
    bar.ax.yaxis.set_minor_locator(NullLocator())


# -- overlap of masks -------------------------------------------------------------------------------------------------


def draw_rounds(run: Path, rows: Sequence[Row], heading: str, path: Path) -> bool:
    """The overlap of every two of a study's tickets that are pruned; False where there are fewer than two, or too many
    to be read.

    A mask file that is not there or damaged is left to `store verify`: then nothing is drawn either.
    """
    tickets = [row for row in rows if row["control"] is None and 0 < row.get("density", 1) < 1]
    if not 2 <= len(tickets) <= MOST:
        return False
    try:
        masks = [read_mask(run / "masks" / f"round_{row['round']:03d}.safetensors") for row in tickets]
        pairs = {
            (i, j): overlap(masks[i].bits, masks[j].bits, masks[i].sizes) for i, j in combinations(range(len(masks)), 2)
        }
    except LotteryError:
        return False
    many = several_points(tickets)
    places = [f"step {row['step_rewind']:,}" if many else f"round {row['round']}" for row in tickets]
    labels = [f"{place}, {percent(row['density'])} %" for place, row in zip(places, tickets, strict=True)]
    draw_overlap(labels, pairs, heading, path)
    return True


def draw_overlap(labels: Sequence[str], pairs: Mapping[tuple[int, int], Overlap], heading: str, path: Path) -> None:
    """A heat map of IoU beside what chance would give: in brackets in the same cell, or, where there are too many masks
    for numbers, in the mirrored cell above the diagonal. `pairs` are of i < j."""
    n = len(labels)
    with canvas(path, heading, height=overlap_height(n)) as figure:
        draw_matrix(figure.add_subplot(), labels, pairs)


def overlap_height(n: int) -> float:
    """Inches of a figure of n masks."""
    return 2.2 + 0.45 * n if n <= WRITTEN else min(9.0, 2.2 + 0.2 * n)


class Common(Protocol):
    """What two masks have in common: an Overlap, or a mean of several."""

    @property
    def iou(self) -> float: ...

    @property
    def iou_chance(self) -> float: ...


def draw_matrix(axes: Axes, labels: Sequence[str], pairs: Mapping[tuple[int, int], Common]) -> None:
    """The heat map of `draw_overlap`. Pairs may be on the diagonal."""
    n = len(labels)
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
    axes.set_xticks(range(n), labels, rotation=30 if written else 90, ha="right" if written else "center", **small)
    axes.set_yticks(range(n), labels, **small)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    words = "IoU (in brackets: by chance)" if written else "IoU; above the diagonal: by chance"
    axes.figure.colorbar(image, ax=axes, label=words)
