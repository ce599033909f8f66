"""A paper's claims and numbers beside what studies show, with n, computed from a table of rounds. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lottery.analysis.intervals import t_interval
from lottery.analysis.plots.words import entries, method_words
from lottery.analysis.statistics import ROUNDING, paired
from lottery.errors import ConfigError, LotteryError, nearest

NEAR = 1.25  # how many times denser or sparser the density may be that stands for a published one
UNITS = {"": 1.0, "points": 100.0, "%": 100.0, "times": 1.0, "steps": 1.0, "degrees": 1.0}


@dataclass(frozen=True)
class Claim:
    """What a paper says of a number, and the rows in which this number was measured.

    It holds of a mean that is no less than `least` and no more than `most`, both in the units of the table.
    `published` is the paper's number, in `unit` as it is shown, or words where it gives none.
    """

    words: str
    rows: pd.DataFrame
    value: str = "difference"
    least: float = -math.inf
    most: float = math.inf
    published: float | str = ""
    unit: str = "points"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError.of("unit", self.unit, f"one of {', '.join(map(repr, UNITS))}")
        _check_columns(self.rows, [self.value], self.words)


def checked(claims: Iterable[Claim]) -> pd.DataFrame:
    """A row a claim: claim, density (%, of the prunable weights), published, here (the mean over seeds), lowest,
    highest, t_low, t_high (95 %), unit, n (seeds), holds_in (how many of them), agrees.

    A seed counts once: its rows are averaged, since what shares a seed is no independent sample. `agrees` is "yes" or
    "no" of the mean; "open" where it was not measured, n = 0. It says that the sign is right, not that n seeds prove
    it: that is what the interval is for.
    """
    return pd.DataFrame([_checked(claim) for claim in claims])


def _checked(claim: Claim) -> dict[str, Any]:
    rows = claim.rows[claim.rows[claim.value].notna()]
    values = rows.groupby("seed", sort=False)[claim.value].mean().to_numpy(dtype=float)
    unit, some = UNITS[claim.unit], len(values) > 0
    interval = t_interval(values)
    ends = [values.mean(), values.min(), values.max()] if some else [math.nan] * 3
    numbers = dict(zip(("here", "lowest", "highest"), ends, strict=True))
    numbers |= {"t_low": interval.low, "t_high": interval.high}
    agrees = ("yes" if _holds(claim, values.mean()) else "no") if some else "open"
    return {
        "claim": claim.words,
        "density": 100 * rows["density"].mean() if "density" in rows else math.nan,
        "published": claim.published,
        **{name: unit * float(number) for name, number in numbers.items()},
        "unit": claim.unit,
        "n": len(values),
        "holds_in": int(np.sum(_holds(claim, values))),
        "agrees": agrees,
    }


def _check_columns(rows: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    for name in columns:
        if name not in rows:
            raise ConfigError(f"{what}: the table has no column {name!r}{nearest(name, map(str, rows.columns))}")


def _holds(claim: Claim, number: Any) -> Any:
    return (number >= claim.least - ROUNDING) & (number <= claim.most + ROUNDING)


# -- the rows ----------------------------------------------------------------------------------------------------------


def tickets(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of tickets: pruned, and no control."""
    return frame[frame["control"].isna() & (frame["round"] > 0) & (frame["density"] < 1)]


def near(frame: pd.DataFrame, density: float, column: str = "density") -> pd.DataFrame:
    """The rows of the density of each study that is nearest (as a ratio) to a published one; those of studies that have
    none within a factor of 1.25 are left out.

    column: "density", of the prunable weights, or "density_weights", of all.
    """
    if not 0 < density <= 1:
        raise ConfigError.of("density", density, "above 0 and at most 1")
    far = np.log(frame[column].where(frame[column] > 0) / density).abs()
    nearest_of = far.groupby(frame["run"]).transform("min")
    return frame[(far <= nearest_of + ROUNDING) & (far <= math.log(NEAR))]


def within(frame: pd.DataFrame, value: str = "test_accuracy", against: str = "dense") -> pd.DataFrame:
    """`statistics.paired`, and the `ratio` too: rows beside the dense network or a control of their own study."""
    rows = paired(frame, value, against)
    return rows.assign(ratio=rows[value] / rows["reference"])


