"""Curves over seeds: a measurement against an axis, of each experiment's tickets and controls. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lottery.analysis.comparison import TOLERANCE
from lottery.analysis.plots.experiments import Experiment
from lottery.analysis.statistics import summary
from lottery.analysis.style import LOOKS, OTHERS, looks
from lottery.errors import ConfigError

BANDS = {  # what a band shows: the columns of `summary`, and the words for the legend
    "range": ("min", "max", "mean and range"),
    "t": ("t_low", "t_high", "mean and 95 % t interval"),
    "bootstrap": ("boot_low", "boot_high", "mean and 95 % bootstrap interval"),
}
PALETTE = [*((look.colour, look.marker) for look in LOOKS), *OTHERS[:2], ("#882255", "p")]  # yellow is pale on white
CONTROL = (0, (2, 1.5))  # the style of a control's line, beside several experiments
KEPT = ("run", "seed", "round", "control", "weights_digest")
STYLES: tuple[Any, ...] = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


@dataclass(frozen=True)
class Curve:
    """One line of a figure. `points` has x, mean, low, high and n, in the order in which they are joined; x and values
    in the units of the table.
    """

    words: str
    colour: str
    marker: str
    style: Any
    points: pd.DataFrame
    control: str | None = None
    experiment: str = ""

    @property
    def counted(self) -> str:
        """The words and n, the number of studies behind its points."""
        fewest, most = int(self.points["n"].min()), int(self.points["n"].max())
        return f"{self.words} (n = {fewest})" if fewest == most else f"{self.words} (n = {fewest}–{most})"


def band_columns(band: str) -> tuple[str, str, str]:
    """Raises ConfigError for an unknown one."""
    if band not in BANDS:
        raise ConfigError.of("band", band, f"one of {', '.join(BANDS)}")
    return BANDS[band]


def curves(
    groups: Sequence[Experiment],
    value: str,
    x: str,
    band: str = "range",
    places: Sequence[str] = ("round", "config.method.density"),
    controls: bool = True,
) -> list[Curve]:
    """The curves of a measurement, the ticket's and the controls' of each experiment; empty ones are left out.

    A point is the mean over the studies of rows that have the `places` in common; x is their mean too.
    """
    return [
        curve
        for number, group in enumerate(groups)
        for curve in _of_experiment(group, value, x, band, places, controls, number if len(groups) > 1 else None)
    ]


def _of_experiment(
    group: Experiment, value: str, x: str, band: str, places: Sequence[str], controls: bool, number: int | None
) -> list[Curve]:
    rows = group.rows[group.rows[value].notna() & group.rows[x].notna()]
    rows = rows[[name for name in dict.fromkeys([*KEPT, value, x, *places]) if name in rows]]
    rows = rows if controls else rows[rows["control"].isna()]
    found = []
    for look in looks(None if pd.isna(name) else str(name) for name in rows["control"].unique()):
        of_control = rows[rows["control"].isna()] if look.control is None else rows[rows["control"] == look.control]
        at = points(of_control, value, x, band, places)
        curve = Curve(look.words, look.colour, look.marker, "solid", at, look.control)
        if number is not None:
            colour, marker = colour_of(number)
            style = STYLES[number // len(PALETTE) % len(STYLES)] if look.control is None else CONTROL
            curve = replace(
                curve, words=look.words if look.control else group.words, colour=colour, style=style,
                marker=look.marker if look.control else marker, experiment=group.words,
            )  # fmt: skip
        found.append(curve)
    return [curve for curve in found if len(curve.points)]


def colour_of(number: int) -> tuple[str, str]:
    """Colour and marker of an experiment."""
    return PALETTE[number % len(PALETTE)]


def points(
    rows: pd.DataFrame, value: str, x: str, band: str = "range", places: Sequence[str] = ("round",)
) -> pd.DataFrame:
    """x, mean, low, high, n: a row a place, sorted by x. The dense network (round 0) of a seed counts once, however
    many studies begin with it.
    """
    low, high, _ = band_columns(band)
    if rows.empty:
        return pd.DataFrame(columns=["x", "mean", "low", "high", "n"])
    rows = once(rows)
    pruned = rows["round"] > 0
    later = rows[pruned] if pruned.any() else rows
    at = [name for name in places if name in rows and later[name].nunique(dropna=False) > 1]
    if any(name.startswith("config.") and later[name].notna().any() for name in places if name in rows):
        rows = later  # studies of one density each: no line leads to it from the dense network
    at = at or ["round"]
    at = at if (rows["round"] > 0).all() else list(dict.fromkeys(["round", *at]))
    found = summary(rows, at, value, mixed=True)
    found["x"] = rows.groupby(at, dropna=False, sort=False)[x].mean().to_numpy()
    found = found.rename(columns={low: "low", high: "high"})[["x", "mean", "low", "high", "n"]]
    return found.sort_values("x", kind="stable").reset_index(drop=True)


def once(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the dense networks that several studies have in common."""
    if "weights_digest" not in rows:
        return rows
    again = rows[["round", "seed", "control", "weights_digest"]].duplicated()
    return rows[(rows["round"] > 0) | ~again]


def dense_levels(groups: Sequence[Experiment], value: str) -> list[tuple[float, Experiment | None]]:
    """The mean of the dense networks: one for all, where the experiments have them in common, else each one's."""
    kept = [name for name in (*KEPT, value) if name in groups[0].dense]
    dense = [once(group.dense.loc[group.dense[value].notna(), kept]) for group in groups]
    together = pd.concat(dense)
    if together.empty:
        return []
    shared = "weights_digest" in together and (together.groupby("seed")["weights_digest"].nunique() == 1).all()
    if shared or len(groups) == 1:
        return [(float(once(together)[value].mean()), None)]
    return [(float(rows[value].mean()), group) for rows, group in zip(dense, groups, strict=True) if len(rows)]


def nominal(frame: pd.DataFrame) -> pd.Series:
    """Each row's density, the same number for those that are equal to a hundredth of it, as is rounding."""
    ordered = sorted(frame.loc[frame["density"] > 0, "density"].unique(), reverse=True)
    known: dict[float, float] = {}
    first = 0.0
    for density in ordered:
        first = density if not first or density < first * (1 - TOLERANCE) else first
        known[density] = first
    return frame["density"].map(known)


def common_densities(groups: Sequence[Experiment], most: int) -> list[float]:
    """The densities of tickets that as many experiments as possible have, at most so many, the lowest first kept;
    densest first.
    """
    tickets = [group.rows[(group.rows["round"] > 0) & group.rows["control"].isna()] for group in groups]
    at = nominal(pd.concat(tickets))
    have = Counter(density for rows in tickets for density in at.loc[rows.index].dropna().unique())
    shared = sorted(density for density, count in have.items() if count == max(have.values()))
    return sorted(shared[:most], reverse=True)


def at_density(rows: pd.DataFrame, density: float) -> pd.DataFrame:
    """The rows of this density, to a hundredth of it."""
    return rows[(rows["density"] / density - 1).abs() <= TOLERANCE]
