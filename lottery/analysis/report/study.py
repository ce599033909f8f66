"""Run folders as the report needs them: read once, and gathered into experiments over seeds. Torch-free."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lottery.analysis.curves import FREE
from lottery.analysis.folders import Paths, config_leaves, find_runs, finished, lenient_rounds
from lottery.analysis.read import Row, read_config
from lottery.analysis.style import title
from lottery.errors import LotteryError

DENSITY = "method.density"  # what one-shot methods and searches are run at: several are points of one curve

LOG = logging.getLogger("lottery")


@dataclass(frozen=True, eq=False)
class Study:
    """One run folder."""

    run: Path
    config: dict[str, Any]
    leaves: dict[str, Any]  # the configuration, dotted key -> value
    rows: list[Row]
    finished: bool

    @classmethod
    def read(cls, run: Path) -> Study:
        """LotteryError where the folder cannot be read; a damaged line of rounds.jsonl is warned of and left out."""
        rows = sorted(lenient_rounds(run), key=lambda row: row["round"])
        return cls(run, read_config(run), config_leaves(run), rows, finished(run))

    @property
    def name(self) -> str:
        """Such as "imp_rewind/0123456789ab"."""
        run = self.run.resolve()
        return f"{run.parent.name}/{run.name}"

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def density(self) -> Any:
        """What the method prunes to in one go; None of one that has rounds."""
        return self.leaves.get(DENSITY)

    @property
    def seeds(self) -> str:
        """All of them, to tell studies apart."""
        return str(sorted((key, value) for key, value in self.leaves.items() if key.split(".")[0] in ("seed", "seeds")))

    @property
    def tickets(self) -> list[Row]:
        """The rows that are no controls, in the order of rounds."""
        return [row for row in self.rows if row["control"] is None]

    @property
    def config_text(self) -> str:
        return (self.run / "config.yaml").read_text(encoding="utf-8")

    @cached_property
    def environment(self) -> dict[str, str]:
        """Versions and device of the dense training; empty where the folder does not say."""
        try:
            found = json.loads((self.run / "rounds" / "round_000.json").read_bytes())["environment"]
            return {str(key): str(value) for key, value in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def mask_path(self, row: Row) -> Path:
        """Of a ticket."""
        return self.run / "masks" / f"round_{row['round']:03d}.safetensors"


@dataclass(frozen=True, eq=False)
class Experiment:
    """Studies that differ in seeds, the density of a one-shot method, controls and probes alone, no two alike; `words`
    tell it from the others.
    """

    studies: tuple[Study, ...]
    words: str

    @cached_property
    def rows(self) -> list[Row]:
        """Every row, with the `level` that it is a point of: round and, of a one-shot method, density, densest first.

        Of the dense networks, which studies of several densities have in common, there is one a seed.
        """
        every = [(study, row) for study in self.studies for row in study.rows]
        dense = {study.seeds: study for study in reversed(self.studies)}
        kept = [(study, row) for study, row in every if row["round"] > 0 or dense[study.seeds] is study]
        places = sorted({_place(study, row) for study, row in kept})
        return [row | {"level": places.index(_place(study, row))} for study, row in kept]

    @property
    def densities(self) -> int:
        """Of how many densities there are studies."""
        return len({study.density for study in self.studies})

    def name(self, study: Study) -> str:
        """What tells one of the studies from the others."""
        density = f", density {study.density}" if self.densities > 1 else ""
        return f"seed {study.seed}{density} ({study.name})"

    @property
    def subject(self) -> str:
        """Network and data, such as "LeNet-300-100 on MNIST"."""
        return title(self.studies[0].config).partition(", ")[0]

    @property
    def method(self) -> str:
        """The class of the method, such as "IMP"."""
        target = (self.studies[0].config.get("method") or {}).get("_target_", "")
        return str(target).rpartition(".")[2]


def _place(study: Study, row: Row) -> tuple[int, float]:
    """Round, and density from high to low."""
    return (row["round"], -float(study.density or 0)) if row["round"] > 0 else (0, 0.0)


def read_studies(paths: Paths) -> list[Study]:
    """Every run folder at or below `paths`; LotteryError where there is none, or none has finished a round."""
    studies = [Study.read(run) for run in find_runs(paths)]
    if not any(study.rows for study in studies):
        raise LotteryError(f"{studies[0].run}: has not finished a round yet; run it first")
    return studies


def experiments(studies: Iterable[Study]) -> list[Experiment]:
    """The studies that have rows, gathered by all of their configuration that matters for a number but the seeds.

    Two that differ in controls and probes alone are one study: its rows are joined, so that none counts twice.
    """
    groups: dict[str, dict[str, Study]] = {}
    joined = 0
    for study in studies:
        if not study.rows:
            continue
        group = groups.setdefault(str(sorted(fixed(study).items())), {})
        own = f"{study.seeds} {study.density}"
        joined += own in group
        group[own] = _joined(group[own], study) if own in group else study
    if joined:
        words = "1 study has" if joined == 1 else f"{joined} studies have"
        LOG.warning("%s all of another's configuration but controls and probes: the report joins their rows", words)
    gathered = [tuple(sorted(group.values(), key=_order)) for group in groups.values()]
    return [Experiment(found, words) for found, words in zip(gathered, _words(gathered), strict=True)]


def _order(study: Study) -> tuple[float, str]:
    return -float(study.density or 0), str(study.seed).zfill(12)


def labels(found: Sequence[Experiment]) -> list[str]:
    """The words of experiments that stand side by side, without network and data where these are the same for all."""
    if len(found) < 2 or len({experiment.subject for experiment in found}) > 1:
        return [experiment.words for experiment in found]
    return [experiment.words.removeprefix(f"{experiment.subject}, ") for experiment in found]


def _joined(one: Study, other: Study) -> Study:
    """The first with the other's rows, and of rows that both have with what the other measured besides."""
    rows = {(row["round"], row["control"] or "", row["copy"]): row for row in one.rows}
    for row in other.rows:
        place = (row["round"], row["control"] or "", row["copy"])
        rows[place] = row | rows.get(place, {})
    return replace(one, rows=[rows[place] for place in sorted(rows)])


