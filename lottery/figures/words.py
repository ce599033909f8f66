"""Names of experiments, options and columns in headings and legends. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lottery.figures.style import ALLOCATIONS, CRITERIA, DATA, group, title
from lottery.methods.shows import shows

IN_TITLES = tuple(f"config.{name}." for name in ("model", "data", "method", "criterion", "rewind"))
COLUMNS = {  # column: words for its axis, and the factor of its values
    "test_accuracy": ("test accuracy (%)", 100.0),
    "val_accuracy": ("validation accuracy (%)", 100.0),
    "train_accuracy": ("training accuracy (%)", 100.0),
    "early_stop_test_accuracy": ("test accuracy at early stop (%)", 100.0),
    "early_stop_step": ("early-stop step", 1.0),
    "val_loss": ("validation loss", 1.0),
    "train_loss": ("training loss", 1.0),
    "steps": ("training steps", 1.0),
    "probe/ece": ("ECE (%)", 100.0),
    "probe/nll": ("NLL (nats)", 1.0),
    "probe/brier": ("Brier score", 1.0),
    "probe/accuracy_fgsm": ("FGSM accuracy (%)", 100.0),
    "probe/accuracy_corrupted": ("accuracy on corrupted images (%)", 100.0),
    "probe/lmc_error_test": ("barrier in test error (points)", 100.0),
    "probe/lmc_error_train": ("barrier in train error (points)", 100.0),
    "probe/lmc_error_validation": ("barrier in validation error (points)", 100.0),
    "probe/l2_order": ("another data order: L2", 1.0),
    "probe/angle_order": ("another data order: angle (°)", 1.0),
    "probe/l2_pruning": ("pruning: L2", 1.0),
    "probe/angle_pruning": ("pruning: angle (°)", 1.0),
    "probe/explored": ("weights ever kept (%)", 100.0),
    "probe/moves": ("moves of the mask", 1.0),
    "probe/train_cost": ("multiply-adds of training / dense", 1.0),
    "probe/cost_step_speedup": ("speed-up of a training step", 1.0),
}
SILENT = ("method", "model", "data", "train")  # groups that are left out of an option's words


def words_and_unit(column: str) -> tuple[str, float]:
    """Return the words for the axis of a column, and the factor by which its values are multiplied."""
    if column.startswith("probe/ood_auc_"):
        other = column.removeprefix("probe/ood_auc_")
        return f"OOD ROC-AUC, {DATA.get(other, other)} (%)", 100.0
    words = column.removeprefix("probe/").replace("_", " ")
    return COLUMNS.get(column, (f"{words} (%)", 100.0) if column.startswith("probe/accuracy_") else (words, 1.0))


def config_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the nested configuration from the `config.` columns of a row."""
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


def configs(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the options that titles use: study -> nested options; empty where the table does not describe models."""
    if not any(str(name).startswith("config.model.") for name in frame):
        return {}
    shown = [name for name in frame if str(name).startswith(IN_TITLES)]
    studies = frame.drop_duplicates("run")
    return dict(zip(studies["run"].map(str), map(config_of, studies[shown].to_dict("records")), strict=True))


def subject(config: dict[str, Any]) -> str:
    """Return network and data set, such as "LeNet-300-100 on MNIST"."""
    return title(config).partition(", ")[0]


def subjects(frame: pd.DataFrame) -> list[str]:
    """Return the `subject` of every study, each once."""
    return list(dict.fromkeys(map(subject, configs(frame).values())))


def method_words(config: dict[str, Any]) -> str:
    """Name the method in words: "IMP, reset to init", "SNIP at init", "layer tickets"."""
    if shows(str(config.get("method", {}).get("_target_", ""))).title:
        return group(config)
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", " ", group(config)).lower()  # the name of a class


def told_apart(groups: Sequence[pd.DataFrame], columns: Sequence[str]) -> list[str]:
    """Name each group of rows by label or method; add options of `columns` in which groups of equal name differ."""
    if "label" in columns:
        words = [str(rows["label"].iloc[0]) for rows in groups]
    else:
        words = [", ".join(map(method_words, configs(rows.iloc[:1]).values())) for rows in groups]
    words = [""] * len(words) if len(set(words)) == 1 else words
    for name in columns:
        values = [rows[name].iloc[0] for rows in groups]
        for alike in [word for word, count in Counter(words).items() if count > 1 and name != "label"]:
            places = [place for place, word in enumerate(words) if word == alike]
            if len({str(values[place]) for place in places}) > 1:
                for place in places:
                    words[place] = ", ".join(filter(None, [words[place], _option(name, values[place])]))
    return [word or "others" for word in words]


def _option(name: str, value: Any) -> str:
    """Name an option in a legend: "SNIP" for a criterion, "rate 0.5" for other options, "" for one that is off."""
    if missing_value(value) or value is False:
        return ""
    if name == "step_rewind":
        return f"rewound to step {value:,}"
    *parents, key = name.removeprefix("config.").split(".")
    if key == "_target_":
        return value_words(value)
    spoken = " ".join([*(parent for parent in parents if parent not in SILENT), key]).replace("_", " ")
    return spoken if value is True else f"{spoken} {value_words(value)}"


def value_words(value: Any) -> str:
    """Return a value of the configuration in words."""
    if isinstance(value, tuple):
        return "-".join(map(value_words, value))
    if missing_value(value):
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    name = str(value).rpartition(".")[2] if str(value).startswith("lottery.") else str(value)
    return shows(str(value)).name or CRITERIA.get(name) or ALLOCATIONS.get(name) or name.replace("_", " ")


def values_words(key: tuple[Any, ...]) -> str:
    """Return several values in words, joined by commas; missing ones are left out."""
    return ", ".join(value_words(value) for value in key if not missing_value(value)) or "none"
