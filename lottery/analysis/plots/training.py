"""Training curves: accuracy against step, at several densities (Frankle & Carbin 2019, Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lottery.analysis.plots.experiments import check_table, experiments
from lottery.analysis.plots.sheet import heading, sheet
from lottery.analysis.runs import curves
from lottery.analysis.stability import density_colours, density_key
from lottery.analysis.style import DENSE, LOOKS, percent
from lottery.errors import ConfigError, LotteryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPLITS = ("validation", "train")
TITLES = {look.control: look.words for look in LOOKS} | {None: "tickets"}


def training(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    split: str = "validation",
    rounds: Sequence[int] = (),
    controls: Sequence[str] = ("reinit",),
    title: str | None = None,
) -> list[Path]:
    """Accuracy on a split against the training step, coloured by density: an axis for the tickets, and one for each of
    the `controls` that there is; the dense network, in grey, on all. Means over the seeds of one experiment.

    split: "validation"; or "train", of which only losses are recorded while it trains, so that loss is drawn.
    rounds: which; all by default.

    Writes `path`.png and `path`.svg and returns them. Raises LotteryError for several experiments in one table, and
    where curves were not recorded.
    """
    if split not in SPLITS:
        raise ConfigError.of("split", split, f"one of {', '.join(SPLITS)}")
    check_table(frame)
    if len(groups := experiments(frame)) > 1:
        raise LotteryError(
            f"training: {len(groups)} experiments ({', '.join(g.words for g in groups)}): draw each alone"
        )
    value = "accuracy" if split == "validation" else "loss"
    recorded = curves(frame)
    recorded = recorded[(recorded["split"] == split) & recorded[value].notna()]
    if recorded.empty:
        raise LotteryError(
            f"training: no {split} {value} on the curves; it needs a validation split (data.validation=5000)"
        )
    if rounds:
        recorded = recorded[recorded["round"].isin([0, *rounds])]
    dense, pruned = recorded[recorded["round"] == 0], recorded[recorded["round"] > 0]
    shown = [None, *(name for name in controls if (pruned["control"] == name).any())]
    own = [pruned[pruned["control"].isna() if name is None else pruned["control"] == name] for name in shown]
    density = frame.groupby("round")["density_weights"].mean()
    lowest = float(density.loc[recorded["round"].unique()].min())
    with sheet(path, heading(frame, title), 4.0, 4.4 + 3.2 * (len(shown) - 1)) as (figure, paths):
        panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0].tolist()
        for axes, control, rows in zip(panels, shown, own, strict=True):
            draw(axes, rows, dense, density, lowest, value)
            axes.set_title(f"{TITLES.get(control, control)} (n = {rows['run'].nunique()})", fontsize="medium")
        if value == "accuracy":
            panels[0].set_ylim(*span([dense, *own]))
        panels[0].set_ylabel(f"{split} accuracy (%)" if value == "accuracy" else f"{split} loss (nats)")
        figure.supxlabel("training step", fontsize="medium")
        density_key(figure, panels, lowest)
    return paths


def span(parts: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Accuracies (%) that are shown: where the curves end, and some below: they all begin near chance."""
    means = [100 * part.groupby(["round", "step"])["accuracy"].mean() for part in parts if len(part)]
    ends = [float(curve.iloc[-1]) for mean in means for _, curve in mean.groupby(level="round")]
    low, high = min(ends), max(float(mean.max()) for mean in means)
    room = max(high - low, 1.0)
    return low - 0.5 * room, min(high + 0.1 * room, 100.5)


def draw(
    axes: Axes, rows: pd.DataFrame, dense: pd.DataFrame, density: pd.Series, lowest: float, value: str = "accuracy"
) -> None:
    """The mean curve of each round, and the dense network's."""
    norm, colours = density_colours(lowest)
    unit = 100.0 if value == "accuracy" else 1.0
    for round, of in [(0, dense), *rows.groupby("round")]:
        mean = unit * of.groupby("step")[value].mean()
        colour, style = (DENSE, (0, (5, 3))) if round == 0 else (colours(norm(density[round])), "solid")
        words = "dense" if round == 0 else f"{percent(float(density[round]))} %"
        axes.plot(mean.index, mean, color=colour, linestyle=style, linewidth=1.2, label=words)
    axes.grid(axis="y")
