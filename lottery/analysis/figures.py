"""The figures of a study and of its repetitions over seeds, drawn from run folders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.analysis.curves import Curve, Point, check_one_experiment, curves, dense_level
from lottery.analysis.instability import barrier_key, draw_instability
from lottery.analysis.read import Row, read_config, read_rounds
from lottery.analysis.regimes import draw_regimes
from lottery.analysis.search import draw_search
from lottery.analysis.stability import draw_lines, draw_rounds
from lottery.analysis.style import DENSE, EMPTY, WIDTH, Look, canvas, looks, percent, spaced, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHARACTER = 0.08  # inches that a character of a tick label takes, a little more than it does
ACCURACY_SPAN = 1.0  # percentage points that the axis shows at least, so that noise looks like noise
LONGEST_NAME = 32  # characters


def draw_study(run: Path) -> list[Path]:
    """Draw a study into `run`/figures: accuracy.png and early_stop.png (or instability.png, regimes.png), and of each
    layer_density.png, lmc.png (lmc_previous.png, lmc_path.png), search.png and mask_overlap.png. Returns their paths.

    A figure for which nothing was measured (early stopping without a validation split) is neither drawn nor returned.
    Raises LotteryError where `run` is no run folder.
    """
    config = read_config(run)
    rows, heading = read_rounds(run), title(config)
    folder = run / "figures"
    method = str((config.get("method") or {}).get("_target_", "")).rpartition(".")[2]
    if method == "Instability":  # its rounds are no ladder of densities, nor are those of Regimes
        paths = [draw_instability([run], folder)] if barrier_key(rows) else []
    elif method == "Regimes":
        regimes = folder / "regimes.png"
        paths = [regimes] if draw_regimes(rows, heading, regimes) else []
    else:
        paths = _draw_curves(rows, heading, folder, bars=False)
    layers, shared = folder / "layer_density.png", folder / "mask_overlap.png"
    paths += [layers] if _draw_layers(rows, heading, layers) else []
    paths += draw_lines(rows, heading, folder)
    searched = folder / "search.png"
    paths += [searched] if draw_search(run, heading, searched) else []
    return [*paths, shared] if draw_rounds(run, rows, heading, shared) else paths


def draw_seeds(runs: Iterable[Path], out: Path) -> list[Path]:
    """Draw accuracy.png and early_stop.png over the seeds of one experiment into `out`, and return their paths.

    Lines are means; bars reach from the lowest to the highest training, as in Frankle & Carbin 2019. The legend says
    how many trainings there are of each: seeds times copies, and a range where some seeds have not come as far.
    Raises LotteryError where the runs differ in more than their seeds, or two have the same.
    """
    configs = {run: read_config(run) for run in dict.fromkeys(runs)}
    check_one_experiment(configs)
    rows = [row for run in configs for row in read_rounds(run)]
    return _draw_curves(rows, title(next(iter(configs.values())), seed=False), out, bars=True)


def _draw_curves(rows: Sequence[Row], heading: str, folder: Path, bars: bool) -> list[Path]:
    figures = {
        "accuracy.png": ("test_accuracy", 100.0, "test accuracy (%)"),
        "early_stop.png": ("early_stop_step", 1.0, "early-stop step"),
    }
    drawn = []
    for name, (key, unit, label) in figures.items():
        found = {line.control: line for line in curves(rows, key)}
        if not found:
            continue
        with canvas(folder / name, heading) as figure:
            axes = figure.add_subplot()
            axes.set_ylabel(label)
            counted = bars or any(line.n[1] > 1 for line in found.values())
            for style in looks(found):
                _draw_curve(axes, found[style.control], style, unit, bars, counted)
            _draw_dense(axes, dense_level(rows, key), unit)
            points = [point for line in found.values() for point in line.points]
            _density_axis(axes, points)
            if key == "early_stop_step":
                _step_axis(axes, points)
            else:
                _accuracy_axis(axes, points)
            _legend(axes, "mean and range of n trainings" if counted else None)
        drawn.append(folder / name)
    return drawn


def _draw_curve(axes: Axes, line: Curve, style: Look, unit: float, bars: bool, counted: bool) -> None:
    """The means as a marked line; the range of several trainings as bars or as a band."""
    points = [point for point in line.points if point.density > 0]
    if not points:
        return
    x = [point.density for point in points]
    mean, low, high = ([unit * getattr(point, name) for point in points] for name in ("mean", "low", "high"))
    fewest, most = line.n
    n = f" (n = {fewest})" if fewest == most else f" (n = {fewest}–{most})"
    over = 10 if line.control is None else 5  # the ticket lies on top
    axes.plot(x, mean, color=style.colour, marker=style.marker, label=style.words + (n if counted else ""), zorder=over)
    if most > 1 and bars:
        below, above = ([abs(a - b) for a, b in zip(mean, end, strict=True)] for end in (low, high))
        axes.errorbar(x, mean, (below, above), fmt="none", ecolor=style.colour, elinewidth=1, capsize=2, zorder=over)
    elif most > 1:
        axes.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0, zorder=1)


def _draw_dense(axes: Axes, level: float | None, unit: float) -> None:
    if level is not None:
        axes.axhline(unit * level, color=DENSE, linestyle=(0, (5, 3)), linewidth=1.1, label="dense", zorder=1.5)


def _density_axis(axes: Axes, points: Sequence[Point]) -> None:
    """Log scale, dense at the left as in Frankle & Carbin 2019, labelled at densities that were trained."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    shown = [point.density for point in points if point.density > 0] or [1.0]
    axes.set_xscale("log")
    pad = max(1.08, (max(shown) / min(shown)) ** 0.03)
    axes.set_xlim(max(shown) * pad, min(shown) / pad)
    axes.xaxis.set_major_locator(FixedLocator(spaced(shown, CHARACTER / (WIDTH - 1))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: percent(density)))
    axes.xaxis.set_minor_locator(FixedLocator(sorted(set(shown))))  # a small tick where there is no room for a label
    axes.xaxis.set_minor_formatter(NullFormatter())
    hidden = sum(point.density <= 0 for point in points)
    axes.set_xlabel("weights remaining (%)" + (f"; not shown: {hidden} with none left" if hidden else ""))


