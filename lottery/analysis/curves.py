"""Rounds to curves: a measurement against density, grouped by control, over copies and seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lottery.analysis.read import Row
from lottery.errors import LotteryError

# Runs that differ in nothing else are runs of one experiment: what draws random numbers, and what changes no ticket.
FREE = ("seed", "seeds", "controls", "probes")


@dataclass(frozen=True)
class Point:
    """One round: mean, lowest and highest value of `n` trainings. `density` is `density_weights`, in [0, 1]."""

    density: float
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Curve:
    """The ticket's (`control` None) or a control's points, densest first."""

    control: str | None
    points: tuple[Point, ...]

    @property
    def n(self) -> tuple[int, int]:
        """The fewest and the most trainings behind one of its points."""
        counts = [point.n for point in self.points]
        return min(counts), max(counts)


def curves(rows: Iterable[Row], key: str) -> list[Curve]:
    """`key` against density: the ticket's curve first, then the controls' in alphabetical order.

    Rows of one round and control are averaged, whichever seed or copy they are. Rows without a finite `key` or density
    count for nothing; a curve without a point is left out.
    """
    groups: dict[str | None, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if finite(row.get(key)) and finite(row.get("density_weights")):
            groups[row["control"]][row["round"]].append(row)
    order = sorted(groups, key=lambda control: (control is not None, control or ""))
    return [Curve(control, _points(groups[control].values(), key)) for control in order]


def finite(value: Any) -> bool:
    """Whether it is a number that a figure can show."""
    return value is not None and math.isfinite(value)


def _points(rounds: Iterable[Sequence[Row]], key: str) -> tuple[Point, ...]:
    points = []
    for rows in rounds:
        values = [row[key] for row in rows]
        density = fmean(row["density_weights"] for row in rows)
        points.append(Point(density, fmean(values), min(values), max(values), len(values)))
    return tuple(sorted(points, key=lambda point: -point.density))


def dense_level(rows: Iterable[Row], key: str) -> float | None:
    """The mean of `key` over the dense networks (round 0); None where it was not measured."""
    values = [row[key] for row in rows if row["round"] == 0 and row["control"] is None and finite(row.get(key))]
    return fmean(values) if values else None


def check_one_experiment(configs: Mapping[Path, dict[str, Any]]) -> None:
    """Raise LotteryError unless the runs differ in their seeds, each has its own, and nothing else sets them apart.

    A mean over different experiments, or over one run twice, looks like any other mean.
    """
    if not configs:
        raise LotteryError("got no run folder, expected at least one")
    seen: dict[str, Path] = {}
    first, *_ = configs
    for run, config in configs.items():
        seeds = str((config.get("seed"), config.get("seeds")))
        if seeds in seen:
            raise LotteryError(f"{seen[seeds]} and {run} have the same seeds: give each seed once")
        seen[seeds] = run
        ours, theirs = _fixed(configs[first]), _fixed(config)
        for key in {**ours, **theirs}:
            if ours.get(key) != theirs.get(key):
                raise LotteryError(
                    f"{first} and {run} differ in {key}: {ours.get(key)!r} and {theirs.get(key)!r}; "
                    "give runs that differ in their seeds only"
                )


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """What all runs of one experiment share: dotted key -> value."""
    from lottery.config import INFRASTRUCTURE  # Hydra comes with it

    flat: dict[str, Any] = {}

    def walk(node: Any, key: str) -> None:
        if key in FREE or key in INFRASTRUCTURE:
            return
        if isinstance(node, dict):
            for name, value in node.items():
                walk(value, f"{key}.{name}" if key else str(name))
        else:
            flat[key] = node

    walk(config, "")
    return flat
