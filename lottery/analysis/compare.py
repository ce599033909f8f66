"""`python -m lottery compare RUN RUN …`: compare the tickets of several studies. Torch-free."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from lottery.analysis.comparison import ComparedTicket, Pair, chosen, measured
from lottery.analysis.experiment import fixed
from lottery.arguments import CommandParser
from lottery.errors import ConfigError
from lottery.figures.matrix import draw_matrix, matrix_size
from lottery.figures.style import canvas, percent
from lottery.files import write_atomic
from lottery.printing import Column, say, table
from lottery.record.config import flat
from lottery.record.status import Status

ABOUT = """\
Compare the tickets of run folders at equal density: how much their masks have in common, beside what chance would
give, how far apart the trained weights lie, and how accurate they are. Writes DIR/compare.csv and DIR/overlap.png.

Distances are L2, and the angle in degrees, over all prunable weights, pruned ones being 0. They need the trained
weights, which lie in the store that a study's configuration names; without it they are left out. IoU is intersection
over union; `chance` its value for independent masks of the same layer densities, `surprise` by how many standard
deviations more weights are in common than by chance. Of a study with several rewind points every one takes part."""

SIDES = ("method", "seed", "round", "density", "test_accuracy")  # columns of compare.csv, of either ticket
OVERLAP = ("iou", "iou_chance", "hamming", "hamming_chance", "surprise")


def compare(args: list[str]) -> int:
    """Run the command. Raises LotteryError for run folders that cannot be compared, ConfigError for wrong options."""
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
    note_unfinished(runs, {entry.run.path for entry in entries})
    print("\n".join([*entry_table(entries), "", *pair_table(pairs), ""]))
    say(*method_lines(entries), *group_lines(pairs))
    write_csv(pairs, asked.out / "compare.csv")
    draw(entries, pairs, asked.out / "overlap.png")
    print(f"\n{asked.out / 'compare.csv'}, {asked.out / 'overlap.png'}")
    return 0


def note_unfinished(runs: Sequence[Path], compared: Collection[Path]) -> None:
    """Name the unfinished studies on stderr: they may still reach lower densities, or have nothing to compare yet."""
    for run in runs:
        status = Status.read(run)
        if run not in compared:
            say(f"lottery: {run} has not finished a round yet: it is left out", error=True)
        elif status is not None and not status.done:
            say(f"lottery: {run} is not finished ({status.state}): the rounds that it has are compared", error=True)


# -- what is shown ----------------------------------------------------------------------------------------------------


def entry_table(entries: Sequence[ComparedTicket]) -> list[str]:
    """Return a table with a line for each ticket."""
    columns = [Column("run"), Column("round", True), Column("density", True), Column("test acc", True)]
    rows = []
    for entry in entries:
        test = entry.row["test_accuracy"]
        cells = [
            str(entry.row["round"]),
            f"{percent(entry.row['density'])}%",
            "" if test is None else f"{100 * test:.2f}",
        ]
        rows.append([entry.name, *cells])
    return table(columns, rows, labels(entries), [{}] * len(entries))


def labels(entries: Sequence[ComparedTicket]) -> list[str]:
    """Return a label for each ticket; network and data, or the run's name, are added only where tickets need them."""
    words = [entry.words for entry in entries]
    if len({entry.subject for entry in entries}) > 1:
        words = [f"{entry.subject}, {entry.words}" for entry in entries]
    return [
        word if words.count(word) == 1 else f"{word}, {entry.name.rpartition('/')[2]}"
        for entry, word in zip(entries, words, strict=True)
    ]


def pair_table(pairs: Sequence[Pair]) -> list[str]:
    """Return a table with a line for each pair."""
    titles = ("run", "and", "IoU", "chance", "surprise", "L2", "angle")
    rows = []
    for pair in pairs:
        found = pair.overlap
        figures = (found.iou, ".3f"), (found.iou_chance, ".3f"), (found.surprise, "+.1f")
        distances = (pair.l2, ".2f"), (pair.angle, ".1f")
        cells = ["" if value is None else format(value, form) for value, form in (*figures, *distances)]
        rows.append([pair.one.name, pair.other.name, *cells])
    return table([Column(name, i > 1) for i, name in enumerate(titles)], rows, [""] * len(rows), [{}] * len(rows))


def method_lines(entries: Sequence[ComparedTicket]) -> list[str]:
    """Return the test accuracy of each method over its tickets: mean, lowest and highest."""
    groups = defaultdict[str, list[float]](list)
    for entry in entries:
        if entry.row["test_accuracy"] is not None:
            groups[_group(entry, entries)].append(100 * entry.row["test_accuracy"])
    return [
        f"{group}: test accuracy {fmean(found):.2f} % ({min(found):.2f} … {max(found):.2f}, n = {len(found)})"
        for group, found in groups.items()
    ]


def group_lines(pairs: Sequence[Pair]) -> list[str]:
    """Return the mean overlap and distance of every two methods.

    Pairs of one seed share initial weights and data order, so they are averaged apart from pairs of different seeds.
    """
    everyone = [side for pair in pairs for side in pair.sides]
    groups = defaultdict[tuple[str, str, bool], list[Pair]](list)
    for pair in pairs:
        one, other = sorted(_group(side, everyone) for side in pair.sides)
        groups[one, other, one != other and pair.one.seed != pair.other.seed].append(pair)
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


def _group(entry: ComparedTicket, entries: Sequence[ComparedTicket]) -> str:
    """Return the method, after network and data where these differ among the tickets."""
    return f"{entry.subject}, {entry.group}" if len({each.subject for each in entries}) > 1 else entry.group


def only_seeds_differ(pairs: Sequence[Pair]) -> bool:
    """Whether all pairs are of one experiment with different seeds."""
    configs = {side.run: side.run.config for pair in pairs for side in pair.sides}
    experiments = [fixed(flat(config)) for config in configs.values()]
    seeds = [(config.get("seed"), config.get("seeds")) for config in configs.values()]
    alike = all(each == experiments[0] for each in experiments) and not any(seeds.count(each) > 1 for each in seeds)
    return alike and all(pair.one.run != pair.other.run for pair in pairs)


def write_csv(pairs: Sequence[Pair], path: Path) -> None:
    """Write a row for each pair; values that were not measured are empty."""
    text = io.StringIO()
    names = ["run", "other"]
    names += [name for side in SIDES for name in (side, f"other_{side}")] + [*OVERLAP, "l2", "angle"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for pair in pairs:
        sides = [(side.run.path, side.group, side.seed, *(side.row[name] for name in SIDES[2:])) for side in pair.sides]
        values = [value for both in zip(*sides, strict=True) for value in both]
        writer.writerow([*values, *(getattr(pair.overlap, name) for name in OVERLAP), pair.l2, pair.angle])
    write_atomic(path, text.getvalue().encode())


def draw(entries: Sequence[ComparedTicket], pairs: Sequence[Pair], path: Path) -> None:
    """Draw the overlap of every two tickets as a heat map."""
    places = {id(entry): place for place, entry in enumerate(entries)}
    shared = {(places[id(pair.one)], places[id(pair.other)]): pair.overlap for pair in pairs}
    subjects = {entry.subject for entry in entries}
    subject = f"{entries[0].subject}: " if len(subjects) == 1 else ""
    heading = f"{subject}overlap of masks at {percent(entries[0].row['density'])} %"
    names = labels(entries)
    with canvas(path, heading, *matrix_size(names)) as figure:
        draw_matrix(figure.add_subplot(), names, shared)
