"""Figure of training curves: accuracy against step, at several densities (Frankle & Carbin 2019, Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from lottery.errors import ConfigError, LotteryError
from lottery.figures.connectivity import density_colours, density_key
from lottery.figures.experiments import check_table, experiments
from lottery.figures.sheet import DASHED, heading, paths_of, sheet
from lottery.figures.style import DENSE, LOOKS, percent
from lottery.record.table import curves

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
    """Draw accuracy on a split against the training step, coloured by density; means over the seeds of one experiment.

    The tickets have an axis, and each trained one of the `controls`; the dense network is drawn in grey on all.
    split: "validation", or "train": only losses are recorded there during training, so the loss is drawn.
    rounds: the rounds to draw; all by default.
    Returns the paths written. Raises LotteryError for several experiments, and where curves were not recorded.
    """
    if split not in SPLITS:
        raise ConfigError.of("split", split, f"one of {', '.join(SPLITS)}")
    check_table(frame)
    if len(groups := experiments(frame)) > 1:
        words = ", ".join(group.words for group in groups)
        raise LotteryError(f"training: {len(groups)} experiments ({words}): draw each alone")
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
    shown: dict[str | None, pd.DataFrame] = {None: pruned[pruned["control"].isna()]}
    shown |= {control: rows for control in controls if len(rows := pruned[pruned["control"] == control])}
    density = frame.groupby("round")["density"].mean()
    lowest = float(density.loc[recorded["round"].unique()].min())
    width = 4.4 + 3.2 * (len(shown) - 1)
    what = f"{split} {'accuracy (%)' if value == 'accuracy' else 'loss (nats)'} against the training step"
    with sheet(path, heading(frame, title, what), 4.0, width, count=len(shown), sharex=True, sharey=True) as panels:
        for axes, (control, rows) in zip(panels, shown.items(), strict=True):
            draw_training(axes, rows, dense, density, lowest, value)
            axes.set_title(f"{TITLES.get(control, control)} (n = {rows['run'].nunique()})", fontsize="medium")
        if value == "accuracy":
            panels[0].set_ylim(*span([dense, *shown.values()]))
        panels[0].set_ylabel(what.partition(" against")[0])
        panels[0].figure.supxlabel("training step", fontsize="medium")
        density_key(panels, lowest)
    return paths_of(path)


def span(parts: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Return the range of accuracies (%) to show: where the curves end, and some below, since all begin near chance."""
    means = [100 * part.groupby(["round", "step"])["accuracy"].mean() for part in parts if len(part)]
    low = min(float(mean.groupby(level="round").last().min()) for mean in means)
    high = max(float(mean.max()) for mean in means)
    room = max(high - low, 1.0)
    return low - 0.5 * room, min(high + 0.1 * room, 100.5)


def draw_training(
    axes: Axes, rows: pd.DataFrame, dense: pd.DataFrame, density: pd.Series, lowest: float, value: str = "accuracy"
) -> None:
    """Draw the mean curve of each round, and of the dense network."""
    norm, colours = density_colours(lowest)
    unit = 100.0 if value == "accuracy" else 1.0
    for round, of in [(0, dense), *rows.groupby("round")]:
        mean = unit * of.groupby("step")[value].mean()
        colour, style = (DENSE, DASHED) if round == 0 else (colours(norm(density[round])), "solid")
        words = "dense" if round == 0 else f"{percent(float(density[round]))} %"
        axes.plot(mean.index, mean, color=colour, linestyle=style, linewidth=1.2, label=words)
    axes.grid(axis="y")
