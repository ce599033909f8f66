"""Masks: the layers' densities over the rounds as heat maps, and how much of them tickets have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import ceil
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from lottery.analysis.axes import CHARACTER, density_scale, every, heat_map, short
from lottery.analysis.compare import labels
from lottery.analysis.comparison import TOLERANCE, Entry, chosen
from lottery.analysis.masks import PackedMask, read_mask
from lottery.analysis.plots.curves import common_densities
from lottery.analysis.plots.experiments import By, Experiment, check_table, experiments
from lottery.analysis.plots.sheet import heading, sheet
from lottery.analysis.stability import MOST, WRITTEN, Common, draw_matrix, overlap_height
from lottery.analysis.style import WIDTH, percent
from lottery.errors import LotteryError
from lottery.stability.overlap import Overlap
from lottery.stability.overlap import overlap as overlap_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

PANELS = 3  # beside one another
SHORT_NAME = 18  # characters of a name that may stand below a column too


# -- layer densities --------------------------------------------------------------------------------------------------


def layer_density(frame: pd.DataFrame, path: str | Path, *, by: By = None, title: str | None = None) -> list[Path]:
    """The density of every layer of the tickets over the rounds, means over seeds, an axis for each experiment.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError for several architectures or data sets that
    `by` does not tell apart.
    """
    check_table(frame, ["layer_density"])
    groups = experiments(frame, by)
    tables = [layer_table(group) for group in groups]
    tables, groups = [t for t in tables if t.size], [g for g, t in zip(groups, tables, strict=True) if t.size]
    columns, layers = min(PANELS, len(groups)), max(len(table) for table in tables)
    lines = ceil(len(groups) / columns)
    names = CHARACTER * max(len(short(str(name))) for table in tables for name in table.index)
    height = min(10.0, max(2.3, 1.5 + 0.19 * layers))
    width = WIDTH if columns == 1 else 1.1 + names + 2.4 * columns
    least = min(float(table[table > 0].min().min()) for table in tables)
    with sheet(path, heading(frame, title), min(16.0, height * lines), width) as (figure, paths):
        panels = figure.subplots(lines, columns, squeeze=False, sharey=columns > 1).flatten().tolist()
        for axes, group, table in zip(panels, groups, tables, strict=False):
            mesh = draw_layers(axes, table, (width - 1.1 - names) / columns, least)
            n = f"n\u00a0=\u00a0{group.rows['seed'].nunique()}"  # not to be broken
            words = f"{group.words} ({n})" if group.words else n
            axes.set_title(fill(words, round(width / columns / CHARACTER)), fontsize="medium")
        empty = any((table == 0).any(axis=None) for table in tables)
        density_scale(mesh, panels if columns > 1 else panels[0], height * lines, empty)
        for axes in panels[len(groups) :]:
            axes.remove()
        for axes in panels[max(0, len(groups) - columns) : len(groups)]:
            axes.set_xlabel("round, and prunable weights (%)")
    return paths


def layer_table(group: Experiment) -> pd.DataFrame:
    """A row a layer, in the network's order, a column a place (round, density): the mean over the tickets' seeds."""
    rows = group.rows[group.rows["control"].isna() & group.rows["layer_density"].notna()]
    if "config.method.density" in rows and rows["config.method.density"].nunique(dropna=False) > 1:
        places = rows["config.method.density"].where(rows["round"] > 0)
    else:
        places = rows["round"]
    columns = {}
    for _, at in rows.groupby([rows["round"] > 0, places.fillna(-1)], sort=False):
        column = pd.DataFrame(at["layer_density"].tolist()).mean()
        columns[int(at["round"].iloc[0]), float(at["density"].mean())] = column
    table = pd.DataFrame(columns)
    names = list(dict.fromkeys(name for each in rows["layer_density"] for name in each))
    return table.reindex(names)[sorted(table, key=lambda place: (-place[1], place[0]))]


def draw_layers(axes: Axes, table: pd.DataFrame, width: float, least: float | None = None) -> QuadMesh:
    """The heat map of `layer_table`, layers downwards, from dense to sparse to the right; `width` inches wide."""
    mesh = heat_map(axes, table.to_numpy().tolist(), least)
    remaining = [percent(density) for _, density in table]
    rounds = [number for number, _ in table]
    several = len(set(rounds)) == len(rounds)  # else each is a study of its own density
    ticks = [f"{k}\n{d}" if several else d for k, d in zip(rounds, remaining, strict=True)]
    every(axes.xaxis, ticks, width / CHARACTER / (1.4 + max(map(len, remaining))))
    every(axes.yaxis, [short(str(name)) for name in table.index], 50)
    return mesh


class Mean(NamedTuple):
    """Of several pairs of masks."""

    iou: float
    iou_chance: float


# -- overlap ----------------------------------------------------------------------------------------------------------


def overlap(
    frame: pd.DataFrame, path: str | Path, *, density: float | None = None, by: By = None, title: str | None = None
) -> list[Path]:
    """How much masks have in common, as intersection over union (IoU) beside what chance would give.

    Of one study, every two of its rounds. Of an experiment's seeds, every two tickets of one density, kept / prunable:
    by default the lowest that the most experiments have. Of several experiments (see `accuracy` for `by`), means over
    their tickets: over pairs of the same seed, and on the diagonal over pairs of different seeds.

    Writes `path`.png and `path`.svg and returns them. LotteryError where masks are missing, or of different networks.
    """
    check_table(frame)
    runs = [Path(run) for run in frame["run"].unique()]
    pairs: Mapping[tuple[int, int], Common]
    if len(runs) == 1:
        names, pairs = _rounds(runs[0], frame)
        words = heading(frame, title)
    else:
        groups = experiments(frame, by)
        removed = "removed_units" in frame and frame["removed_units"].notna().any()  # whose densities differ by seed
        if density is None and not removed:
            density = common_densities(groups, 1)[0]
            have = frame[frame["control"].isna() & (frame["density"] / density - 1).abs().le(TOLERANCE)]
            runs = [Path(run) for run in have["run"].unique()]
        found = chosen(runs, density)
        names, pairs = _tickets(found) if len(groups) == 1 and len(found) <= MOST else _means(found, groups)
        words = title or f"{heading(frame)}: masks of {percent(found[0].row['density'])} % of the weights"
    return draw_pairs(names, pairs, path, words)


def draw_pairs(
    names: Sequence[str], pairs: Mapping[tuple[int, int], Common], path: str | Path, words: str
) -> list[Path]:
    """The matrix, numbered where the names are too long to stand twice."""
    n, longest = len(names), max(map(len, names))
    numbered = longest > SHORT_NAME
    wide = 1.9 + CHARACTER * (longest + 4) + 0.55 * n if n <= WRITTEN else WIDTH + 1
    with sheet(path, words, overlap_height(n), max(4.5, wide)) as (figure, paths):
        axes = figure.subplots()
        draw_matrix(axes, [f"{name}  {k}" if numbered else name for k, name in enumerate(names, 1)], pairs)
        if numbered:
            axes.set_xticks(range(n), map(str, range(1, n + 1)), rotation=0, ha="center")
    return paths


def _rounds(run: Path, frame: pd.DataFrame) -> tuple[list[str], dict[tuple[int, int], Overlap]]:
    tickets = frame[frame["control"].isna() & (frame["density"] < 1) & (frame["density"] > 0)]
    if not 2 <= len(tickets) <= MOST:
        raise LotteryError(f"{run}: has {len(tickets)} tickets, an overlap matrix takes 2 to {MOST}: choose by `round`")
    rounds = tickets["round"].tolist()
    masks = [read_mask(run / "masks" / f"round_{number:03d}.safetensors") for number in rounds]
    names = [f"round {k}, {percent(density)} %" for k, density in zip(rounds, tickets["density"], strict=True)]
    return names, {(i, j): _of(masks[i], masks[j]) for i, j in combinations(range(len(masks)), 2)}


def _of(one: PackedMask, other: PackedMask) -> Overlap:
    return overlap_of(one.bits, other.bits, one.sizes)


def _tickets(found: Sequence[Entry]) -> tuple[list[str], dict[tuple[int, int], Overlap]]:
    """Every ticket by itself."""
    pairs = combinations(range(len(found)), 2)
    seeds = [f"seed {entry.seed}" for entry in found]
    return seeds if len(set(seeds)) == len(seeds) else labels(found), {
        (i, j): _of(found[i].mask, found[j].mask) for i, j in pairs
    }


def _means(found: Sequence[Entry], groups: Sequence[Experiment]) -> tuple[list[str], dict[tuple[int, int], Mean]]:
    """Every two experiments, and each by itself where it has several seeds."""
    group_of = {run: number for number, group in enumerate(groups) for run in group.rows["run"].unique()}
    pairs: dict[tuple[int, int, bool], list[Overlap]] = {}
    tickets = sorted(
        (group_of[str(entry.run)], number, entry) for number, entry in enumerate(found) if str(entry.run) in group_of
    )
    for (i, _, one), (j, _, other) in combinations(tickets, 2):
        if i != j and one.seed != other.seed and (i, j, True) in pairs:
            continue  # not needed
        pairs.setdefault((i, j, one.seed == other.seed), []).append(_of(one.mask, other.mask))
    means = {}
    for i, j, same in pairs:
        if same == (i != j) or (i, j, not same) not in pairs:
            of = pairs[i, j, same]
            means[i, j] = Mean(fmean(each.iou for each in of), fmean(each.iou_chance for each in of))
    present = sorted({place for pair in means for place in pair})
    names = [f"{groups[place].words or 'ticket'} (n = {sum(i == place for i, _, _ in tickets)})" for place in present]
    return names, {(present.index(i), present.index(j)): mean for (i, j), mean in means.items()}
