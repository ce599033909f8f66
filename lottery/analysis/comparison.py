"""Choose tickets of several studies, and measure the overlap and distance of every two. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import LotteryError
from lottery.figures.style import group, percent, title
from lottery.files import Missing
from lottery.record.masks import PackedMask, check_alike, read_state
from lottery.record.rows import Row, identity
from lottery.record.run import Run
from lottery.stability.overlap import Overlap, overlap
from lottery.stability.weights import distance

TOLERANCE = 0.01  # densities with at most this relative difference count as equal


@dataclass(frozen=True, eq=False)
class ComparedTicket:
    """A ticket that is compared. `several`: its study has more tickets of this density, from other rewind points."""

    run: Run
    row: Row
    several: bool = False

    @property
    def name(self) -> str:
        """The run folder's name, and the round where its study has several tickets of this density."""
        return self.run.name + (f" {self.row['round']}" if self.several else "")

    @property
    def seed(self) -> Any:
        return self.run.config.get("seed")

    @property
    def subject(self) -> str:
        """Network and data, such as "LeNet-300-100 on MNIST"."""
        return title(self.run.config).partition(", ")[0]

    @property
    def group(self) -> str:
        """The method, such as "SNIP at init" or "IMP, reset to init"."""
        return group(self.run.config)

    @property
    def words(self) -> str:
        """Method and seed, and the rewind point where the study has several tickets of this density."""
        point = f", step {self.row['step_rewind']:,}" if self.several else ""
        return f"{self.group}, seed {self.seed}{point}"

    @cached_property
    def mask(self) -> PackedMask:
        return self.run.packed_mask(self.row)

    @cached_property
    def state(self) -> dict[str, Any] | None:
        """The trained weights; None where the store no longer has them."""
        try:
            path = self.run.trained_weights(str(self.run.details(*identity(self.row))["stages"]["train"]))
        except (Missing, KeyError, TypeError):
            return None
        return read_state(path) if path else None


@dataclass(frozen=True)
class Pair:
    """The overlap and distance of two tickets; distances are over all prunable weights, pruned ones being 0."""

    one: ComparedTicket
    other: ComparedTicket
    overlap: Overlap
    l2: float | None
    angle: float | None

    @property
    def sides(self) -> tuple[ComparedTicket, ComparedTicket]:
        return self.one, self.other


def chosen(runs: Sequence[Path], density: float | None) -> list[ComparedTicket]:
    """Return the tickets of this density from every run; by default, of the lowest density that all runs have.

    Runs without a finished round are left out where two others remain.

    Layer tickets without a given density are chosen by the largest number of removed units that all runs have.
    Raises LotteryError where runs are of different networks, or a run has no such ticket; it names the run's densities.
    """
    tickets: dict[Run, list[Row]] = {}
    for run in map(Run, runs):
        if found := [row for row in run.rows if not row["control"] and row["kept"]]:
            tickets[run] = found
        elif len(runs) < 3:
            raise LotteryError(f"{run.path}: has not finished a round yet; run it first, or compare others")
    if len(tickets) < 2:
        raise LotteryError(f"compare: fewer than two of {len(runs)} studies have finished a round; run them first")
    _check_networks(tickets)
    removed = _most_removed(tickets) if density is None else None
    if density is None and removed is None:
        density = _lowest_common(tickets)
    entries = []
    for run, rows in tickets.items():
        found = _at(rows, density) if density is not None else [row for row in rows if _removed(row) == removed]
        if not found:
            assert density is not None
            have = f"its densities are {_densities(rows)} %"
            raise LotteryError(f"{run.path}: has no ticket of {percent(density)} %; {have}")
        entries += [ComparedTicket(run, row, len(found) > 1) for row in found]
    return sorted(entries, key=lambda entry: (entry.subject, entry.group, entry.seed or 0, entry.name))


def _check_networks(tickets: dict[Run, list[Row]]) -> None:
    """Raise LotteryError, naming two runs, where these are of different networks."""
    (first, ours), *others = ((run.path, run.packed_mask(rows[0])) for run, rows in tickets.items())
    for path, theirs in others:
        try:
            check_alike(ours, theirs)
        except LotteryError as error:
            raise LotteryError(f"{first} and {path}: {error}") from error


def _removed(row: Row) -> int:
    return len(row.get("removed_units", ()))


def _most_removed(tickets: dict[Run, list[Row]]) -> int | None:
    """Return the largest number of removed units that a ticket of every run has, or None if no number is shared.

    Densities do not serve here: seeds differ in the units that are removed, and so in the number of weights.
    """
    counts = [{_removed(row) for row in rows} - {0} for rows in tickets.values()]
    return max(set.intersection(*counts), default=None)


def _lowest_common(tickets: dict[Run, list[Row]]) -> float:
    """Return the lowest density below 1 that every run has; dense masks are all equal. Raises LotteryError for none."""
    first = next(iter(tickets.values()))
    densities = {row["density"] for row in first if row["density"] < 1}
    common = [each for each in densities if all(_at(rows, each) for rows in tickets.values())]
    if not common:
        have = "; ".join(f"{run.path}: {_densities(rows)} %" for run, rows in tickets.items())
        raise LotteryError(f"compare: these runs were not pruned to a density that all have ({have})")
    return min(common)


def _at(rows: Sequence[Row], density: float) -> list[Row]:
    """Return the tickets within 1 % of this density: several where a study has several rewind points."""
    nearest = min((row["density"] for row in rows), key=lambda each: abs(each - density))
    return [row for row in rows if row["density"] == nearest] if abs(nearest / density - 1) <= TOLERANCE else []


def _densities(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(percent(row["density"]) for row in rows))


def measured(one: ComparedTicket, other: ComparedTicket) -> Pair:
    """Compare two tickets. Raises LotteryError, naming both runs, where masks or states do not fit each other."""
    try:
        common = overlap(one.mask.bits, other.mask.bits, one.mask.sizes)
        apart = None
        if one.state is not None and other.state is not None:
            everything = {name: np.ones(shape, bool) for name, shape in one.mask.shapes.items()}
            apart = distance(one.state, other.state, everything)
    except LotteryError as error:
        raise LotteryError(f"{one.run.path} and {other.run.path}: {error}") from error
    return Pair(one, other, common, apart.l2 if apart else None, apart.angle if apart else None)