def fixed(study: Study) -> dict[str, Any]:
    """What the studies of one experiment have in common: dotted key -> value."""
    from lottery.config import INFRASTRUCTURE  # Hydra comes with it

    free = (*FREE, *INFRASTRUCTURE, DENSITY)
    return {
        key: value
        for key, value in study.leaves.items()
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    }


def _words(groups: list[tuple[Study, ...]]) -> list[str]:
    """The title of each experiment, with what tells it from others of the same title."""
    titles = [title(group[0].config, seed=False) for group in groups]
    leaves = [fixed(group[0]) for group in groups]
    return [
        "; ".join([name, *(short(key, own[key]) for key in _telling(own, alike) if own.get(key) is not None)])
        for name, own in zip(titles, leaves, strict=True)
        for alike in [[other for other, theirs in zip(leaves, titles, strict=True) if theirs == name]]
    ]


def _telling(own: dict[str, Any], alike: list[dict[str, Any]]) -> list[str]:
    """Keys in whose values together `own` differs from all the others, those first that tell the most apart."""
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
    """ "method.criterion._target_", "lottery.layers.from_weights.grasp" -> "criterion grasp"."""
    *parents, last = key.split(".")
    if last == "_target_":
        return f"{parents[-1]} {str(value).rpartition('.')[2]}"
    return f"{'.'.join([*parents[-1:], last])} {value}"


def differences(found: list[Experiment]) -> tuple[list[str], list[list[Any]]]:
    """The keys in which experiments differ, and for each key the value in every experiment."""
    leaves = [fixed(experiment.studies[0]) for experiment in found]
    keys = [key for key in dict.fromkeys(key for each in leaves for key in each)]
    apart = [key for key in keys if len({str(each.get(key, "")) for each in leaves}) > 1]
    return apart, [[each.get(key) for each in leaves] for key in apart]