def _step_axis(axes: Axes, points: Sequence[Point]) -> None:
    """From 0, since twice as high is meant to be twice as long."""
    from matplotlib.ticker import StrMethodFormatter

    axes.grid(axis="y")
    axes.set_ylim(0, 1.08 * max(1, *(point.high for point in points)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _accuracy_axis(axes: Axes, points: Sequence[Point]) -> None:
    """All of what was measured, never far above 100 %."""
    axes.grid(axis="y")
    low, high = 100 * min(point.low for point in points), 100 * max(point.high for point in points)
    span = max(high - low, ACCURACY_SPAN)
    middle = (low + high) / 2
    axes.set_ylim(middle - 0.55 * span, min(middle + 0.55 * span, 100 + 0.02 * span))


def _legend(axes: Axes, heading: str | None) -> None:
    axes.legend(title=heading, loc="best", alignment="left").set_zorder(20)


def _draw_layers(rows: Sequence[Row], heading: str, path: Path) -> bool:
    """A map of the tickets' layer densities, layers downwards in the network's order, rounds to the right."""
    tickets = {row["round"]: row for row in reversed(rows) if row["control"] is None and row.get("layer_density")}
    if not tickets:
        return False
    rounds = sorted(tickets)
    names = list(dict.fromkeys(name for k in rounds for name in tickets[k]["layer_density"]))
    values = [[tickets[k]["layer_density"].get(name) for k in rounds] for name in names]
    titles = [_short(name) for name in names]
    height = min(10.0, max(2.3, 1.5 + 0.19 * len(names)))
    with canvas(path, heading, height) as figure:
        axes = figure.add_subplot()
        axes.set_xlabel("round, and weights remaining (%)")
        _heat_map(axes, values, height)
        room = WIDTH - 1.1 - CHARACTER * max(map(len, titles))
        remaining = [percent(tickets[k].get("density_weights") or 0) for k in rounds]
        fitting = room / CHARACTER / (1.4 + max(map(len, remaining)))
        _every(axes.xaxis, [f"{k}\n{d}" for k, d in zip(rounds, remaining, strict=True)], fitting)
        _every(axes.yaxis, titles, 50)
    return True


def _short(name: str) -> str:
    """A parameter's name for a tick label: the end of it tells layers apart."""
    name = name.removesuffix(".weight")
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def _heat_map(axes: Axes, values: list[list[float | None]], height: float) -> None:
    """Densities in colour, on a log scale down to the lowest that is not zero; empty layers in grey."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch

    grid = np.array(values, dtype=float)  # None -> nan: not measured, left white
    present = grid[grid > 0]
    smallest = float(present.min()) if present.size else 1.0
    ticks = _ticks(smallest)
    lowest = min(ticks[0], smallest)  # whatever is not empty is on the scale
    colours = colormaps["viridis"].with_extremes(under=EMPTY, bad="white")
    shades = np.where(grid <= 0, lowest / 10, grid)
    norm, gap = LogNorm(lowest, 1), 0.4 if len(values) <= 40 else 0
    mesh = axes.pcolormesh(np.ma.masked_invalid(shades), cmap=colours, norm=norm, edgecolors="white", linewidth=gap)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(mesh, ax=axes, label="layer density (%)", aspect=max(12.0, 9 * (height - 0.9)), pad=0.02)
    bar.set_ticks(ticks, labels=[percent(tick) for tick in ticks])
    bar.minorticks_off()
    bar.outline.set_visible(False)
    if (grid <= 0).any():
        axes.legend(handles=[Patch(color=EMPTY, label="empty")], loc="lower right", bbox_to_anchor=(1, 1))


def _ticks(lowest: float) -> list[float]:
    """Ticks of a log scale from `lowest` or a little below it to 1: steps of 1-2-5, or decades where these are many."""
    decades = max(1, math.ceil(-math.log10(lowest)))
    steps = (1, 2, 5) if decades <= 3 else (1,)
    ticks = [step * 10.0**-power for power in range(decades, 0, -1) for step in steps] + [1.0]
    start = max(index for index, tick in enumerate(ticks[:-1]) if index == 0 or tick <= lowest)
    return ticks[start:]


def _every(axis: Any, labels: Sequence[str], most: float) -> None:
    """Label the cells of an axis, or every second, third … so that at most about `most` labels stand there."""
    stride = math.ceil(len(labels) / max(most, 1))
    chosen = range(0, len(labels), stride)
    axis.set_ticks([index + 0.5 for index in chosen], labels=[labels[index] for index in chosen])
