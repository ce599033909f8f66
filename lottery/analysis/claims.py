"""A paper's claims beside what studies show: each one a row, with n, computed from a table of rounds. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
        if self.value not in self.rows:
            known = map(str, self.rows.columns)
            raise ConfigError(f"{self.words}: the table has no column {self.value!r}{nearest(self.value, known)}")


def checked(claims: Iterable[Claim]) -> pd.DataFrame:
    """A row a claim: claim, density (%, of the prunable weights), published, here (the mean over studies), lowest,
    highest, t_low, t_high (95 %), unit, n (studies), holds_in (how many of them), agrees.

    A study counts once: its rows are averaged. `agrees` is "yes" or "no" of the mean; "open" where it was not measured,
    n = 0. It says that the sign is right, not that n studies prove it: that is what the interval is for.
    """
    return pd.DataFrame([_checked(claim) for claim in claims])


def _checked(claim: Claim) -> dict[str, Any]:
    rows = claim.rows[claim.rows[claim.value].notna()]
    values = rows.groupby("run", sort=False)[claim.value].mean().to_numpy(dtype=float)
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
    """The rows of `ours`, each with its `reference`, the mean of `theirs` of the same seed and round (or what `on` says),
    and its `difference` from that. Rows without one have NaN. For two of one study there is `within`.

    Raises LotteryError where `theirs` are of several studies a seed, whose mean would hide that they differ.
    """
    on = [on] if isinstance(on, str) else list(on)
    if "seed" in on and (several := theirs.groupby("seed")["run"].nunique().loc[lambda n: n > 1]).any():
        raise LotteryError(f"across: seed {several.index[0]} has {several.iloc[0]} studies to compare with, expected 1")
    reference = theirs.groupby(on)[value].mean().rename("reference")
    rows = ours.join(reference, on=on)
    return rows.assign(difference=rows[value] - rows["reference"], ratio=rows[value] / rows["reference"])


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with two columns more, in words: `network`, such as "LeNet-300-100 on MNIST", and `method`, such as "IMP,
    reset to init".
    """
    known = entries(frame)
    network = {run: entry.subject for run, entry in known.items()}
    method = {run: method_words(entry) for run, entry in known.items()}
    return frame.assign(network=frame["run"].map(network), method=frame["run"].map(method))


def studies(frame: pd.DataFrame) -> pd.DataFrame:
    """What a table is made of, a row a study: name, key, network, method, seed, rounds; trainings, their steps, hours."""
    each = named(frame).groupby("run", sort=False)
    columns = {name: each[name].first() for name in ("name", "key", "network", "method", "seed")}
    columns |= {"rounds": each["round"].max(), "trainings": each.size(), "steps": each["steps"].sum()}
    table = pd.DataFrame(columns | {"hours": each["seconds"].sum() / 3600})
    return table.sort_values(["name", "network", "method", "seed"], kind="stable").reset_index(drop=True)
