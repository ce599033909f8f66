"""Read the run folders of a report, and group them into experiments over seeds. Torch-free."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lottery.analysis.experiment import fixed
from lottery.errors import LotteryError
from lottery.figures.style import title
from lottery.figures.words import subject
from lottery.files import Missing
from lottery.record.folders import Paths, find_runs
from lottery.record.rows import Identity, Row, identity
from lottery.record.run import Run

DENSITY = "method.density"  # one-shot methods and searches that differ in it are points of one curve

UNTRAINED = {"early_stop_step": None, "early_stop_test_accuracy": None}

LOG = logging.getLogger("lottery")


class ReportedRun(Run):
    """A run folder of a report: a damaged line of its table is left out, with a warning."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lenient=True)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows in the order of rounds. What was not trained, as a mask alone, has no step at which it was best."""
        rows = [row | UNTRAINED if row.get("steps") == 0 and row["round"] > 0 else row for row in super().rows]
        return sorted(rows, key=lambda row: row["round"])

    @property
    def tickets(self) -> list[Row]:
        """The rows that are not controls."""
        return [row for row in self.rows if row["control"] is None]

    @property
    def seed(self) -> Any:
        return self.leaves.get("seed")

    @property
    def seeds(self) -> str:
        """All seeds as one text, for comparison."""
        return str(sorted((key, value) for key, value in self.leaves.items() if key.split(".")[0] in ("seed", "seeds")))

    @property
    def density(self) -> Any:
        """The density that the method prunes to in one go; None for a method with rounds."""
        return self.leaves.get(DENSITY)

    @cached_property
    def environment(self) -> dict[str, str]:
        """Versions and device of the dense training; empty where the folder does not record them."""
        try:
            return {str(key): str(value) for key, value in self.details(0)["environment"].items()}
        except (Missing, KeyError, AttributeError):
            return {}
        except LotteryError as error:
            LOG.warning("%s; its environment is left out", error)
            return {}


@dataclass(frozen=True, eq=False)
class Group:
    """Studies of one experiment: they differ only in seeds, controls, probes and the density of a one-shot method."""

    studies: tuple[ReportedRun, ...]
    words: str  # a name that no other group has

    @cached_property
    def rows(self) -> list[Row]:
        """Every row, with its `level`: the place of its round (and density, of a one-shot method) from dense to sparse.

        A dense network that several studies share has one row.
        """
        every = [(study, row) for study in self.studies for row in study.rows]
        dense = {study.seeds: study for study in reversed(self.studies)}
        kept = [(study, row) for study, row in every if row["round"] > 0 or dense[study.seeds] is study]
        places = sorted({_place(study, row) for study, row in kept})
        return [row | {"level": places.index(_place(study, row))} for study, row in kept]

    @cached_property
    def numbers(self) -> pd.DataFrame:
        """The finite numbers of every row, by control ("" for the ticket) and level; `removed` counts removed units."""
        rows = pd.DataFrame([row | {"removed": len(row.get("removed_units") or ())} for row in self.rows])
        index = pd.MultiIndex.from_arrays(
            [rows.pop("control").fillna(""), rows.pop("level")], names=["control", "level"]
        )
        numbers = rows.select_dtypes("number").set_axis(index)
        return numbers.where(np.isfinite(numbers)).dropna(axis=1, how="all")

    def summary(self, key: str) -> pd.DataFrame:
        """Return mean, min, max and count of one number over the trainings, for each control and level in order."""
        numbers = self.numbers.reindex(columns=[key])[key]
        return numbers.groupby(level=["control", "level"]).agg(["mean", "min", "max", "count"])

    def name(self, study: ReportedRun) -> str:
        """Return a name that tells this study from the group's others."""
        density = f", density {study.density}" if len({each.density for each in self.studies}) > 1 else ""
        return f"seed {study.seed}{density} ({study.name})"

    @property
    def method(self) -> str:
        """The `_target_` of the method."""
        return str(self.studies[0].leaves.get("method._target_", ""))

    @property
    def subject(self) -> str:
        """Network and data, such as "LeNet-300-100 on MNIST"."""
        return subject(self.studies[0].config)


