"""Curves of a measurement for each experiment's tickets and controls, as means over seeds. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lottery.analysis.comparison import TOLERANCE
from lottery.analysis.statistics import summary
from lottery.errors import ConfigError
from lottery.figures.experiments import Experiment, NothingToDraw
from lottery.figures.style import LOOKS, OTHERS, looks

BANDS = {  # ends of a band as columns of `summary`, and words for the legend
    "range": ("min", "max", "mean and range of n seeds"),
    "t": ("t_low", "t_high", "mean and 95 % t interval of n seeds"),
    "bootstrap": ("boot_low", "boot_high", "mean and 95 % bootstrap interval of n seeds"),
    "trainings": ("min", "max", "mean and range of n trainings"),  # each copy of a control counts
}
PALETTE = [*((look.colour, look.marker) for look in LOOKS), *OTHERS[:2], ("#882255", "p")]  # yellow is pale on white
CONTROL = (0, (2, 1.5))  # line style of controls in a figure of several experiments
KEPT = ("run", "seed", "round", "control", "weights_digest")
STYLES: tuple[Any, ...] = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


@dataclass(frozen=True)
class Curve:
    """One line of a figure.

    points: x, mean, low, high and n in the units of the table, a row a point, in the order in which they are joined.
    single: whether every point is of one training; then the legend leaves n out.
    joined: whether a line joins the points. It does not join two studies that each prune once: a line has three points.
    """

    words: str
    colour: str
    marker: str
    style: Any
    points: pd.DataFrame
    control: str | None = None
    experiment: str = ""
    single: bool = False
    joined: bool = True

    @property
    def counted(self) -> str:
        """The words and n, the number of studies (or trainings) behind the points."""
        if self.single:
            return self.words
        fewest, most = int(self.points["n"].min()), int(self.points["n"].max())
        return f"{self.words} (n = {fewest})" if fewest == most else f"{self.words} (n = {fewest}–{most})"


def band_columns(band: str) -> tuple[str, str, str]:
    """Return the columns of `summary` for the ends of a band, and words for the legend. Raises ConfigError."""
    if band not in BANDS:
        raise ConfigError.of("band", band, f"one of {', '.join(BANDS)}")
    return BANDS[band]


def curves(
    groups: Sequence[Experiment],
    value: str,
    x: str,
    band: str = "range",
    places: Sequence[str] = ("round", "config.method.density"),
) -> list[Curve]:
    """Return the curves of a measurement, for tickets and controls of each experiment; empty curves are left out.

    A point is the mean over the studies whose rows agree in the columns `places`; its x is a mean, too. With the band
    "trainings" every copy of a control counts; with the others copies are averaged within their study.
    """
    found = []
    for number, group in enumerate(groups):
        rows = group.rows[group.rows[value].notna() & group.rows[x].notna()]
        rows = rows[[name for name in dict.fromkeys([*KEPT, value, x, *places]) if name in rows]]
        once_pruned = "config.method.density" in rows and rows["config.method.density"].notna().any()
        controls = (None if pd.isna(name) else str(name) for name in rows["control"].unique())
        for look in looks(controls, method_of(group.rows)):
            own = rows[rows["control"].isna() if look.control is None else rows["control"] == look.control]
            at = points(own, value, x, band, places)
            joined = len(at) > (2 if once_pruned else 1)
            curve = Curve(look.words, look.colour, look.marker, "solid", at, look.control, joined=joined)
            found.append(curve if len(groups) == 1 else _among_others(curve, group, number))
    single = band == "trainings" and all((curve.points["n"] == 1).all() for curve in found)
    return [replace(curve, single=single) for curve in found]


def method_of(rows: pd.DataFrame) -> str:
    """Return the `_target_` of the first row's method; "" where the table does not name it."""
    return str(rows["config.method._target_"].iloc[0]) if "config.method._target_" in rows and len(rows) else ""


def _among_others(curve: Curve, group: Experiment, number: int) -> Curve:
    """Return the curve in the look of its experiment, for a figure of several experiments."""
    colour, marker, style = look_of(number)
    if curve.control is not None:
        return replace(curve, colour=colour, style=CONTROL, experiment=group.words)
    return replace(curve, words=group.words, colour=colour, marker=marker, style=style, experiment=group.words)


