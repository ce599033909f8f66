"""`python -m lottery compare RUN RUN …`: tickets of several studies against each other. Torch-free."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from lottery.analysis.comparison import Entry, Pair, chosen, measured
from lottery.analysis.curves import check_one_experiment
from lottery.analysis.stability import draw_overlap
from lottery.analysis.style import percent
from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.files import write_atomic
from lottery.launch.table import Column, table
from lottery.tracking.status import Status

ABOUT = """\
Compare the tickets of run folders at equal density: how much their masks have in common, beside what chance would
give, how far apart the trained weights lie, and how accurate they are. Writes DIR/compare.csv and DIR/overlap.png.

Distances are L2, and the angle in degrees, over all prunable weights, pruned ones being 0. They need the trained
weights, which lie in the store that a study's configuration names; without it they are left out. IoU is intersection
over union; `chance` its value for independent masks of the same layer densities, `surprise` by how many standard
deviations more weights are in common than by chance. Of a study with several rewind points every one takes part."""


def compare(args: list[str]) -> int:
    """The command. Raises LotteryError for run folders that cannot be compared, ConfigError for wrong options."""
    parser = CommandParser("compare", ABOUT)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders, at least two")
    parser.add_argument("--density", type=float, help="kept / prunable; default: the lowest that all of them have")
    parser.add_argument("--out", type=Path, default=Path("compare"), metavar="DIR", help="default: compare")
    asked = parser.parse_args(args)
    runs = list({run.resolve(): run for run in reversed(asked.runs)}.values())[::-1]
    if len(runs) < 2:
        raise ConfigError("compare: takes at least two run folders, different ones")
    if asked.density is not None and not 0 < asked.density <= 1:
        raise ConfigError.of("--density", asked.density, "a fraction of the weights, above 0 and at most 1")
    entries = chosen(runs, asked.density)
    pairs = [measured(one, other) for one, other in combinations(entries, 2)]
    note_unfinished(runs)
    for line in [*entry_table(entries), "", *pair_table(pairs), "", *method_lines(entries), *group_lines(pairs)]:
        print(line)
    write_csv(pairs, asked.out / "compare.csv")
    draw(entries, pairs, asked.out / "overlap.png")
    print(f"\n{asked.out / 'compare.csv'}, {asked.out / 'overlap.png'}")
    return 0


def note_unfinished(runs: Sequence[Path]) -> None:
    """Say on stderr which studies have not come to their end: they may still reach lower densities."""
    for run in runs:
        status = Status.read(run)
        if status is not None and status.state != "done":
            note = f"{run} is not finished ({status.state}): the rounds that it has are compared"
            print(f"lottery: {note}", file=sys.stderr)


# -- what is shown ----------------------------------------------------------------------------------------------------


def entry_table(entries: Sequence[Entry]) -> list[str]:
    """A line a ticket."""
    columns = [Column("run"), Column("round", True), Column("density", True), Column("test acc", True)]
    rows = [
        [entry.name, str(entry.row["round"]), f"{percent(entry.row['density'])}%", _share(entry.row["test_accuracy"])]
        for entry in entries
    ]
    return table(columns, rows, labels(entries), [{}] * len(entries))


def labels(entries: Sequence[Entry]) -> list[str]:
    """What each ticket is, in words that tell them apart; with network and data where these are not all the same, with
    the run's name where the rest is."""
    words = [entry.words for entry in entries]
    if len({entry.subject for entry in entries}) > 1:
        words = [f"{entry.subject}, {word}" for entry, word in zip(entries, words, strict=True)]
    counts = Counter(words)
    return [
        word if counts[word] == 1 else f"{word}, {entry.name.rpartition('/')[2]}"
        for entry, word in zip(entries, words, strict=True)
    ]


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


def method_lines(entries: Sequence[Entry]) -> list[str]:
    """Test accuracy of each method, over its tickets: mean, lowest and highest."""
    groups: dict[str, list[float]] = {}
    for entry in entries:
        if entry.row["test_accuracy"] is not None:
            groups.setdefault(_group(entry, entries), []).append(100 * entry.row["test_accuracy"])
    return [
        f"{group}: test accuracy {fmean(found):.2f} % ({min(found):.2f} … {max(found):.2f}, n = {len(found)})"
        for group, found in groups.items()
    ]


def group_lines(pairs: Sequence[Pair]) -> list[str]:
    """Mean overlap and distance over the pairs of each two methods, those of one seed (which have initial weights and
    data order in common) apart from those of different ones."""
    everyone = [side for pair in pairs for side in (pair.one, pair.other)]
    groups: dict[tuple[str, str, bool], list[Pair]] = {}
    for pair in pairs:
        one, other = sorted((_group(pair.one, everyone), _group(pair.other, everyone)))
        groups.setdefault((one, other, one != other and pair.one.seed != pair.other.seed), []).append(pair)
    lines = []
    for (one, other, apart_by_seed), found in sorted(groups.items()):
        iou, chance = (fmean(getattr(p.overlap, name) for p in found) for name in ("iou", "iou_chance"))
        apart = [pair.l2 for pair in found if pair.l2 is not None]
        l2 = f", L2 {fmean(apart):.2f}" if len(apart) == len(found) else ""
        among = "between seeds" if only_seeds_differ(found) else "among themselves"
        how = f"and {other}, {'different seeds' if apart_by_seed else 'same seed'}"
        who = f"{one}, {among}" if one == other else f"{one} {how}"
        lines.append(f"{who}: IoU {iou:.3f}, chance {chance:.3f}{l2} (n = {len(found)})")
    return lines


def _group(entry: Entry, entries: Sequence[Entry]) -> str:
    """The method, and network and data where these are not all the same."""
    return f"{entry.subject}, {entry.group}" if len({each.subject for each in entries}) > 1 else entry.group


def only_seeds_differ(pairs: Sequence[Pair]) -> bool:
    """Whether all pairs are of one experiment with different seeds."""
    try:
        check_one_experiment({side.run: side.config for pair in pairs for side in (pair.one, pair.other)})
    except LotteryError:
        return False
    return all(pair.one.run != pair.other.run for pair in pairs)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def write_csv(pairs: Sequence[Pair], path: Path) -> None:
    """A row a pair. What was not measured is empty."""
    text = io.StringIO()
    sides = ("run", "method", "seed", "round", "density", "test_accuracy")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [name for side in sides for name in (side, "other" if side == "run" else f"other_{side}")]
        + ["iou", "iou_chance", "hamming", "hamming_chance", "surprise", "l2", "angle"]
    )
    for pair in pairs:
        values = [
            (each.run, each.group, each.seed, each.row["round"], each.row["density"], each.row["test_accuracy"])
            for each in (pair.one, pair.other)
        ]
        found = pair.overlap
        writer.writerow(
            [value for both in zip(*values, strict=True) for value in both]
            + [found.iou, found.iou_chance, found.hamming, found.hamming_chance, found.surprise, pair.l2, pair.angle]
        )
    write_atomic(path, text.getvalue().encode())


def draw(entries: Sequence[Entry], pairs: Sequence[Pair], path: Path) -> None:
    """The heat map of every two tickets."""
    places = {id(entry): place for place, entry in enumerate(entries)}
    shared = {(places[id(pair.one)], places[id(pair.other)]): pair.overlap for pair in pairs}
    subjects = {entry.subject for entry in entries}
    subject = f"{entries[0].subject}: " if len(subjects) == 1 else ""
    draw_overlap(labels(entries), shared, f"{subject}overlap of masks at {percent(entries[0].row['density'])} %", path)
