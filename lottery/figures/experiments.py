"""Divide the rows of a table into experiments, and name each experiment for the legend. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lottery.analysis.experiment import fixed
from lottery.analysis.statistics import check_groups
from lottery.errors import ConfigError, LotteryError, nearest
from lottery.figures.words import subjects, told_apart, values_words

By = str | Sequence[str] | None

# Options that may differ between studies of one curve, since the axis shows them.
ROUNDS = "config.method.rounds"  # a longer study has the rounds of a shorter one
DENSITIES = ("config.method.density", ROUNDS)
SHOWN = 4  # architectures or data sets that a message lists

PROBES = {  # prefix of a column -> the option that measures it
    "probe/lmc": "probes=[light,connectivity]",
    "probe/angle_order": "probes=[light,copies]",
    "probe/l2_order": "probes=[light,copies]",
    "probe/ood": "probes=[robustness,ood_mnist]",
    "probe/accuracy": "probes=robustness",
    "probe/gradient": "probes=quality",
    "probe/nll": "probes=quality",
    "probe/ece": "probes=quality",
    "probe/brier": "probes=quality",
    "probe/cost_joules": "probes=[light,cost], on a machine that shows its energy",
    "probe/cost": "probes=[light,cost]",
    "early_stop": "a validation split, such as data.validation=5000",
    "val_": "a validation split, such as data.validation=5000",
    "removed_units": "a method that removes layers, such as +exp=layer_tickets",
    "probe/explored": "a method whose mask moves, such as +exp=rigl",
    "search_": "a method that searches for masks, such as +exp=bip",
}


class NothingToDraw(LotteryError):
    """The table lacks the values that the figure shows."""


@dataclass(frozen=True)
class Experiment:
    """Rows of studies that differ only in their seeds, and in the options that the axis of a figure shows.

    words: name for the legend; empty for the only experiment of a figure.
    dense: rows of the dense networks. `rows` lack them where they are of one rewind point among several.
    """

    words: str
    rows: pd.DataFrame
    dense: pd.DataFrame


def check_table(frame: pd.DataFrame, columns: Sequence[str] = ()) -> None:
    """Raise ConfigError unless `load_runs` gave the table, NothingToDraw where it has no row or a column no value."""
    for name in ("run", "seed", "round", "control"):
        if name not in frame:
            raise ConfigError(f"the table has no column {name!r}, expected one of lottery.record.table.load_runs")
    if frame.empty:
        raise NothingToDraw("the table has no row: nothing to draw")
    for name in columns:
        if not measured(frame, [name]):
            raise NothingToDraw(missing(name))


def measured(frame: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """Return the columns that hold a value."""
    return [name for name in columns if name in frame and frame[name].notna().any()]


def missing(column: str) -> str:
    """Return a message that the column was not measured, and which option measures it."""
    wanted = next((words for start, words in PROBES.items() if column.startswith(start)), None)
    return f"{column}: not measured in these runs" + (f"; it needs {wanted}" if wanted else "")


def experiments(
    frame: pd.DataFrame, by: By = None, axis: Sequence[str] = DENSITIES, architectures: bool = False
) -> list[Experiment]:
    """Divide the rows into experiments, whose studies may be averaged over seeds.

    Experiments are ordered by the numbers that their values begin with, else as in the table.
    by: the columns (those of the configuration also without `config.`) whose values separate experiments; by default
        all in which the studies differ, besides seeds and the columns in `axis`.
    architectures: whether several architectures may be drawn together.

    Raises LotteryError for several architectures or data sets, unless `by` tells them apart, and for a group of `by`
    that mixes experiments or has the same seeds twice.
    """
    asked = _resolved(frame, by)
    if not asked:
        _check_subjects(frame, architectures)
    columns = asked or differing(frame, axis)
    dense = frame[(frame["round"] == 0) & frame["control"].isna()]
    keys, found = [], []
    for key, rows in _groups(frame, columns):
        if asked:
            _check_subjects(rows, architectures)
        rows = _each_once(rows, axis)
        _check_seeds(rows, axis)
        keys.append(key)
        found.append(Experiment("", rows, dense[dense["run"].isin(rows["run"])]))
    if len(found) == 1:
        return found
    words = map(values_words, keys) if asked else told_apart([each.rows for each in found], columns)
    return [replace(each, words=word) for each, word in zip(found, words, strict=True)]


def _groups(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Group rows by the values of the columns, ordered by the numbers that the values begin with, else as in the table.

    Where a column differs within a study, as the rewind point does, the dense network is left out: it has no value.
    """
    if not columns:
        return [((), frame)]
    if any(_varies_within(frame, name) for name in columns):
        frame = frame[frame["round"] > 0]
    groups = list(frame.groupby(list(columns), dropna=False, sort=False))
    ranks = [_ranks([key[place] for key, _ in groups]) for place in range(len(columns))]
    order = sorted(range(len(groups)), key=lambda number: [rank[number] for rank in ranks])
    return [groups[number] for number in order]


