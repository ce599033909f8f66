"""Compare a paper's claims and numbers with the results of studies, from a table of rounds. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lottery.analysis.intervals import t_interval
from lottery.analysis.statistics import check_columns, paired
from lottery.analysis.verdict import ROUNDING
from lottery.errors import ConfigError, LotteryError
from lottery.figures.words import configs, method_words, subject

NEAR = 1.25  # largest ratio of a measured density to the published density that it stands for
UNITS = {"": 1.0, "points": 100.0, "%": 100.0, "times": 1.0, "steps": 1.0, "degrees": 1.0}


@dataclass(frozen=True)
class Claim:
    """A paper's claim about a number, and the rows in which this number was measured.

    The claim holds if the mean lies between `least` and `most`, both in the units of the table.
    `published` is the paper's number in `unit`, or words where the paper gives no number.
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
        check_columns(self.rows, [self.value], f"{self.words}: ")


def checked(claims: Iterable[Claim]) -> pd.DataFrame:
    """Check claims; return a row for each.

    Columns: claim, density (%, of the prunable weights), published, here (the mean over seeds), lowest, highest, t_low,
    t_high (95 %), unit, n (seeds), holds_in (the number of seeds in which the claim holds), agrees.
    Rows of one seed are averaged first, since they are not independent. `agrees` is "yes" or "no" for the mean, "open"
    where n = 0. "yes" means that the mean satisfies the claim, not that n seeds prove it: the interval shows that.
    """
    return pd.DataFrame([_checked(claim) for claim in claims])


def _checked(claim: Claim) -> dict[str, Any]:
    rows = claim.rows[claim.rows[claim.value].notna()]
    values = rows.groupby("seed", sort=False)[claim.value].mean().to_numpy(dtype=float)
    some, interval = len(values) > 0, t_interval(values)
    ends = (values.mean(), values.min(), values.max()) if some else (math.nan,) * 3
    names = ("here", "lowest", "highest", "t_low", "t_high")
    return {
        "claim": claim.words,
        "density": 100 * rows["density"].mean() if "density" in rows else math.nan,
        "published": claim.published,
        **{name: UNITS[claim.unit] * float(number) for name, number in zip(names, (*ends, *interval), strict=True)},
        "unit": claim.unit,
        "n": len(values),
        "holds_in": int(np.sum(_holds(claim, values))),
        "agrees": ("yes" if _holds(claim, ends[0]) else "no") if some else "open",
    }


def _holds(claim: Claim, number: Any) -> Any:
    return (number >= claim.least - ROUNDING) & (number <= claim.most + ROUNDING)


# -- the rows ----------------------------------------------------------------------------------------------------------


def tickets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of tickets: pruned, and no control."""
    return frame[frame["control"].isna() & (frame["round"] > 0) & (frame["density"] < 1)]


def near(frame: pd.DataFrame, density: float, column: str = "density") -> pd.DataFrame:
    """Return each study's rows at the density that is nearest, as a ratio, to a published density.

    Studies without a density within a factor of 1.25 are left out.
    column: "density", of the prunable weights, or "density_weights", of all.
    """
    if not 0 < density <= 1:
        raise ConfigError.of("density", density, "above 0 and at most 1")
    far = np.log(frame[column].where(frame[column] > 0) / density).abs()
    nearest_of = far.groupby(frame["run"]).transform("min")
    return frame[(far <= nearest_of + ROUNDING) & (far <= math.log(NEAR))]


def within(frame: pd.DataFrame, value: str = "test_accuracy", against: str = "dense") -> pd.DataFrame:
    """Compare rows with the dense network or a control of their study: `statistics.paired`, and a column `ratio`."""
    rows = paired(frame, value, against)
    return rows.assign(ratio=rows[value] / rows["reference"])


def across(
    ours: pd.DataFrame, theirs: pd.DataFrame, value: str = "test_accuracy", on: str | Sequence[str] = ("seed", "round")
) -> pd.DataFrame:
    """Compare rows of `ours` with the mean of `theirs` of the same seed and round, or of equal columns `on`.

    Adds the columns reference, difference and ratio; they are NaN where `theirs` has no such row. For two rows of one
    study there is `within`. Raises LotteryError where several studies agree in `on`: a mean would hide how they differ.
    """
    on = [on] if isinstance(on, str) else list(on)
    for rows in (ours, theirs):
        check_columns(rows, [*on, value], "across: ")
    for which, each in {"ours": ours, "theirs": theirs}.items():
        studies_of = each.groupby(on)["run"].unique()
        if len(several := studies_of[studies_of.map(len) > 1]):
            place = zip(on, np.atleast_1d(several.index[0]), strict=True)
            where = ", ".join(f"{name} {value}" for name, value in place)
            one, other = several.iloc[0][:2]
            raise LotteryError(
                f"across: {which} at {where}: {one} and {other}, expected one study: add to `on`, or filter"
            )
    reference = theirs.groupby(on)[value].mean().rename("reference")
    rows = ours.drop(columns="reference", errors="ignore").join(reference, on=on)
    return rows.assign(difference=rows[value] - rows["reference"], ratio=rows[value] / rows["reference"])


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `network`, such as "LeNet-300-100 on MNIST", and `method`, such as "IMP, reset to init"."""
    known = configs(frame)
    network = {run: subject(config) for run, config in known.items()}
    method = {run: method_words(config) for run, config in known.items()}
    return frame.assign(network=frame["run"].map(network), method=frame["run"].map(method))


def distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep one of the studies that trained the same networks: the one with the most values.

    Blocks of a sweep overlap: they may hold the same study with different probes.
    """
    each = frame.groupby("run", sort=False)
    trained = each["weights_digest"].agg(tuple)
    order = each["weights_digest"].agg(lambda column: frame.loc[column.index].notna().sum().sum())
    kept = trained[order.sort_values(ascending=False, kind="stable").index].drop_duplicates().index
    return frame[frame["run"].isin(kept)]


def studies(frame: pd.DataFrame) -> pd.DataFrame:
    """Count seeds, studies, rounds, and trainings with their steps and hours, by network and method (or its label)."""
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
    """Shift published points of another network so that their dense point lies at the dense level of these rows.

    published: points {"x": density, "y": value, "label", ...}, as the functions of lottery.figures take them.
    Raises LotteryError unless the points of a dense network, x = 1, have exactly one value.
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
    """Return the mean of the dense networks; each seed counts once, however many studies share its network."""
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
    """Compare published points (see `relative`) with the rows of the same `series` at the nearest density.

    of_dense: subtract from each value that of its own dense network.
    Returns a row a point: series, density (published), published, density here, here (mean over studies), lowest,
    highest, n; in per cent, or points. Cells are empty where nothing was measured near the published density.
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
    """Return the rows of the control `name`, or tickets with this name in `column`; all tickets if `name` is None."""
    ticket = rows["control"].isna()
    if name is None:
        return rows[ticket]
    return rows[(rows["control"] == name) | (ticket & (rows[column] == name) if column in rows else False)]
