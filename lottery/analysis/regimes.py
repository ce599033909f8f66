"""The figure of the three regimes: density against the step at which the dense training stopped. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lottery.analysis.read import Row
from lottery.analysis.stability import STABLE, how
from lottery.analysis.style import canvas, percent

ALIKE = 0.97  # below this CKA: not alike (methods.md, 7.6); from a barrier of STABLE on: not connected
REGIMES = {
    "I": ("not connected", "#D55E00"),
    "II-A": ("connected, not alike", "#56B4E9"),
    "II-B": ("connected and alike", "#009E73"),
}


def regime(barrier: float, cka: float) -> str:
    """I, II-A or II-B, of two copies: their barrier in training error [0, 1] and the CKA of their outputs."""
    if barrier >= STABLE:
        return "I"
    return "II-A" if cka < ALIKE else "II-B"


def draw_regimes(rows: Sequence[Row], heading: str, path: Path) -> bool:
    """A cell for each stop and density, coloured by its regime, with barrier (points), CKA and test accuracy (%) in it.

    CKA is that of the last layer that was compared. A cell stays empty where it is undefined, of constant outputs.
    False, and nothing drawn, where no round has both a barrier (on training images) and CKA between copies.
    """
    from matplotlib.patches import Patch, Rectangle

    cells = {}
    for row in rows:
        barrier, alike = row.get("probe/lmc_error_train"), row.get("probe/cka_copies")
        if row["control"] is None and row["round"] > 0 and barrier is not None and alike:
            cka = list(alike.values())[-1]
            if cka is not None:
                cells[row["step_rewind"], row["density"]] = (barrier, cka, row["test_accuracy"])
    if not cells:
        return False
    stops, densities = sorted({stop for stop, _ in cells}), sorted({density for _, density in cells})
    measured = how(next(row for row in rows if row.get("probe/lmc_error_train") is not None), "lmc", "train")
    with canvas(path, f"{heading}; {measured}", height=2.0 + 0.5 * len(stops)) as figure:
        axes = figure.add_subplot()
        for (stop, density), (barrier, cka, accuracy) in cells.items():
            x, y = densities.index(density), stops.index(stop)
            colour = REGIMES[regime(barrier, cka)][1]
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, alpha=0.55, linewidth=0))
            text = f"{100 * barrier:.1f} | {cka:.2f} | {100 * accuracy:.1f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=8)
        axes.set_xlim(-0.5, len(densities) - 0.5)
        axes.set_ylim(-0.5, len(stops) - 0.5)
        axes.set_xticks(range(len(densities)), [percent(density) for density in densities])
        axes.set_yticks(range(len(stops)), [f"{stop:,}" for stop in stops])
        axes.set_xlabel("weights remaining (%)\ncells: barrier in training error (points) | CKA | test accuracy (%)")
        axes.set_ylabel("dense training stopped at step")
        handles = [
            Patch(color=colour, alpha=0.55, label=f"{name}: {words}") for name, (words, colour) in REGIMES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small")
    return True