def _ranks(values: Sequence[Any]) -> Sequence[float]:
    """Return the numbers that the values begin with, or, if one has none, the position at which each first occurs."""
    numbers = [number for value in values if (number := _leading_number(value)) is not None]
    names = list(map(str, values))
    return numbers if len(numbers) == len(names) else list(map(names.index, names))


def _leading_number(value: Any) -> float | None:
    """Return the number that a value begins with: 500 for "500it", 300 for (300, 100), None for a name."""
    while isinstance(value, tuple):
        value = value[0] if value else ""
    found = re.match(r"\d+(\.\d+)?", str(value))
    return float(found[0]) if found else None


def _varies_within(frame: pd.DataFrame, column: str) -> bool:
    """Whether rows of one study differ in this column."""
    if column.startswith("config.") or column in ("label", "block"):  # a study may be in two blocks of a paper
        return False
    return bool((frame.astype({column: str}).groupby("run")[column].nunique() > 1).any())


def _resolved(frame: pd.DataFrame, by: By) -> list[str]:
    """Return the columns that `by` names, with `config.` where needed. Raises ConfigError for an unknown one."""
    names = [by] if isinstance(by, str) else by or ()
    for name in names:
        if name not in frame and f"config.{name}" not in frame:
            raise ConfigError(f"by: the table has no column {name!r}{nearest(name, map(str, frame.columns))}")
    return [name if name in frame else f"config.{name}" for name in names]


def differing(frame: pd.DataFrame, axis: Sequence[str] = ()) -> list[str]:
    """Return the columns in which experiments differ: options, a paper's `label`, the rewind step within studies."""
    studies = frame.drop_duplicates([name for name in ("run", "label") if name in frame])
    leaves = {str(name).removeprefix("config."): None for name in studies if str(name).startswith("config.")}
    options = [f"config.{key}" for key in fixed(leaves)]
    known = [name for name in ("label", *options) if name in studies and name not in axis]
    differ = [name for name in known if studies[name].astype(str).nunique() > 1]
    differ.sort(key=lambda name: (name != "label", not name.endswith("._target_")))  # the most telling first
    points = "step_rewind" not in axis and several_points(frame)
    return [*differ, *(["step_rewind"] if points else [])]


def several_points(frame: pd.DataFrame) -> bool:
    """Whether a study has tickets of more than one rewind point."""
    return "step_rewind" in frame and _varies_within(frame[frame["round"] > 0], "step_rewind")


def _each_once(rows: pd.DataFrame, axis: Sequence[str]) -> pd.DataFrame:
    """Drop trainings that another study of the group has too, such as a study that was run again with more probes."""
    names = ("seed", "round", "control", "copy", "mask_digest", "weights_digest", *axis)
    same = [name for name in names if name in rows and name != ROUNDS]
    if rows["run"].nunique() == rows["seed"].nunique() or not {"mask_digest", "weights_digest"} <= set(same):
        return rows
    fullness = rows.notna().sum(axis=1).groupby(rows["run"]).sum()
    order = rows["run"].map(fullness).sort_values(ascending=False, kind="stable").index
    return rows.loc[order].drop_duplicates(same).sort_index()


def _check_seeds(rows: pd.DataFrame, axis: Sequence[str]) -> None:
    """Raise LotteryError unless the rows are of one experiment that has each seed once at each place of the axis."""
    at = [name for name in axis if name in rows and name != ROUNDS]
    studies = rows.drop_duplicates("run").drop(columns=ROUNDS, errors="ignore")
    try:
        check_groups(studies, at or ["name" if "name" in rows else "control"])
    except LotteryError as error:  # figures have no `mixed`
        words = str(error).removesuffix(", or ask for mixed=True").removesuffix(" or ask for mixed=True")
        raise LotteryError(words) from error


def _check_subjects(frame: pd.DataFrame, architectures: bool) -> None:
    """Raise LotteryError for several data sets, or several architectures unless these may be drawn together."""
    found = list(dict.fromkeys(name.rpartition(" on ")[2] if architectures else name for name in subjects(frame)))
    if len(found) < 2:
        return
    kinds = ("config.data.",) if architectures else ("config.model.", "config.data.")
    name = next((name for name in differing(frame) if name.startswith(kinds)), "config.model._target_")
    named = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    what = "data sets" if architectures else "architectures or data sets"
    raise LotteryError(
        f"{len(found)} {what} in one figure ({named}): draw one, by load_runs(..., filters={{{name!r}: ...}}), or "
        f"each as its own curve, by={name.removeprefix('config.')!r}"
    )
