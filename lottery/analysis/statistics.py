"""Statistics over seeds: summaries, differences from the dense network, matching and winning tickets. Torch-free.

Everywhere a study (a run folder) counts once: several rows of it in one group, such as the copies of a control, are
averaged first, since what shares its seeds is no independent sample. `n` counts studies, `rows` the rows behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lottery.analysis.curves import FREE
from lottery.analysis.intervals import CONFIDENCE, NAN, bootstrap_interval, holm, p_above, t_interval
from lottery.errors import ConfigError, LotteryError, nearest

BY = ("round", "control")
ROUNDING = 1e-9  # differences of accuracies closer to a bound than that are at it


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
    """A row a group: `by`, n, rows, mean, median, min, max, t_low, t_high, boot_low, boot_high.

    All are over the n studies' own means. Groups keep the order of the table; one where nothing was measured has n = 0.
    Raises LotteryError where a group mixes experiments, or has the same seeds twice (see `check_groups`; `mixed` allows
    it), ConfigError for a column that is not there.
    """
    by = _columns(frame, by, value)
    if not mixed:
        check_groups(frame, by)
    rows = []
    for key, group in _groups(frame, by):
        values = _per_study(group, value)
        some = len(values) > 0
        spread = {name: float(getattr(np, name)(values)) if some else NAN for name in ("mean", "median", "min", "max")}
        student = t_interval(values, confidence)
        boot = bootstrap_interval(values, confidence, method=method, seed=seed)
        counts = {"n": len(values), "rows": int(group[value].notna().sum())}
        ends = {"t_low": student.low, "t_high": student.high, "boot_low": boot.low, "boot_high": boot.high}
        rows.append(key | counts | spread | ends)
    return pd.DataFrame(rows)


def spread(values: pd.Series, form: str = "{:.2f}") -> str:
    """Mean, lowest and highest, in words: "98.44 (98.36 … 98.50)"."""
    return f"{form.format(values.mean())} ({form.format(values.min())} … {form.format(values.max())})"


def paired(frame: pd.DataFrame, value: str = "test_accuracy", against: str = "dense") -> pd.DataFrame:
    """The rows, each with its `reference`, the same study's, and its `difference` from that (its value minus it).

    against: "dense", the dense network (round 0), for every row but this one; or a control, such as "reinit", the mean
    of its copies in the same round, for the tickets. NaN where a study does not have it. ConfigError where none has.
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
    """Which tickets and controls match their dense networks, by this rule.

    A group is `matching` where its mean difference from the dense network of the same study is at least -`margin` (a
    fraction of `value`: 0.005 is half a point). With few seeds that is no proof. It is `shown` where a one-sided t test
    of the differences rejects "lower by the margin or more" at 1 - `confidence`, after Holm's correction over the
    densities that were tried: the groups that differ in round or density only. With a margin of 0 that would show more,
    that it is better than dense.

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
    """Holm's p-values; a family is what differs in no column but rounds and densities, such as one control's curve."""
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
    """Which are winning tickets, as Frankle & Carbin 2019 define them ("The Lottery Ticket Hypothesis", section 1).

    `matching`, at the step of the least validation loss, as theirs is: `value` is the accuracy there. Smaller: density
    below 1. And no slower: in the mean over studies that step, `early_stop_step`, comes no later than the dense one's.
    Of a control it says that the same is true of it, not that it is a ticket.

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
    """Raise LotteryError unless the studies of every group are one experiment, each with its own seeds.

    A mean over different experiments, or over one study twice, looks like any other mean. Experiments are told apart by
    all columns of the configuration but the seeds, the controls, the probes, and what can change no number.
    """
    studies = frame.drop_duplicates("run").set_index("run")
    fixed = _known(studies[[name for name in studies if _tells_apart(str(name))]])
    seeds = _known(studies[[name for name in studies if str(name) == "seed" or str(name).startswith("config.seeds.")]])
    experiment, seeded = (pd.Series(map(tuple, part.to_numpy()), index=studies.index) for part in (fixed, seeds))
    for key, group in _groups(frame, by):
        runs = group["run"].unique()
        first, where = runs[0], ", ".join(f"{name} {'none' if pd.isna(each) else each}" for name, each in key.items())
        for run in runs[1:]:
            if experiment[run] != experiment[first]:
                name = next(name for name in fixed if fixed.at[run, name] != fixed.at[first, name])
                raise LotteryError(
                    f"{where}: {first} and {run} differ in {name} ({fixed.at[first, name]}, {fixed.at[run, name]}): "
                    f"add it to `by`, or leave out one, or ask for mixed=True"
                )
        twice = seeded[runs][seeded[runs].duplicated(keep=False)]
        if len(twice):
            raise LotteryError(
                f"{where}: {twice.index[0]} and {next(r for r in twice.index[1:] if twice[r] == twice.iloc[0])} "
                "have the same seeds: give each seed once, or ask for mixed=True"
            )


def _tells_apart(column: str) -> bool:
    """Whether studies that differ in this column are different experiments."""
    from lottery.config import INFRASTRUCTURE  # Hydra comes with it

    key = column.removeprefix("config.")
    free = any(key == name or key.startswith(f"{name}.") for name in (*FREE, *INFRASTRUCTURE))
    return key != column and not free


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """As text, in which everything that is missing is alike."""
    return table.astype(object).where(table.notna(), None).map(str)


def _columns(frame: pd.DataFrame, by: str | Sequence[str], value: str) -> list[str]:
    """`by` as a list. ConfigError where a column that is needed is not there, or `value` holds no numbers."""
    columns = [by] if isinstance(by, str) else list(by)
    for name in (*columns, value, "run"):
        if name not in frame:
            raise ConfigError(f"the table has no column {name!r}{nearest(name, map(str, frame.columns))}")
    if not pd.api.types.is_numeric_dtype(frame[value]):
        raise ConfigError.of("value", value, "a column of numbers")
    return columns


def _groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The columns that make a group, and its rows. The ticket is a group of its own: its `control` is missing."""
    for key, group in frame.groupby(list(by), dropna=False, sort=False):
        yield dict(zip(by, key, strict=True)), group


def _per_study(group: pd.DataFrame, value: str) -> np.ndarray:
    """The mean of each study that has any."""
    return group.groupby("run", sort=False)[value].mean().dropna().to_numpy(dtype=float)
