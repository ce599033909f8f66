"""The figure of the instability analysis: barrier and accuracy against the rewind point, over one study or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from lottery.analysis.curves import check_one_experiment
from lottery.analysis.read import Row, read_config, read_rounds
from lottery.analysis.stability import STABLE, how
from lottery.analysis.style import DENSE, Look, canvas, looks, percent, title
from lottery.errors import LotteryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))  # of densities, the densest first


def draw_instability(runs: Iterable[Path], out: Path) -> Path:
    """Draw instability.png into `out`: left the barrier in test error, right the test accuracy, both against the rewind
    point; a line for each density and control, means with bars from the lowest to the highest seed.

    Raises LotteryError where the runs differ in more than their seeds, or no run has measured a barrier
    (probes=connectivity), or they measured it in different ways.
    """
    configs = {run: read_config(run) for run in dict.fromkeys(runs)}
    check_one_experiment(configs)
    first, *_ = configs
    rows = [row for run in configs for row in read_rounds(run) if row["round"] > 0]
    barrier = barrier_key(rows)
    if barrier is None:
        raise LotteryError(f"{first}: no barrier was measured; run it with probes=connectivity")
    split = barrier.rpartition("_")[2]
    ways = sorted({how(row, "lmc", split) for row in rows if row.get(barrier) is not None})
    if len(ways) > 1:
        raise LotteryError(f"barriers measured in different ways are not to be compared: {' and '.join(ways)}")
    heading = f"{title(configs[first], seed=len(configs) == 1)}; {ways[0]}"
    with canvas(out / "instability.png", heading, height=4.4) as figure:
        left, right = figure.subplots(1, 2)
        _draw(left, rows, barrier, 100.0)
        left.axhline(100 * STABLE, color=DENSE, linestyle=(0, (5, 3)), linewidth=1.1, zorder=1.5)
        left.annotate("below: stable", (0.02, 100 * STABLE), xycoords=("axes fraction", "data"), xytext=(0, -3),
                      textcoords="offset points", va="top", fontsize="small", color=DENSE)  # fmt: skip
        left.set_ylabel(f"barrier in {split} error (points)")
        left.set_ylim(bottom=0)
        _draw(right, rows, "test_accuracy", 100.0)
        right.set_ylabel("test accuracy (%)")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return out / "instability.png"


def barrier_key(rows: Sequence[Row]) -> str | None:
    """The figure that holds the tickets' barrier between copies, of test error or else of training error, if any."""
    keys = (f"probe/lmc_error_{split}" for split in ("test", "train", "validation"))
    return next((key for key in keys if any(row["round"] > 0 and row.get(key) is not None for row in rows)), None)


def _draw(axes: Axes, rows: Sequence[Row], key: str, unit: float) -> None:
    """A line for each control and density."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    densities = sorted({row["density"] for row in rows}, reverse=True)
    sparse = [density for density in densities if density < 1]
    for look in looks({row["control"] for row in rows}):
        for density in densities:
            found = _points(rows, look.control, density, key, unit)
            if not found:
                continue
            dense = Look(None, "dense", DENSE, "x")
            style = dense if density == 1 else look
            steps, values = list(found), list(found.values())
            mean = [fmean(each) for each in values]
            bars = [
                [m - min(v) for m, v in zip(mean, values, strict=True)],
                [max(v) - m for m, v in zip(mean, values, strict=True)],
            ]
            line = STYLES[sparse.index(density) % len(STYLES)] if density in sparse else "solid"
            words = style.words + (f" {percent(density)} %" if len(sparse) > 1 and density < 1 else "")
            axes.errorbar(
                steps, mean, bars if max(map(len, values)) > 1 else None, color=style.colour, marker=style.marker,
                linestyle=line, markersize=5, capsize=2, elinewidth=1, label=words,
            )  # fmt: skip
    steps = sorted({row["step_rewind"] for row in rows})
    positive = [step for step in steps if step]
    axes.set_xscale("symlog", linthresh=min(positive, default=1))
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rewound to step")
    axes.grid(axis="y")


def _points(rows: Sequence[Row], control: str | None, density: float, key: str, unit: float) -> dict[int, list[float]]:
    """The values at each rewind point, ascending."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["control"] == control and row["density"] == density and row.get(key) is not None:
            found.setdefault(row["step_rewind"], []).append(unit * row[key])
    return dict(sorted(found.items()))