def across(
    ours: pd.DataFrame, theirs: pd.DataFrame, value: str = "test_accuracy", on: str | Sequence[str] = ("seed", "round")
) -> pd.DataFrame:
    """The rows of `ours`, each with its `reference`, the mean of `theirs` of the same seed and round (or what `on`
    says), and its `difference` from that. Rows without one have NaN. For two of one study there is `within`.

    Raises LotteryError where several studies are alike in what `on` says: a mean would hide that they differ.
    """
    on = [on] if isinstance(on, str) else list(on)
    for rows in (ours, theirs):
        _check_columns(rows, [*on, value], "across")
    for which, each in {"ours": ours, "theirs": theirs}.items():
        studies_of = each.groupby(on)["run"].unique()
        if len(several := studies_of[studies_of.map(len) > 1]):
            where = ", ".join(
                f"{name} {value}" for name, value in zip(on, np.atleast_1d(several.index[0]), strict=True)
            )
            one, other = several.iloc[0][:2]
            raise LotteryError(
                f"across: {which} at {where}: {one} and {other}, expected one study: add to `on`, or filter"
            )
    reference = theirs.groupby(on)[value].mean().rename("reference")
    rows = ours.drop(columns="reference", errors="ignore").join(reference, on=on)
    return rows.assign(difference=rows[value] - rows["reference"], ratio=rows[value] / rows["reference"])


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with two columns more, in words: `network`, such as "LeNet-300-100 on MNIST", and `method`, such as
    "IMP, reset to init".
    """
    known = entries(frame)
    network = {run: entry.subject for run, entry in known.items()}
    method = {run: method_words(entry) for run, entry in known.items()}
    return frame.assign(network=frame["run"].map(network), method=frame["run"].map(method))


def distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the studies that differ in what was trained; of those that do not, the one with the most measured.

    Blocks of a sweep overlap: they may hold the same study with different probes.
    """
    each = frame.groupby("run", sort=False)
    trained = each["weights_digest"].agg(tuple)
    order = each["weights_digest"].agg(lambda column: frame.loc[column.index].notna().sum().sum())
    kept = trained[order.sort_values(ascending=False, kind="stable").index].drop_duplicates().index
    return frame[frame["run"].isin(kept)]


def studies(frame: pd.DataFrame) -> pd.DataFrame:
    """What a table is made of, a row a network and method (its `label`, where there is one): seeds, studies, rounds;
    and of the different trainings: how many, their steps (all together), and their hours.
    """
    rows = named(frame)
    by = ["network", "label" if "label" in rows else "method"]
    table = []
    for (network, method), group in rows.groupby(by, sort=False):
        trained = group.drop_duplicates("weights_digest")
        entry = {"network": network, "method": method, "seeds": ", ".join(map(str, sorted(group["seed"].unique())))}
        entry |= {"studies": group["run"].nunique(), "rounds": group["round"].max(), "trainings": len(trained)}
        table.append(entry | {"steps": trained["steps"].sum(), "hours": trained["seconds"].sum() / 3600})
    return pd.DataFrame(table)


# -- published numbers -------------------------------------------------------------------------------------------------


def relative(
    published: Iterable[Mapping[str, Any]], frame: pd.DataFrame, value: str = "test_accuracy"
) -> list[dict[str, Any]]:
    """Published points of another network than that of these rows, moved so that their dense one lies at ours.

    published: points {"x": density, "y": value, "label", ...}, as the functions of lottery.analysis.plots take them.
    Raises LotteryError where none is of a dense network, x = 1, or several are of different values.
    """
    points = [dict(point) for point in published]
    theirs = {point["y"] for point in points if point["x"] == 1}
    if len(theirs) != 1:
        raise LotteryError(f"published points: {len(theirs)} values of a dense network (x = 1), expected one")
    moved = dense_level(frame, value) - theirs.pop()
    return [
        point | {"y": point["y"] + moved, "label": f"{point['label']}, relative to dense"}
        for point in points
        if point["x"] != 1
    ]


def dense_level(frame: pd.DataFrame, value: str = "test_accuracy") -> float:
    """The mean of the dense networks: each seed's once, however many studies share it."""
    rows = frame[frame["control"].isna() & (frame["round"] == 0)]
    return float(rows.groupby("seed")[value].mean().mean())


def beside(
    published: Iterable[Mapping[str, Any]],
    frame: pd.DataFrame,
    series: str = "label",
    *,
    value: str = "test_accuracy",
    of_dense: bool = False,
) -> pd.DataFrame:
    """Published points (see `relative`) beside the rows of the same `series`, where there is one, and nearest density.

    of_dense: both less their own dense network's. A row a point: series, density (published), published, density here,
    here (mean over studies), lowest, highest, n; all in per cent, or points. Empty where nothing was measured near it.
    """
    points = [dict(point) for point in published]
    level = next((point["y"] for point in points if point["x"] == 1), math.nan) if of_dense else 0.0
    rows = within(frame, value) if of_dense and len(frame) else frame
    measured = "difference" if of_dense and len(frame) else value
    table = []
    for point in points:
        here = near(_of_series(rows, series, point.get("series")), point["x"]).drop_duplicates("weights_digest")
        each = 100 * here.groupby("run")[measured].mean()
        entry = {"series": point.get("series") or ("dense" if point["x"] == 1 else "ticket")}
        entry |= {"density": 100 * point["x"], "published": 100 * (point["y"] - level)}
        entry |= {"density here": 100 * here["density"].mean(), "here": each.mean()}
        table.append(entry | {"lowest": each.min(), "highest": each.max(), "n": len(each)})
    found = pd.DataFrame(table)
    return found[found["density"] < 100].reset_index(drop=True) if of_dense else found


def _of_series(rows: pd.DataFrame, column: str, name: Any) -> pd.DataFrame:
    """The rows of a control by this name, or the tickets whose `column` says so; without a name, all tickets."""
    ticket = rows["control"].isna()
    if name is None:
        return rows[ticket]
    return rows[(rows["control"] == name) | (ticket & (rows[column] == name) if column in rows else False)]
