"""Which tickets of several studies are compared, and what every two of them have in common. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lottery.analysis.masks import PackedMask, check_alike, read_mask, read_state
from lottery.analysis.read import Row, read_config, read_rounds
from lottery.analysis.style import SEARCHES, percent, title
from lottery.errors import LotteryError
from lottery.stability.distance import distance
from lottery.stability.overlap import Overlap, overlap

TOLERANCE = 0.01  # by which densities that count as equal may differ, relatively
TITLED = ("IMP", "Instability", "PruningAtInit", "RandomPruning", "Regimes", *SEARCHES)  # those `title` has words for


@dataclass(frozen=True)
class Entry:
    """A ticket that is compared; `several`: its study has others of this density, from other rewind points."""

    run: Path
    config: dict[str, Any]
    row: Row
    several: bool = False

    @property
    def name(self) -> str:
        """The run folder, and the round where its study has several such."""
        return f"{self.run.parent.name}/{self.run.name}" + (f" {self.row['round']}" if self.several else "")

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def subject(self) -> str:
        """Network and data, such as "LeNet-300-100 on MNIST"."""
        return title(self.config).partition(", ")[0]

    @property
    def group(self) -> str:
        """The method, such as "SNIP at init" or "IMP, reset to init"."""
        kind = str(self.config["method"]["_target_"]).rpartition(".")[2]
        words = title(self.config, seed=False).partition(", ")[2]
        if kind not in TITLED:
            return kind
        return f"IMP, {words}" if kind == "IMP" else words

    @property
    def words(self) -> str:
        """Method and seed, and the rewind point where these do not tell."""
        point = f", step {self.row['step_rewind']:,}" if self.several else ""
        return f"{self.group}, seed {self.seed}{point}"

    @cached_property
    def mask(self) -> PackedMask:
        return _mask(self.run, self.row)

    @cached_property
    def state(self) -> dict[str, Any] | None:
        """The trained weights; None where the store does not have them any more."""
        try:
            details = json.loads((self.run / "rounds" / f"round_{self.row['round']:03d}.json").read_text())
            key = details["stages"]["train"]
        except (OSError, ValueError, KeyError):
            return None
        named = Path(self.config["paths"]["store"])
        beside = self.run.parent.parent / ".store"  # where a study looks that was moved with its store
        for store in (named, beside):
            path = store / "train" / key / "state.safetensors"
            if path.is_file():
                return read_state(path)
        return None


@dataclass(frozen=True)
class Pair:
    """What two tickets have in common; distances are over all prunable weights, pruned ones being 0."""

    one: Entry
    other: Entry
    overlap: Overlap
    l2: float | None
    angle: float | None


def chosen(runs: Sequence[Path], density: float | None) -> list[Entry]:
    """The tickets of this density of every run, or of the lowest density that all of them have been pruned to.

    LotteryError where the runs are of different networks, or where one has none, naming what it has.
    """
    tickets: dict[Path, list[Row]] = {}
    for run in runs:
        tickets[run] = [row for row in read_rounds(run) if not row["control"] and row["kept"]]
        if not tickets[run]:
            raise LotteryError(f"{run}: has not finished a round yet; run it first, or leave it out")
    _check_networks(tickets)
    removed = _most_removed(tickets) if density is None else None
    if density is None and removed is None:
        density = _lowest_common(tickets)
    entries = []
    for run, rows in tickets.items():
        found = _at(rows, density) if density is not None else [row for row in rows if _removed(row) == removed]
        if not found:
            assert density is not None
            raise LotteryError(f"{run}: has no ticket of {percent(density)} %; its densities are {_densities(rows)} %")
        entries += [Entry(run, read_config(run), row, len(found) > 1) for row in found]
    return sorted(entries, key=lambda entry: (entry.subject, entry.group, entry.seed or 0, entry.name))


def _check_networks(tickets: dict[Path, list[Row]]) -> None:
    """LotteryError, naming both runs, where they are of different networks."""
    (first, ours), *others = ((run, _mask(run, rows[0])) for run, rows in tickets.items())
    for run, theirs in others:
        try:
            check_alike(ours, theirs)
        except LotteryError as error:
            raise LotteryError(f"{first} and {run}: {error}") from error


def _mask(run: Path, row: Row) -> PackedMask:
    return read_mask(run / "masks" / f"round_{row['round']:03d}.safetensors")


def _removed(row: Row) -> int:
    return len(row.get("removed_units", ()))


def _most_removed(tickets: dict[Path, list[Row]]) -> int | None:
    """Of layer tickets, how many units are gone in a ticket of all runs, at most: which ones, and so how many weights,
    differs from seed to seed. None for other tickets.
    """
    counts = [{_removed(row) for row in rows} - {0} for rows in tickets.values()]
    return max(set.intersection(*counts), default=None)


def _lowest_common(tickets: dict[Path, list[Row]]) -> float:
    """The dense networks, which all studies have in common, do not count: all their masks are equal."""
    first = next(iter(tickets.values()))
    densities = {row["density"] for row in first if row["density"] < 1}
    common = [each for each in densities if all(_at(rows, each) for rows in tickets.values())]
    if not common:
        have = "; ".join(f"{run}: {_densities(rows)} %" for run, rows in tickets.items())
        raise LotteryError(f"compare: these runs were not pruned to a density that all have ({have})")
    return min(common)


def _at(rows: Sequence[Row], density: float) -> list[Row]:
    """The tickets of this density, to one per cent of it: several where a study has several rewind points."""
    nearest = min((row["density"] for row in rows), key=lambda each: abs(each - density))
    return [row for row in rows if row["density"] == nearest] if abs(nearest / density - 1) <= TOLERANCE else []


def _densities(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(percent(row["density"]) for row in rows))


def measured(one: Entry, other: Entry) -> Pair:
    """LotteryError, naming both runs, where their masks or states do not fit each other."""
    try:
        common = overlap(one.mask.bits, other.mask.bits, one.mask.sizes)
        apart = None
        if one.state is not None and other.state is not None:
            everything = {name: np.ones(shape, bool) for name, shape in one.mask.shapes.items()}
            apart = distance(one.state, other.state, everything)
    except LotteryError as error:
        raise LotteryError(f"{one.run} and {other.run}: {error}") from error
    return Pair(one, other, common, apart.l2 if apart else None, apart.angle if apart else None)
