"""The figures of a study and of its repetitions over seeds, drawn from run folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lottery.analysis.axes import (
    CHARACTER,
    accuracy_axis,
    density_axis,
    density_scale,
    every,
    heat_map,
    short,
    step_axis,
)
from lottery.analysis.curves import Curve, Point, check_one_experiment, curves, dense_level
from lottery.analysis.instability import barrier_key, draw_instability
from lottery.analysis.read import Row, read_config, read_rounds
from lottery.analysis.regimes import draw_regimes
from lottery.analysis.search import draw_search
from lottery.analysis.stability import draw_lines, draw_rounds
from lottery.analysis.style import DENSE, WIDTH, Look, canvas, looks, percent, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
                step_axis(axes, max(point.high for point in points))
            else:
                low, high = min(point.low for point in points), max(point.high for point in points)
                accuracy_axis(axes, unit * low, unit * high)
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
    density_axis(axes, [point.density for point in points])


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
    titles = [short(name) for name in names]
    height = min(10.0, max(2.3, 1.5 + 0.19 * len(names)))
    with canvas(path, heading, height) as figure:
        axes = figure.add_subplot()
        axes.set_xlabel("round, and weights remaining (%)")
        empty = any(value is not None and value <= 0 for line in values for value in line)
        density_scale(heat_map(axes, values), axes, height, empty)
        room = WIDTH - 1.1 - CHARACTER * max(map(len, titles))
        remaining = [percent(tickets[k].get("density_weights") or 0) for k in rounds]
        fitting = room / CHARACTER / (1.4 + max(map(len, remaining)))
        every(axes.xaxis, [f"{k}\n{d}" for k, d in zip(rounds, remaining, strict=True)], fitting)
        every(axes.yaxis, titles, 50)
    return True
