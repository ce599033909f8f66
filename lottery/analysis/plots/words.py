"""What experiments are called in headings and legends. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lottery.analysis.comparison import Entry
from lottery.analysis.style import ALLOCATIONS, CRITERIA, SEARCHES

WORDED = (
    "config.model.",
    "config.data.",
    "config.method.",
    "config.criterion.",
    "config.rewind.",
)  # has words in titles
SILENT = ("method", "model", "data", "train")  # groups that go without saying


def config_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a row of the table has in its columns, nested as in its file."""
    config: dict[str, Any] = {}
    for name, value in row.items():
        if not str(name).startswith("config.") or missing_value(value):
            continue
        *parents, last = str(name).split(".")[1:]
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        whole = isinstance(value, float) and value.is_integer()  # a whole number in a column with gaps
        node[last] = int(value) if whole else value
    return config


def missing_value(value: Any) -> bool:
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


def method_words(entry: Entry) -> str:
    """The method in words: "IMP, reset to init", "SNIP at init", "layer tickets"."""
    group = entry.group
    kind = str(entry.config.get("method", {}).get("_target_", "")).rpartition(".")[2]
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", " ", group).lower() if group == kind and kind not in SEARCHES else group


def told_apart(groups: Sequence[pd.DataFrame], columns: Sequence[str]) -> list[str]:
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
    if missing_value(value):
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
    if missing_value(value):
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    name = str(value).rpartition(".")[2] if str(value).startswith("lottery.") else str(value)
    return next((table[name] for table in (CRITERIA, ALLOCATIONS, SEARCHES) if name in table), name.replace("_", " "))


def values_words(key: tuple[Any, ...]) -> str:
    known = [value_words(value) for value in key if not missing_value(value)]
    return ", ".join(known) or "none"
