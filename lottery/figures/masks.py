"""Figures of masks: layer densities over the rounds as heat maps, and the overlap of tickets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import ceil
from pathlib import Path
from statistics import fmean
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from lottery.analysis.compare import labels
from lottery.analysis.comparison import TOLERANCE, ComparedTicket, chosen
from lottery.figures.axes import CHARACTER, density_scale, every, heat_map, short
from lottery.figures.curves import common_densities
from lottery.figures.experiments import By, Experiment, NothingToDraw, check_table, experiments, missing, several_points
from lottery.figures.matrix import MOST, Mean, draw_matrix, matrix_size
from lottery.figures.sheet import heading, paths_of, sheet
from lottery.figures.style import WIDTH, percent
from lottery.record.masks import PackedMask
from lottery.record.run import Run
from lottery.stability.overlap import Overlap
from lottery.stability.overlap import overlap as overlap_of

PANELS = 3  # axes in a row
OVERLAP = "overlap of masks (IoU), beside what chance gives"


# -- layer densities --------------------------------------------------------------------------------------------------


def layer_density(
    frame: pd.DataFrame, path: str | Path, *, by: By = None, title: str | None = None, vector: bool = True
) -> list[Path]:
    """Draw the density of every layer over the rounds as heat maps: an axis for each experiment, means over seeds.

    Returns the paths written. Raises LotteryError for several architectures or data sets that `by` does not tell apart.
    """
    check_table(frame, ["layer_density"])
    groups = experiments(frame, by)
    found = [(group, table) for group in groups if (table := layer_table(group)).size]
    if not found:
        raise NothingToDraw(missing("layer_density"))
    if all(number == 0 for _, table in found for number, _ in table):
        raise NothingToDraw("layer_density: nothing is pruned in these runs yet")
    columns, layers = min(PANELS, len(found)), max(len(table) for _, table in found)
    names = CHARACTER * max(len(short(str(name))) for _, table in found for name in table.index)
    height = min(10.0, max(2.3, 1.5 + 0.19 * layers)) * ceil(len(found) / columns)
    width = WIDTH if columns == 1 else 1.1 + names + 2.4 * columns
    least = min(float(table[table > 0].min().min()) for _, table in found)
    none = any((table == 0).any(axis=None) for _, table in found)
    whole = none and all(table.isin([0.0, 1.0]).all(axis=None) for _, table in found)  # layers leave as a whole
    kept = "layers kept (yellow) and removed (grey) over the rounds"
    what = kept if whole else "weights kept in each layer (%) over the rounds"
    words, share = heading(frame, title, what), columns > 1
    with sheet(path, words, min(16.0, height), width, vector, len(found), columns, sharey=share) as panels:
        for axes, (group, table) in zip(panels, found, strict=True):
            mesh = draw_layers(axes, table, (width - 1.1 - names) / columns, least)
            axes.set_title(_panel_title(group, round(width / columns / CHARACTER)), fontsize="medium")
        if not whole:
            density_scale(mesh, panels, height, none)
        panels[0].figure.supxlabel("round, and prunable weights remaining (%)", fontsize="medium")
    return paths_of(path, vector)


def _panel_title(group: Experiment, width: int) -> str:
    """Return the experiment and n, the number of seeds; "" for one study alone."""
    n = group.rows["seed"].nunique()
    if not group.words:
        return f"n = {n}" if n > 1 else ""
    return fill(f"{group.words} (n\u00a0=\u00a0{n})", width).replace("\u00a0", " ")  # no line break within n


def layer_table(group: Experiment) -> pd.DataFrame:
    """Return mean layer densities over the seeds: a row a layer, in network order, a column a (round, density)."""
    rows = group.rows[group.rows["control"].isna() & group.rows["layer_density"].notna()]
    several = "config.method.density" in rows and rows["config.method.density"].nunique(dropna=False) > 1
    place = rows["config.method.density"] if several else rows["round"]
    at = [rows["round"], place.where(rows["round"] > 0)]
    layers = pd.DataFrame(rows["layer_density"].tolist(), index=rows.index).groupby(at, dropna=False).mean()
    density = rows.groupby(at, dropna=False)["density"].mean()
    table = layers.T.set_axis([(int(number), mean) for (number, _), mean in density.items()], axis=1)
    return table[sorted(table, key=lambda place: (-place[1], place[0]))]


def draw_layers(axes: Axes, table: pd.DataFrame, width: float, least: float | None = None) -> QuadMesh:
    """Draw `layer_table` as a heat map, `width` inches wide: layers downwards, from dense at the left to sparse."""
    mesh = heat_map(axes, table.to_numpy().tolist(), least)
    remaining = [percent(density) for _, density in table]
    rounds = [number for number, _ in table]
    several = len(set(rounds)) == len(rounds)  # else each column is a study of another density
    ticks = [f"{k}\n{d}" if several else d for k, d in zip(rounds, remaining, strict=True)]
    every(axes.xaxis, ticks, width / CHARACTER / (1.4 + max(map(len, remaining))))
    every(axes.yaxis, [short(str(name)) for name in table.index], 50)
    return mesh


# -- overlap ----------------------------------------------------------------------------------------------------------


def overlap(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    density: float | None = None,
    by: By = None,
    title: str | None = None,
    vector: bool = True,
) -> list[Path]:
    """Draw the overlap of masks, as intersection over union (IoU), beside the value expected by chance.

    For one study: every two of its rounds. For several seeds of one experiment: every two tickets of one density
    (kept / prunable; by default the lowest that the most experiments have). For several experiments (see `accuracy`
    for `by`): means over pairs of tickets of the same seed, and on the diagonal over pairs of different seeds.
    Returns the paths written. Raises LotteryError where masks are missing, or of different networks, and for a study
    in which each mask is part of the one before: the IoU of its rounds j < k is the ratio of their densities.
    """
    check_table(frame)
    runs = [Path(run) for run in frame["run"].unique()]
    pairs: Mapping[tuple[int, int], Overlap | Mean]
    if len(runs) == 1:
        names, pairs = _rounds(runs[0], frame)
        words = heading(frame, title, OVERLAP)
    else:
        groups = experiments(frame, by)
        removed = "removed_units" in frame and frame["removed_units"].notna().any()  # their densities differ by seed
        if density is None and not removed:
            density = common_densities(groups, 1)[0]
            have = frame[frame["control"].isna() & (frame["density"] / density - 1).abs().le(TOLERANCE)]
            runs = [Path(run) for run in have["run"].unique()]
        found = chosen(runs, density)
        if len(groups) == 1 and len(found) <= MOST:
            seeds = [f"seed {entry.seed}" for entry in found]
            names = seeds if len(set(seeds)) == len(seeds) else labels(found)
            pairs = _pairs([entry.mask for entry in found])
        else:
            names, pairs = _means(found, groups)
        words = heading(frame, title, OVERLAP, f"{percent(found[0].row['density'])} % of the prunable weights")
    with sheet(path, words, *matrix_size(names), vector) as (axes,):
        draw_matrix(axes, names, pairs)
    return paths_of(path, vector)


def _rounds(run: Path, frame: pd.DataFrame) -> tuple[list[str], dict[tuple[int, int], Overlap]]:
    """Return the names of a study's pruned tickets, and the overlap of every two."""
    tickets = frame[frame["control"].isna() & (frame["density"] < 1) & (frame["density"] > 0)]
    if not 2 <= (n := len(tickets)) <= MOST:
        raise NothingToDraw(f"{run}: has {n} tickets, an overlap matrix takes 2 to {MOST}: choose by `round`")
    masks = [Run(run).packed_mask(row) for row in tickets.to_dict("records")]
    pairs = _pairs(masks)
    if all(pair.common == min(pair.ours, pair.theirs) for pair in pairs.values()):
        raise NothingToDraw(f"{run}: each mask is part of the one before, so their overlap is the ratio of densities")
    word, column = ("step", "step_rewind") if several_points(tickets) else ("round", "round")
    places = zip(tickets[column], tickets["density"], strict=True)
    names = [f"{word} {place:,.0f}, {percent(density)} %" for place, density in places]
    return names, pairs