def _place(study: ReportedRun, row: Row) -> tuple[int, float]:
    """Return the place of a row for sorting: its round, then its density from high to low."""
    return (row["round"], -float(study.density or 0)) if row["round"] > 0 else (0, 0.0)


def read_studies(paths: Paths) -> list[ReportedRun]:
    """Read every run folder at or below `paths`. Raises LotteryError where there is none, or none has a round."""
    studies = [ReportedRun(run) for run in find_runs(paths)]
    if not any(study.rows for study in studies):
        raise LotteryError(f"{studies[0].path}: has not finished a round yet; run it first")
    return studies


def grouped(studies: Iterable[ReportedRun]) -> list[Group]:
    """Group the studies that have rows into experiments.

    Two studies that differ only in controls and probes become one: their rows are joined, so that none counts twice.
    """
    groups: dict[str, dict[str, ReportedRun]] = {}
    joined = 0
    for study in studies:
        if not study.rows:
            continue
        group = groups.setdefault(str(sorted(fixed(study.leaves, DENSITY).items())), {})
        own = f"{study.seeds} {study.density}"
        joined += own in group
        group[own] = _joined(group[own], study) if own in group else study
    if joined:
        words = "1 study has" if joined == 1 else f"{joined} studies have"
        LOG.warning("%s all of another's configuration but controls and probes: the report joins their rows", words)
    gathered = [
        tuple(sorted(group.values(), key=lambda of: (-float(of.density or 0), str(of.seed).zfill(12))))
        for group in groups.values()
    ]
    return [Group(found, words) for found, words in zip(gathered, _words(gathered), strict=True)]


def short_words(groups: Sequence[Group]) -> list[str]:
    """Return the words of each group, without network and data where these are the same for all groups."""
    if len(groups) < 2 or len({group.subject for group in groups}) > 1:
        return [group.words for group in groups]
    return [group.words.removeprefix(f"{group.subject}, ") for group in groups]


def _joined(one: ReportedRun, other: ReportedRun) -> ReportedRun:
    """Return the first study with the other's rows too; rows of both keep the first's values and gain the other's."""
    rows: dict[Identity, Row] = {}
    for row in (*one.rows, *other.rows):
        rows[identity(row)] = row | rows.get(identity(row), {})
    joined = ReportedRun(one.path)
    joined.rows = [rows[place] for place in sorted(rows, key=lambda place: (place[0], place[1] or "", place[2]))]
    return joined


def _words(groups: list[tuple[ReportedRun, ...]]) -> list[str]:
    """Return the title of each group, with the options that tell it from other groups of this title."""
    titles = [title(group[0].config, seed=False) for group in groups]
    leaves = [fixed(group[0].leaves, DENSITY) for group in groups]
    words = []
    for name, own in zip(titles, leaves, strict=True):
        telling = _telling(own, [theirs for theirs, other in zip(leaves, titles, strict=True) if other == name])
        words.append("; ".join([name, *(short(key, own[key]) for key in telling if own.get(key) is not None)]))
    return words


def _telling(own: dict[str, Any], alike: list[dict[str, Any]]) -> list[str]:
    """Return keys whose values together tell `own` from all other leaves, the most telling ones first."""
    rest = [other for other in alike if other is not own]
    every = dict.fromkeys(key for leaves in alike for key in leaves)
    kinds = {key: len({str(leaves.get(key)) for leaves in alike}) for key in every}
    keys: list[str] = []
    for key in sorted(kinds, key=lambda key: -kinds[key]):
        left = [other for other in rest if str(other.get(key)) == str(own.get(key))]
        if len(left) < len(rest):
            keys.append(key)
            rest = left
    return keys


def short(key: str, value: Any) -> str:
    """Shorten an option: "method.criterion._target_", "lottery.layers.from_weights.grasp" -> "criterion grasp"."""
    *parents, last = key.split(".")
    if last == "_target_":
        return f"{parents[-1]} {str(value).rpartition('.')[2]}"
    return f"{'.'.join([*parents[-1:], last])} {value}"


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return the keys in which the groups differ, each with its value in every group."""
    leaves = [fixed(group.studies[0].leaves, DENSITY) for group in groups]
    values = {key: [each.get(key) for each in leaves] for each in leaves for key in each}
    return {key: of for key, of in values.items() if len({str(each.get(key, "")) for each in leaves}) > 1}
