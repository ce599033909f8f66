"""Figure of the three regimes: density against the step at which the dense training stopped. Torch-free."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from lottery.figures.connectivity import STABLE, one_way
from lottery.figures.experiments import By, NothingToDraw, check_table, experiments, missing
from lottery.figures.rewinding import POINTS
from lottery.figures.sheet import heading, paths_of, sheet
from lottery.figures.style import finite, percent

# Copies of lower CKA are not alike (docs/methods/stability.md); with a barrier of STABLE or more, not connected.
ALIKE = 0.97
BARRIER, CKA = "probe/lmc_error_train", "probe/cka_copies"
REGIMES = {
    "I": ("not connected", "#D55E00"),
    "II-A": ("connected, not alike", "#56B4E9"),
    "II-B": ("connected and alike", "#009E73"),
}


def regime(barrier: float, cka: float) -> str:
    """Return the regime, I, II-A or II-B, of two copies with this barrier in training error, 0 to 1, and output CKA."""
    return "I" if barrier >= STABLE else "II-A" if cka < ALIKE else "II-B"


def regimes(
    frame: pd.DataFrame, path: str | Path, *, by: By = None, title: str | None = None, vector: bool = True
) -> list[Path]:
    """Draw a cell for each stop of the dense training and each density, coloured by its regime (Zhou et al. 2023).

    A cell shows the barrier (points), the CKA of the last compared layer and test accuracy (%), as means over seeds.
    A cell is empty where CKA is undefined, since outputs are constant. Each experiment has an axis.
    Returns the paths written. Raises LotteryError where no round has both a barrier (on training images) and CKA
    between copies, or barriers were measured in different ways.
    """
    check_table(frame, ["step_rewind", BARRIER, CKA])
    found = [(group.words, table) for group in experiments(frame, by, POINTS) if len(table := cells(group.rows))]
    if not found:
        raise NothingToDraw(missing(CKA))
    way = one_way(frame[frame[BARRIER].notna()], "lmc", "train")
    height = len(found) * (2.0 + 0.5 * max(table["step_rewind"].nunique() for _, table in found))
    with sheet(
        path,
        heading(frame, title, "regimes: density against the step at which the dense training stopped", way),
        height,
        vector=vector,
        count=len(found),
        most=1,
    ) as panels:
        for axes, (name, table) in zip(panels, found, strict=True):
            draw_cells(axes, table)
            axes.set_title(name, fontsize="medium")
        keys = [Patch(color=colour, alpha=0.55, label=f"{name}: {words}") for name, (words, colour) in REGIMES.items()]
        panels[0].figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize="small")
    return paths_of(path, vector)


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean barrier, cka and test_accuracy over seeds (fractions), a row for each step_rewind and density.

    Tickets without a finite barrier and CKA are left out.
    """
    tickets = rows[rows["control"].isna() & (rows["round"] > 0)]
    last = tickets[CKA].map(lambda layers: list(layers.values())[-1] if isinstance(layers, dict) and layers else None)
    tickets = tickets.assign(barrier=tickets[BARRIER].astype(float), cka=last.astype(float))
    tickets = tickets[np.isfinite(tickets[["barrier", "cka"]]).all(axis=1)]
    return tickets.groupby(["step_rewind", "density"], as_index=False)[["barrier", "cka", "test_accuracy"]].mean()


def draw_cells(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the `cells` of one experiment."""
    stops, densities = (sorted(table[name].unique()) for name in ("step_rewind", "density"))
    for stop, density, barrier, cka, accuracy in table.itertuples(index=False):
        x, y = densities.index(density), stops.index(stop)
        colour = REGIMES[regime(barrier, cka)][1]
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, alpha=0.55, linewidth=0))
        words = [f"{100 * barrier:.1f}", f"{cka:.2f}", *([f"{100 * accuracy:.1f}"] if finite(accuracy) else [])]
        axes.text(x, y, " | ".join(words), ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.5, len(densities) - 0.5)
    axes.set_ylim(-0.5, len(stops) - 0.5)
    axes.set_xticks(range(len(densities)), [percent(density) for density in densities])
    axes.set_yticks(range(len(stops)), [f"{stop:,}" for stop in stops])
    axes.set_xlabel(
        "prunable weights remaining (%)\ncells: barrier in training error (points) | CKA | test accuracy (%)"
    )
    axes.set_ylabel("dense training stopped at step")
