"""Statistics over seeds: summaries, differences from the dense network, matching and winning tickets. Torch-free.

A study (a run folder) counts once: its rows in a group, such as copies of a control, are averaged first, since they
share seeds and are not independent. `n` counts studies, `rows` the rows behind them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lottery.analysis.experiment import fixed
from lottery.analysis.intervals import CONFIDENCE, NAN, bootstrap_interval, holm, p_above, t_interval
from lottery.analysis.verdict import ROUNDING
from lottery.errors import ConfigError, LotteryError, nearest

BY = ("round", "control")


def summary(
    frame: pd.DataFrame,
    by: str | Sequence[str] = BY,
    value: str = "test_accuracy",
    *,
    confidence: float = CONFIDENCE,
    method: str = "bca",
    seed: int = 0,
    mixed: bool = False,
) -> pd.DataFrame:
    """Summarize each group in a row: `by`, n, rows, mean, median, min, max, t_low, t_high, boot_low, boot_high.

    Statistics are over the means of n studies. Groups keep the order of the table; one without any value has n = 0.
    Raises LotteryError where a group mixes experiments or has the same seeds twice (see `check_groups`), unless
    `mixed`; ConfigError for a missing column.
    """
    by = _columns(frame, by, value)
    if not mixed:
        check_groups(frame, by)
    rows = []
    for key, group in _groups(frame, by):
        values = _per_study(group, value)
        counts = {"n": len(values), "rows": int(group[value].notna().sum())}
        spread = {name: getattr(np, name)(values) if len(values) else NAN for name in ("mean", "median", "min", "max")}
        student = t_interval(values, confidence)
        boot = bootstrap_interval(values, confidence, method=method, seed=seed)
        ends = {"t_low": student.low, "t_high": student.high, "boot_low": boot.low, "boot_high": boot.high}
        rows.append(key | counts | spread | ends)
    return pd.DataFrame(rows)


def spread(values: pd.Series, form: str = "{:.2f}") -> str:
    """Format mean, lowest and highest: "98.44 (98.36 … 98.50)"."""
    return f"{form.format(values.mean())} ({form.format(values.min())} … {form.format(values.max())})"


def paired(frame: pd.DataFrame, value: str = "test_accuracy", against: str = "dense") -> pd.DataFrame:
    """Add to each row its study's `reference`, and its `difference`: its value minus the reference.

    against: "dense", the dense network (round 0), for every other row; or a control, such as "reinit", the mean of its
    copies in the same round, for the tickets. NaN where a study lacks the reference. Raises ConfigError where all do.
    """
    _columns(frame, ["run", "round", "control"], value)
    ticket = frame["control"].isna()
    if against == "dense":
        keys, theirs, ours = ["run"], ticket & (frame["round"] == 0), ~ticket | (frame["round"] > 0)
    else:
        keys, theirs, ours = ["run", "round"], frame["control"] == against, ticket
    if not theirs.any():
        known = ["dense", *frame["control"].dropna().unique()]
        raise ConfigError.of("against", against, f"one that the rows have, of {', '.join(map(str, known))}")
    reference = frame[theirs].groupby(keys)[value].mean().rename("reference")
    rows = frame[ours].join(reference, on=keys)
    return rows.assign(difference=rows[value] - rows["reference"])


def matching(
    frame: pd.DataFrame,
    margin: float = 0.0,
    by: str | Sequence[str] = BY,
    *,
    value: str = "test_accuracy",
    confidence: float = CONFIDENCE,
    mixed: bool = False,
) -> pd.DataFrame:
    """Tell which tickets and controls match their dense networks.

    A group is `matching` where its mean difference from the dense networks of its studies is at least -`margin` (a
    fraction: 0.005 is half a point of accuracy). With few seeds that is no proof. A group is `shown` where a one-sided
    t test of the differences rejects "lower by the margin or more" at 1 - `confidence`, after Holm's correction over
    the groups that differ only in round or density. With a margin of 0, `shown` would mean better than dense.

    A row a group: `by`, density, density_weights (means), n, rows, difference (mean), t_low, t_high (of this group
    alone, uncorrected), margin, p, p_holm, matching, shown. `matching` is missing where n = 0, `shown` where n < 2.
    Raises as `summary` does, and ConfigError for a negative margin.
    """
    if not margin >= 0:
        raise ConfigError.of("margin", margin, "0 or more, the accuracy that may be lost, as a fraction")
    by = _columns(frame, by, value)
    rows = paired(frame, value)
    if not mixed:
        check_groups(rows, by)
    table = pd.DataFrame([_matched(key, group, margin, confidence) for key, group in _groups(rows, by)])
    table["p_holm"] = _corrected(table, by)
    table["matching"] = (table["difference"] >= -margin - ROUNDING).astype("boolean").where(table["n"] > 0)
    table["shown"] = (table["p_holm"] <= 1 - confidence).astype("boolean").where(table["n"] > 1)
    return table


def _corrected(table: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Return Holm's p-values within families: groups that differ only in round or density, as on a control's curve."""
    family = [name for name in by if name != "round" and not name.rpartition(".")[2].startswith("density")]
    if not family:
        return pd.Series(holm(table["p"]), index=table.index)
    return table.groupby(family, dropna=False)["p"].transform(holm)