def _pairs(masks: Sequence[PackedMask]) -> dict[tuple[int, int], Overlap]:
    """Return the overlap of every two masks, by their positions i < j."""
    pairs = combinations(enumerate(masks), 2)
    return {(i, j): overlap_of(one.bits, other.bits, one.sizes) for (i, one), (j, other) in pairs}


def _means(
    found: Sequence[ComparedTicket], groups: Sequence[Experiment]
) -> tuple[list[str], dict[tuple[int, int], Mean]]:
    """Return names of the experiments, and mean overlaps: of every two, and within each that has several tickets."""
    group_of = {run: number for number, group in enumerate(groups) for run in group.rows["run"].unique()}
    tickets = [(group_of[str(entry.run.path)], entry) for entry in found if str(entry.run.path) in group_of]
    tickets.sort(key=lambda ticket: ticket[0])
    pairs: dict[tuple[int, int], list[tuple[ComparedTicket, ComparedTicket]]] = defaultdict(list)
    for (i, one), (j, other) in combinations(tickets, 2):
        pairs[i, j].append((one, other))
    means = {}
    for (i, j), both in pairs.items():
        wanted = [(one, other) for one, other in both if (one.seed == other.seed) == (i != j)] or both
        overlaps = [_pairs([one.mask, other.mask])[0, 1] for one, other in wanted]
        means[i, j] = Mean(fmean(each.iou for each in overlaps), fmean(each.iou_chance for each in overlaps))
    present = sorted({place for pair in means for place in pair})
    counts = [sum(place == i for i, _ in tickets) for place in present]
    names = [f"{groups[place].words or 'ticket'} (n = {n})" for place, n in zip(present, counts, strict=True)]
    return names, {(present.index(i), present.index(j)): mean for (i, j), mean in means.items()}
