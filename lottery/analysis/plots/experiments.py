"""Which rows of a table are one experiment, and what it is called in a legend. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lottery.analysis.curves import FREE
from lottery.analysis.plots.words import subjects, told_apart, values_words
from lottery.analysis.statistics import check_groups
from lottery.errors import ConfigError, LotteryError, nearest

By = str | Sequence[str] | None

# What may differ between studies that are points of one curve: it is what the axis shows.
ROUNDS = "config.method.rounds"  # a longer study has the rounds of a shorter one
DENSITIES = ("config.method.density", ROUNDS)
WORDED = (
    "config.model.",
    "config.data.",
    "config.method.",
    "config.criterion.",
    "config.rewind.",
)  # has words in titles
SHOWN = 4  # architectures or data sets that a message lists

PROBES = {  # what begins so is measured where this is asked for
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
    "search_": "a method that searches for masks, such as +exp=bip",
}


@dataclass(frozen=True)
class Experiment:
    """The rows of studies that differ in their seeds and in what the axis shows; `words` are empty for a lone one.

    `dense`: the rows of their dense networks, which `rows` lack where they are of one rewind point among several.
    """

    words: str
    rows: pd.DataFrame
    dense: pd.DataFrame


def check_table(frame: pd.DataFrame, columns: Sequence[str] = ()) -> None:
    """Raise ConfigError unless it is a table as `load_runs` gives it; LotteryError where it has no row, or where of one
    of `columns` nothing was measured: it says what would.
    """
    for name in ("run", "seed", "round", "control"):
        if name not in frame:
            raise ConfigError(f"the table has no column {name!r}, expected one of lottery.analysis.runs.load_runs")
    if frame.empty:
        raise LotteryError("the table has no row: nothing to draw")
    for name in columns:
        if name not in frame or not frame[name].notna().any():
            raise LotteryError(missing(name))


def missing(column: str) -> str:
    """The line that says that something was not measured, and what measures it."""
    wanted = next((words for start, words in PROBES.items() if column.startswith(start)), None)
    return f"{column}: not measured in these runs" + (f"; it needs {wanted}" if wanted else "")


def experiments(
    frame: pd.DataFrame, by: By = None, axis: Sequence[str] = DENSITIES, architectures: bool = False
) -> list[Experiment]:
    """The rows in groups that may be averaged over seeds, in the order of the table, or of the numbers in `by`.

    by: the columns (those of the configuration also without `config.`) whose values make a group; by default whatever
        the studies differ in, besides the columns in `axis`.
    architectures: whether several may be drawn together.

    Raises LotteryError for several architectures or data sets, unless `by` tells them apart, and for a group of `by`
    that mixes experiments or has the same seeds twice.
    """
    asked = _resolved(frame, by)
    if not asked:
        _check_subjects(frame, architectures)
    columns = asked or differing(frame, axis)
    groups = _groups(frame, columns)
    for _, rows in groups if asked else ():
        _check_subjects(rows, architectures)
    groups = [(key, _each_once(rows, axis)) for key, rows in groups]
    for _, rows in groups:
        _check_seeds(rows, axis)
    dense = frame[(frame["round"] == 0) & frame["control"].isna()]
    beginning = [dense[dense["run"].isin(rows["run"])] for _, rows in groups]
    if len(groups) == 1:
        return [Experiment("", groups[0][1], beginning[0])]
    words = [values_words(key) for key, _ in groups] if asked else told_apart([rows for _, rows in groups], columns)
    return [Experiment(word, rows, first) for word, (_, rows), first in zip(words, groups, beginning, strict=True)]


def _groups(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The values of the columns, and their rows; in the order of the numbers of a column that has only these.

    Of a column that differs within a study, such as the rewind point, the dense network has no value of its own: it is
    left out.
    """
    if not columns:
        return [((), frame)]
    if any(_varies_within(frame, name) for name in columns):
        frame = frame[frame["round"] > 0]
    groups = list(frame.groupby(list(columns), dropna=False, sort=False))
    ranks = [_ranks([key[place] for key, _ in groups]) for place in range(len(columns))]
    order = sorted(range(len(groups)), key=lambda number: tuple(rank[number] for rank in ranks))
    return [groups[number] for number in order]