def look_of(number: int) -> tuple[str, str, Any]:
    """Return colour, marker and line style of the experiment with this number."""
    return *PALETTE[number % len(PALETTE)], STYLES[number // len(PALETTE) % len(STYLES)]


def points(
    rows: pd.DataFrame, value: str, x: str, band: str = "range", places: Sequence[str] = ("round",)
) -> pd.DataFrame:
    """Return a row for each place, sorted by x, with x, mean, low, high and n.

    A dense network (round 0) that several studies share counts once.
    """
    low, high, _ = band_columns(band)
    if rows.empty:
        return pd.DataFrame(columns=["x", "mean", "low", "high", "n"])
    rows = once(rows)
    pruned = rows["round"] > 0
    later = rows[pruned] if pruned.any() else rows
    at = [name for name in places if name in rows and later[name].nunique(dropna=False) > 1]
    if any(name.startswith("config.") and later[name].notna().any() for name in places if name in rows):
        rows = later  # each study has one density: do not join it to the dense network
    at = at or ["round"]
    at = at if (rows["round"] > 0).all() else list(dict.fromkeys(["round", *at]))
    rows = rows.assign(run=range(len(rows))) if band == "trainings" else rows
    found = summary(rows, at, value, mixed=True)
    found["x"] = rows.groupby(at, dropna=False, sort=False)[x].mean().to_numpy()
    found = found.rename(columns={low: "low", high: "high"})[["x", "mean", "low", "high", "n"]]
    return found.sort_values("x", kind="stable").reset_index(drop=True)


def once(rows: pd.DataFrame) -> pd.DataFrame:
    """Drop repeated rows of a dense network that several studies share."""
    if "weights_digest" not in rows:
        return rows
    again = rows[["round", "seed", "control", "weights_digest"]].duplicated()
    return rows[(rows["round"] > 0) | ~again]


def dense_levels(groups: Sequence[Experiment], value: str) -> list[tuple[float, str | None]]:
    """Return (mean, colour) of dense networks: one pair, colour None, if experiments share them; else a pair each."""
    kept = [name for name in (*KEPT, value) if name in groups[0].dense]
    dense = [once(group.dense.loc[group.dense[value].notna(), kept]) for group in groups]
    together = pd.concat(dense)
    if together.empty:
        return []
    shared = "weights_digest" in together and (together.groupby("seed")["weights_digest"].nunique() == 1).all()
    if shared or len(groups) == 1:
        return [(float(once(together)[value].mean()), None)]
    return [(float(rows[value].mean()), look_of(number)[0]) for number, rows in enumerate(dense) if len(rows)]


def nominal(frame: pd.DataFrame) -> pd.Series:
    """Return each row's density; densities within 1 % of one another, as by rounding, become the highest of them."""
    ordered = sorted(frame.loc[frame["density"] > 0, "density"].unique(), reverse=True)
    known: dict[float, float] = {}
    first = 0.0
    for density in ordered:
        first = density if not first or density < first * (1 - TOLERANCE) else first
        known[density] = first
    return frame["density"].map(known)


def common_densities(groups: Sequence[Experiment], most: int) -> list[float]:
    """Return the lowest densities, at most `most`, that the most experiments have tickets of; the densest first."""
    tickets = [group.rows[(group.rows["round"] > 0) & group.rows["control"].isna()] for group in groups]
    at = nominal(pd.concat(tickets))
    if at.dropna().empty:
        raise NothingToDraw("these rows have no ticket that keeps a weight")
    have = Counter(density for rows in tickets for density in at.loc[rows.index].dropna().unique())
    shared = sorted(density for density, count in have.items() if count == max(have.values()))
    return sorted(shared[:most], reverse=True)


def at_density(groups: Sequence[Experiment], density: float) -> list[Experiment]:
    """Reduce each experiment to its pruned rows within 1 % of this density."""
    return [
        replace(group, rows=rows[(rows["round"] > 0) & ((rows["density"] / density - 1).abs() <= TOLERANCE)])
        for group in groups
        for rows in [group.rows]
    ]
