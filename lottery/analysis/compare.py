"""`python -m lottery compare RUN RUN …`: tickets of several studies against each other. Torch-free."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lottery.analysis.masks import PackedMask, read_mask, read_state
from lottery.analysis.read import read_config, read_rounds
from lottery.analysis.stability import draw_overlap
from lottery.analysis.style import percent, title
from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.files import write_atomic
from lottery.launch.table import Column, table
from lottery.stability.distance import distance
from lottery.stability.overlap import Overlap, overlap

ABOUT = """\
Compare the tickets of run folders at equal density: how much their masks have in common, beside what chance would
give, how far apart the trained weights lie, and how accurate they are. Writes DIR/compare.csv and DIR/overlap.png.

Distances need the trained weights, which lie in the store that a study's configuration names; without it they are left
out. IoU is intersection over union; `chance` its value for independent masks of the same layer densities, `surprise`
by how many standard deviations more weights are in common than by chance."""
TOLERANCE = 0.01  # by which densities that count as equal may differ, relatively


@dataclass(frozen=True)
class Entry:
    """The ticket of one study that is compared."""

    run: Path
    config: dict[str, Any]
    row: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.run.parent.name}/{self.run.name}"

    @property
    def group(self) -> str:
        """The method, such as "SNIP at init" or "IMP, reset to init"."""
        words = title(self.config, seed=False).partition(", ")[2]
        iterative = self.config["method"]["_target_"].endswith(".IMP")
        return f"IMP, {words}" if iterative else words

    @property
    def words(self) -> str:
        """Method and seed."""
        return f"{self.group}, seed {self.config.get('seed')}"

    @cached_property
    def mask(self) -> PackedMask:
        return read_mask(self.run / "masks" / f"round_{self.row['round']:03d}.safetensors")

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
    """What two tickets have in common."""

    one: Entry
    other: Entry
    overlap: Overlap
    l2: float | None
    angle: float | None


def compare(args: list[str]) -> int:
    """The command. Raises LotteryError for run folders that cannot be compared, ConfigError for wrong options."""
    parser = CommandParser("compare", ABOUT)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders, at least two")
    parser.add_argument("--density", type=float, help="kept / prunable; default: the lowest that all of them have")
    parser.add_argument("--out", type=Path, default=Path("compare"), metavar="DIR", help="default: compare")
    asked = parser.parse_args(args)
    if len(asked.runs) < 2:
        raise ConfigError("compare: takes at least two run folders")
    if asked.density is not None and not 0 < asked.density <= 1:
        raise ConfigError.of("--density", asked.density, "a fraction of the weights, above 0 and at most 1")
    entries = chosen(list(dict.fromkeys(asked.runs)), asked.density)
    pairs = [measured(one, other) for one, other in combinations(entries, 2)]
    for line in [*entry_table(entries), "", *pair_table(pairs), "", *group_lines(pairs)]:
        print(line)
    write_csv(pairs, asked.out / "compare.csv")
    draw(entries, pairs, asked.out / "overlap.png")
    print(f"\n{asked.out / 'compare.csv'}, {asked.out / 'overlap.png'}")
    return 0


def chosen(runs: Sequence[Path], density: float | None) -> list[Entry]:
    """The ticket of every run at this density, or at the lowest density that all of them have.

    LotteryError where a run has none, naming what it has.
    """
    tickets: dict[Path, list[dict[str, Any]]] = {}
    for run in runs:
        tickets[run] = [row for row in read_rounds(run) if not row["control"] and row["kept"]]
        if not tickets[run]:
            raise LotteryError(f"{run}: has not finished a round yet; run it first, or leave it out")
    if density is None:
        common = [
            row["density"] for row in tickets[runs[0]] if all(_at(rows, row["density"]) for rows in tickets.values())
        ]
        if not common:
            raise LotteryError("compare: these runs have no density in common; --density chooses the nearest to one")
        density = min(common)
    entries = []
    for run, rows in tickets.items():
        row = _at(rows, density)
        if row is None:
            has = ", ".join(percent(row["density"]) for row in rows)
            raise LotteryError(f"{run}: has no ticket of {percent(density)} %; its densities are {has} %")
        entries.append(Entry(run, read_config(run), row))
    return sorted(entries, key=lambda entry: (entry.group, entry.config.get("seed") or 0, entry.name))


def _at(rows: Sequence[dict[str, Any]], density: float) -> dict[str, Any] | None:
    """The ticket of this density, to one per cent of it."""
    nearest = min(rows, key=lambda row: abs(row["density"] - density))
    return nearest if abs(nearest["density"] / density - 1) <= TOLERANCE else None


def measured(one: Entry, other: Entry) -> Pair:
    """LotteryError, naming both runs, where they are of different networks."""
    try:
        common = overlap(one.mask.bits, other.mask.bits, one.mask.sizes)
        apart = None
        if one.state is not None and other.state is not None:
            everything = {name: np.ones(one.state[name].shape, bool) for name in one.mask.sizes}
            apart = distance(one.state, other.state, everything)
    except LotteryError as error:
        raise LotteryError(f"{one.run} and {other.run}: {error}") from error
    return Pair(one, other, common, apart.l2 if apart else None, apart.angle if apart else None)


# -- what is shown ----------------------------------------------------------------------------------------------------


def entry_table(entries: Sequence[Entry]) -> list[str]:
    """A line a run."""
    columns = [Column("run"), Column("round", True), Column("density", True), Column("test acc", True)]
    rows = [
        [entry.name, str(entry.row["round"]), f"{percent(entry.row['density'])}%", _share(entry.row["test_accuracy"])]
        for entry in entries
    ]
    return table(columns, rows, [entry.words for entry in entries], [{}] * len(entries))


def pair_table(pairs: Sequence[Pair]) -> list[str]:
    """A line a pair."""
    titles = ("run", "and", "IoU", "chance", "surprise", "L2", "angle")
    rows = [
        [
            pair.one.name,
            pair.other.name,
            f"{pair.overlap.iou:.3f}",
            f"{pair.overlap.iou_chance:.3f}",
            _number(pair.overlap.surprise, "+.1f"),
            _number(pair.l2, ".2f"),
            _number(pair.angle, ".1f"),
        ]
        for pair in pairs
    ]
    return table([Column(name, i > 1) for i, name in enumerate(titles)], rows, [""] * len(rows), [{}] * len(rows))


def group_lines(pairs: Sequence[Pair]) -> list[str]:
    """Mean IoU over the pairs of each two methods, seeds taken together."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        one, other = sorted((pair.one.group, pair.other.group))
        groups.setdefault((one, other), []).append(pair)
    lines = []
    for (one, other), found in sorted(groups.items()):
        iou, chance = (sum(getattr(p.overlap, name) for p in found) / len(found) for name in ("iou", "iou_chance"))
        who = f"{one}, between seeds" if one == other else f"{one} and {other}"
        lines.append(f"{who}: IoU {iou:.3f}, chance {chance:.3f} (n = {len(found)})")
    return lines


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def write_csv(pairs: Sequence[Pair], path: Path) -> None:
    """A row a pair. What was not measured is empty."""
    text = io.StringIO()
    columns = ["run", "other", "seed", "other_seed", "density", "other_density", "test_accuracy", "other_test_accuracy"]
    columns += ["iou", "iou_chance", "hamming", "hamming_chance", "surprise", "l2", "angle"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for pair in pairs:
        sides = [
            (side.config.get("seed"), side.row["density"], side.row["test_accuracy"]) for side in (pair.one, pair.other)
        ]
        found = pair.overlap
        writer.writerow(
            [
                *(pair.one.run, pair.other.run, *(value for both in zip(*sides, strict=True) for value in both)),
                *(
                    found.iou,
                    found.iou_chance,
                    found.hamming,
                    found.hamming_chance,
                    found.surprise,
                    pair.l2,
                    pair.angle,
                ),
            ]
        )
    write_atomic(path, text.getvalue().encode())


def draw(entries: Sequence[Entry], pairs: Sequence[Pair], path: Path) -> None:
    """The heat map of every two runs."""
    places = {entry.run: place for place, entry in enumerate(entries)}
    shared = {(places[pair.one.run], places[pair.other.run]): pair.overlap for pair in pairs}
    subject, density = title(entries[0].config).partition(", ")[0], percent(entries[0].row["density"])
    draw_overlap([entry.words for entry in entries], shared, f"{subject}: overlap of masks at {density} %", path)