def _matched(key: dict[str, Any], group: pd.DataFrame, margin: float, confidence: float) -> dict[str, Any]:
    differences = _per_study(group, "difference")
    low, high = t_interval(differences, confidence)
    return key | {
        **{name: group[name].mean() for name in ("density", "density_weights") if name in group and name not in key},
        "n": len(differences),
        "rows": int(group["difference"].notna().sum()),
        "difference": float(np.mean(differences)) if len(differences) else NAN,
        "t_low": low,
        "t_high": high,
        "margin": margin,
        "p": p_above(differences, -margin),
    }


def winning(
    frame: pd.DataFrame,
    margin: float = 0.0,
    by: str | Sequence[str] = BY,
    *,
    value: str = "early_stop_test_accuracy",
    confidence: float = CONFIDENCE,
    mixed: bool = False,
) -> pd.DataFrame:
    """Tell which groups win by the definition of Frankle & Carbin 2019 ("The Lottery Ticket Hypothesis", section 1).

    A winning ticket is `matching` in `value`, its accuracy at the step of the lowest validation loss. Its density is
    below 1, and this step, `early_stop_step`, is in the mean no later than the dense network's. A control that wins
    satisfies these conditions, but is no ticket.

    The table of `matching`, and step_n, step_difference (mean, in steps), step_low, step_high (t interval), winning.
    `winning` is missing where the accuracy or the step was not measured, as without a validation split.
    """
    table = matching(frame, margin, by, value=value, confidence=confidence, mixed=mixed)
    rows = paired(frame, "early_stop_step")
    steps = [_per_study(group, "difference") for _, group in _groups(rows, _columns(frame, by, "early_stop_step"))]
    table["step_n"] = [len(each) for each in steps]
    table["step_difference"] = [float(each.mean()) if len(each) else NAN for each in steps]
    table[["step_low", "step_high"]] = [t_interval(each, confidence) for each in steps]
    wins = table["matching"] & (table["density"] < 1) & (table["step_difference"] <= 0)
    table["winning"] = wins.where((table["n"] > 0) & (table["step_n"] > 0))
    return table


def check_groups(frame: pd.DataFrame, by: Sequence[str]) -> None:
    """Raise LotteryError unless every group is one experiment whose studies have different seeds.

    A mean over different experiments, or over one study twice, looks like any other mean. Experiments differ in some
    option of the configuration besides seeds, controls, probes, and options that change no number.
    """
    studies = frame.drop_duplicates("run").set_index("run")
    studies = studies.astype(object).where(studies.notna(), None).map(str)  # so that missing values are equal
    columns = {name.removeprefix("config."): name for name in map(str, studies) if name.startswith("config.")}
    options = list(fixed(columns).values())
    seeds = [name for name in map(str, studies) if name == "seed" or name.startswith("config.seeds.")]
    for key, group in _groups(frame, by):
        here = studies.loc[group["run"].unique()]
        where = ", ".join(f"{name} {'none' if pd.isna(each) else each}" for name, each in key.items())
        differ = here[options].ne(here[options].iloc[0])
        if differ.to_numpy().any():
            first, run = here.index[0], differ.any(axis=1).idxmax()
            name = differ.loc[run].idxmax()
            raise LotteryError(
                f"{where}: {first} and {run} differ in {name} ({here.at[first, name]}, {here.at[run, name]}): "
                f"add it to `by`, or leave out one, or ask for mixed=True"
            )
        for _, alike in here.groupby(seeds, sort=False) if seeds else ():
            if len(alike) > 1:
                raise LotteryError(
                    f"{where}: {alike.index[0]} and {alike.index[1]} have the same seeds: give each seed once, "
                    f"or ask for mixed=True"
                )


def check_columns(frame: pd.DataFrame, names: Iterable[str], who: str = "") -> None:
    """Raise ConfigError, which begins with `who`, for a missing column."""
    for name in names:
        if name not in frame:
            raise ConfigError(f"{who}the table has no column {name!r}{nearest(name, map(str, frame.columns))}")


def _columns(frame: pd.DataFrame, by: str | Sequence[str], value: str) -> list[str]:
    """Return `by` as a list. Raises ConfigError for a missing column, or where `value` holds no numbers."""
    columns = [by] if isinstance(by, str) else list(by)
    check_columns(frame, (*columns, value, "run"))
    if not pd.api.types.is_numeric_dtype(frame[value]):
        raise ConfigError.of("value", value, "a column of numbers")
    return columns


def _groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield the key and the rows of each group; a missing `control`, which marks tickets, is a key too."""
    for key, group in frame.groupby(list(by), dropna=False, sort=False):
        yield dict(zip(by, key, strict=True)), group


def _per_study(group: pd.DataFrame, value: str) -> np.ndarray:
    """Return the mean of each study that has a value."""
    return group.groupby("run", sort=False)[value].mean().dropna().to_numpy(dtype=float)