def _ranks(values: Sequence[Any]) -> list[float]:
    """In which order they come: of numbers theirs, of others that in which they are first met."""
    numbers = [_leading_number(value) for value in values]
    if None not in numbers:
        return numbers  # type: ignore[return-value]
    met = list(dict.fromkeys(map(str, values)))
    return [met.index(str(value)) for value in values]


def _leading_number(value: Any) -> float | None:
    """0.1 of 0.1, 500 of "500it", 300 of (300, 100); none of names."""
    if isinstance(value, tuple):
        return _leading_number(value[0]) if value else None
    found = re.match(r"\d+(\.\d+)?", str(value))
    return float(found[0]) if found else None


def _varies_within(frame: pd.DataFrame, column: str) -> bool:
    """Whether it is a column of a row, not of a study."""
    if column.startswith("config.") or column in ("label", "block"):  # those of a paper, of which a study may have two
        return False
    return bool((frame.astype({column: str}).groupby("run")[column].nunique() > 1).any())


def _resolved(frame: pd.DataFrame, by: By) -> list[str]:
    found = []
    for name in [by] if isinstance(by, str) else by or ():
        column = next((each for each in (name, f"config.{name}") if each in frame), None)
        if column is None:
            raise ConfigError(f"by: the table has no column {name!r}{nearest(name, map(str, frame.columns))}")
        found.append(column)
    return found


def differing(frame: pd.DataFrame, axis: Sequence[str] = ()) -> list[str]:
    """The columns that set the studies apart as experiments: of the configuration, and a paper's `label`."""
    from lottery.config import INFRASTRUCTURE  # Hydra comes with it

    studies = frame.drop_duplicates([name for name in ("run", "label") if name in frame])
    free = tuple(f"config.{key}" for key in (*FREE, *INFRASTRUCTURE))
    options = [
        name
        for name in map(str, studies)
        if name.startswith("config.") and name not in axis and not _at_or_below(name, free)
    ]
    differ = [
        name
        for name in ("label", *options)
        if name in studies and name not in axis and studies[name].astype(str).nunique() > 1
    ]
    differ.sort(key=lambda name: (name != "label", not name.endswith("._target_")))  # what says most about it
    points = (
        "step_rewind" in frame
        and "step_rewind" not in axis
        and _varies_within(frame[frame["round"] > 0], "step_rewind")
    )
    return [*differ, *(["step_rewind"] if points else [])]


def _at_or_below(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def _each_once(rows: pd.DataFrame, axis: Sequence[str]) -> pd.DataFrame:
    """Without the trainings that a fuller study of the group has too, as where one was run again with more probes."""
    names = ("seed", "round", "control", "copy", "mask_digest", "weights_digest", *axis)
    same = [name for name in names if name in rows and name != ROUNDS]
    if rows["run"].nunique() == rows["seed"].nunique() or not {"mask_digest", "weights_digest"} <= set(same):
        return rows
    fullness = rows.notna().sum(axis=1).groupby(rows["run"]).sum()
    order = rows["run"].map(fullness).sort_values(ascending=False, kind="stable").index
    return rows.loc[order].drop_duplicates(same).sort_index()


def _check_seeds(rows: pd.DataFrame, axis: Sequence[str]) -> None:
    """One experiment, each of its seeds once at each place of the axis."""
    at = [name for name in axis if name in rows and name != ROUNDS]
    studies = rows.drop_duplicates("run").drop(columns=ROUNDS, errors="ignore")
    try:
        check_groups(studies, at or ["name" if "name" in rows else "control"])
    except LotteryError as error:  # figures have no `mixed`
        words = str(error).removesuffix(", or ask for mixed=True").removesuffix(" or ask for mixed=True")
        raise LotteryError(words) from error


def _check_subjects(frame: pd.DataFrame, architectures: bool) -> None:
    """One architecture (unless several are shown) on one data set."""
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
