"""Which rows of a table are one experiment, and what it is called in a legend. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lottery.analysis.comparison import Entry
from lottery.analysis.curves import FREE
from lottery.analysis.statistics import check_groups
from lottery.analysis.style import ALLOCATIONS, CRITERIA, SEARCHES
from lottery.errors import ConfigError, LotteryError, nearest

By = str | Sequence[str] | None

# What may differ between studies that are points of one curve: it is what the axis shows.
DENSITIES = ("config.method.density", "config.method.rounds")
WORDED = (
    "config.model.",
    "config.data.",
    "config.method.",
    "config.criterion.",
    "config.rewind.",
)  # has words in titles
SILENT = ("method", "model", "data", "train")  # groups that go without saying
SHOWN = 4  # architectures or data sets that a message lists

PROBES = {  # what begins so is measured where this is asked for
    "probe/lmc": "probes=[light,connectivity]",
    "probe/angle_order": "probes=[light,copies]",
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

    def where(self, chosen: pd.Series) -> Experiment:
        """Of these rows only, by a mask over the whole table."""
        return replace(self, rows=self.rows[chosen.reindex(self.rows.index, fill_value=False)])


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
    words = [_values(key) for key, _ in groups] if asked else _told_apart([rows for _, rows in groups], columns)
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
    if column.startswith("config."):
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

    studies = frame.drop_duplicates("run")
    free = tuple(f"config.{key}" for key in (*FREE, *INFRASTRUCTURE))
    options = [
        name
        for name in map(str, studies)
        if name.startswith("config.") and name not in axis and not _at_or_below(name, free)
    ]
    differ = [name for name in ("label", *options) if name in studies and studies[name].astype(str).nunique() > 1]
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
    same = [
        name for name in ("seed", "round", "control", "copy", "mask_digest", "weights_digest", *axis) if name in rows
    ]
    if rows["run"].nunique() == rows["seed"].nunique() or not {"mask_digest", "weights_digest"} <= set(same):
        return rows
    fullness = rows.notna().sum(axis=1).groupby(rows["run"]).sum()
    order = rows["run"].map(fullness).sort_values(ascending=False, kind="stable").index
    return rows.loc[order].drop_duplicates(same).sort_index()


def _check_seeds(rows: pd.DataFrame, axis: Sequence[str]) -> None:
    """One experiment, each of its seeds once at each place of the axis."""
    free = "config.method.rounds"  # a longer study has the rounds of a shorter one
    at = [name for name in axis if name in rows and name != free]
    studies = rows.drop_duplicates("run").drop(columns=free, errors="ignore")
    try:
        check_groups(studies, at or ["name" if "name" in rows else "control"])
    except LotteryError as error:  # figures have no `mixed`
        words = str(error).removesuffix(", or ask for mixed=True").removesuffix(" or ask for mixed=True")
        raise LotteryError(words) from error


# -- names ------------------------------------------------------------------------------------------------------------


def config_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a row of the table has in its columns, nested as in its file."""
    config: dict[str, Any] = {}
    for name, value in row.items():
        if not str(name).startswith("config.") or _none(value):
            continue
        *parents, last = str(name).split(".")[1:]
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return config


def _none(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def entries(frame: pd.DataFrame) -> dict[str, Entry]:
    """Each study, for its words; none where the table does not say what the model is."""
    if not any(str(name).startswith("config.model.") for name in frame):
        return {}
    shown = [name for name in frame if str(name).startswith(WORDED)]
    studies = frame.drop_duplicates("run")[["run", *shown]].to_dict("records")
    return {str(row["run"]): Entry(Path(str(row["run"])), config_of(row), {}) for row in studies}


def subjects(frame: pd.DataFrame) -> list[str]:
    """The networks and data sets, such as "LeNet-300-100 on MNIST"."""
    return list(dict.fromkeys(entry.subject for entry in entries(frame).values()))


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


def method_words(entry: Entry) -> str:
    """The method in words: "IMP, reset to init", "SNIP at init", "layer tickets"."""
    group = entry.group
    kind = str(entry.config.get("method", {}).get("_target_", "")).rpartition(".")[2]
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", " ", group).lower() if group == kind and kind not in SEARCHES else group


def _told_apart(groups: Sequence[pd.DataFrame], columns: Sequence[str]) -> list[str]:
    """Label, else method, where these differ; then what sets those apart that are still alike."""
    options = [name for name in columns if name != "label"]
    if "label" in columns:
        words = [str(rows["label"].iloc[0]) for rows in groups]
    else:
        known = [entries(rows.iloc[:1]) for rows in groups]
        words = [method_words(next(iter(found.values()))) if found else "" for found in known]
    words = [""] * len(words) if len(set(words)) == 1 else words
    shared = Counter(words)
    for name in options if max(shared.values()) > 1 else ():
        values = [rows[name].iloc[0] for rows in groups]
        for alike in [word for word, count in shared.items() if count > 1]:
            places = [place for place, word in enumerate(words) if word == alike]
            if len({str(values[place]) for place in places}) > 1:
                for place in places:
                    words[place] = ", ".join(filter(None, [words[place], _option(name, values[place])]))
        shared = Counter(words)
    return [word or "others" for word in words]


def _option(name: str, value: Any) -> str:
    """What an option is set to: "SNIP" for what is called, "initial two-level" for other options."""
    if _none(value):
        return ""
    if name == "step_rewind":
        return f"rewound to step {value:,}"
    *parents, key = name.removeprefix("config.").split(".")
    if key == "_target_":
        return value_words(value)
    if value is False:  # the other one says what it has
        return ""
    spoken = " ".join([*(parent for parent in parents if parent not in SILENT), key]).replace("_", " ")
    return spoken if value is True else f"{spoken} {value_words(value)}"


def value_words(value: Any) -> str:
    """A value of the configuration in a legend."""
    if isinstance(value, tuple):
        return "-".join(map(value_words, value))
    if _none(value):
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    name = str(value).rpartition(".")[2] if str(value).startswith("lottery.") else str(value)
    return next((table[name] for table in (CRITERIA, ALLOCATIONS, SEARCHES) if name in table), name.replace("_", " "))


def _values(key: tuple[Any, ...]) -> str:
    known = [value_words(value) for value in key if not _none(value)]
    return ", ".join(known) or "none"
