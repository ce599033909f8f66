"""What the interactive charts draw: measurements over the rounds of experiments, and training curves. Torch-free."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from lottery.analysis.curves import finite
from lottery.analysis.read import Row
from lottery.analysis.report.study import Experiment, Study, labels
from lottery.analysis.style import looks

# key -> (words, factor): measurements that come first, in this order. Others are the probes' numbers.
MEASURES = {
    "test_accuracy": ("test accuracy (%)", 100.0),
    "early_stop_step": ("early-stop step", 1.0),
    "early_stop_test_accuracy": ("test accuracy at early stop (%)", 100.0),
    "val_accuracy": ("validation accuracy (%)", 100.0),
    "train_accuracy": ("training accuracy (%)", 100.0),
    "test_loss": ("test loss", 1.0),
    "val_loss": ("validation loss", 1.0),
    "train_loss": ("training loss", 1.0),
    "steps": ("training steps", 1.0),
    "seconds": ("seconds", 1.0),
}
AXES = {
    "density_weights": ("weights remaining (%)", 100.0),
    "density": ("density (%)", 100.0),
    "removed": ("units removed", 1.0),
    "step_rewind": ("rewind step", 1.0),
    "round": ("round", 1.0),
}
CURVE_POINTS = 60_000  # numbers of training curves in a report, about 400 kB
LONGEST, SHORTEST = 80, 8  # points of one curve


def position(row: Row, axis: str) -> float | None:
    """Where a row stands on an axis."""
    value = len(row.get("removed_units") or ()) if axis == "removed" else row.get(axis)
    return value if finite(value) else None


def measures(rows: Iterable[Row]) -> dict[str, tuple[str, float]]:
    """The measurements that any row has: key -> (words, factor)."""
    found = {
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and finite(value)
    }
    probes = sorted(key for key in found if key.startswith("probe/"))
    known = {key: words for key, words in MEASURES.items() if key in found}
    return known | {key: (key.removeprefix("probe/").replace("_", " "), 1.0) for key in probes}


def axes(rows: Sequence[Row]) -> dict[str, tuple[str, float]]:
    """The axes on which the rows differ, the one to begin with first: densities, if these are a ladder."""
    values = {key: {place for row in rows if (place := position(row, key)) is not None} for key in AXES}
    varied = [key for key in AXES if len(values[key]) > 1]
    if len(values["step_rewind"]) > 2:  # several rewind points at one density
        varied.sort(key=lambda key: key != "step_rewind")
    return {key: AXES[key] for key in varied or ["round"]}


def experiment_chart(experiment: Experiment) -> dict[str, Any]:
    """Every measurement over the rounds: the ticket's line and the controls'."""
    rows = experiment.rows
    by_control: dict[str | None, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_control[row["control"]][row["level"]].append(row)
    lines = []
    for look in looks(by_control):
        levels = by_control[look.control]
        line = {"words": look.words, "colour": look.colour, "marker": look.marker, "ticket": look.control is None}
        lines.append(line | _line([levels[k] for k in sorted(levels)], measures(rows), axes(rows)))
    return {
        "words": experiment.words,
        "subject": experiment.subject,
        "axes": {key: words for key, (words, _) in axes(rows).items()},
        "measures": {key: words for key, (words, _) in measures(rows).items()},
        "lines": lines,
    }


def _line(groups: Sequence[Sequence[Row]], found: dict[str, Any], places: dict[str, Any]) -> dict[str, Any]:
    """x: for each axis the mean position of every round; y: for each measurement, of every round, mean, lowest, highest
    and number of the trainings, or null where none was measured.
    """
    x = {
        axis: [_mean([position(row, axis) for row in rows], factor) for rows in groups]
        for axis, (_, factor) in places.items()
    }
    y = {}
    for key, (_, factor) in found.items():
        points = [_point([row.get(key) for row in rows], factor) for rows in groups]
        if any(points):
            y[key] = points
    return {"x": x, "y": y, "rounds": [rows[0]["round"] for rows in groups]}


def _mean(values: Sequence[Any], factor: float) -> float | None:
    known = [factor * value for value in values if finite(value)]
    return fmean(known) if known else None


def _point(values: Sequence[Any], factor: float) -> list[float] | None:
    known = [factor * value for value in values if finite(value)]
    return [fmean(known), min(known), max(known), len(known)] if known else None


# -- training curves ---------------------------------------------------------------------------------------------------


def training_curves(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Each study's words and curves: split -> a list of {round, density, step, loss, accuracy}, thinned to fit.

    Tickets alone: controls are compared where they end. Studies come in until the room is used up.
    """
    several = len(experiments) > 1
    every = [
        (f"{words}, {experiment.name(study)}" if several else experiment.name(study), study)
        for experiment, words in zip(experiments, labels(experiments), strict=True)
        for study in experiment.studies
    ]
    found: list[dict[str, Any]] = []
    room = CURVE_POINTS
    for place, (words, study) in enumerate(every):
        curves = _read_curves(study)
        lines = sum(len(each) for each in curves.values())
        most = min(LONGEST, room // (len(every) - place) // (3 * max(lines, 1)))
        if not lines or most < SHORTEST:
            continue
        splits = {split: [_thinned(line, most) for line in each] for split, each in curves.items()}
        found.append({"words": words, "splits": splits})
        room -= sum(3 * len(line["step"]) for each in splits.values() for line in each)
    return found


def _read_curves(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Of the tickets, as curves.csv has them; a file that is missing or damaged has none."""
    density = {row["round"]: row["density_weights"] for row in study.tickets}
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    try:
        with (study.run / "curves.csv").open(newline="", encoding="utf-8") as file:
            for entry in csv.DictReader(file):
                if entry["control"] or int(entry["round"]) not in density:
                    continue
                key = (entry["split"], int(entry["round"]))
                line = lines.setdefault(key, {"round": key[1], "density": 100 * density[key[1]], "step": []})
                line["step"].append(int(entry["step"]))
                for name in ("loss", "accuracy"):
                    factor = 100 if name == "accuracy" else 1
                    line.setdefault(name, []).append(factor * float(entry[name]) if entry[name] else None)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
    splits: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (split, _), line in sorted(lines.items(), key=lambda item: item[0][1]):
        splits[split].append(line)
    return dict(splits)


def _thinned(line: dict[str, Any], most: int) -> dict[str, Any]:
    """At most so many points, evenly over the line, the first and the last among them."""
    count = len(line["step"])
    kept = range(count) if count <= most else [round(k * (count - 1) / (most - 1)) for k in range(most)]
    return {key: [value[k] for k in kept] if isinstance(value, list) else value for key, value in line.items()}
