"""Data of the interactive charts: measurements over the rounds of experiments, and training curves. Torch-free."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lottery.errors import LotteryError
from lottery.figures.style import looks, percent
from lottery.figures.words import words_and_unit
from lottery.files import Missing
from lottery.record.names import CURVES
from lottery.report.study import Group, ReportedRun, short_words

LOG = logging.getLogger("lottery")

# The measurements that come first, in this order. Others are the probes' numbers.
MEASURES = ("test_accuracy", "early_stop_step", "early_stop_test_accuracy", "val_accuracy", "train_accuracy",
            "test_loss", "val_loss", "train_loss", "steps", "seconds")  # fmt: skip
AXES = {
    "density": ("prunable weights remaining (%)", 100.0),
    "removed": ("units removed", 1.0),
    "step_rewind": ("rewind step", 1.0),
    "round": ("round", 1.0),
}
CURVE_POINTS = 60_000  # numbers in all training curves of a report, about 400 kB
LONGEST, SHORTEST = 80, 8  # most and fewest points of one curve


def measures(group: Group) -> dict[str, tuple[str, float]]:
    """Return the measurements of an experiment: key -> (words, factor)."""
    found = list(group.numbers)
    known = {key: words_and_unit(key) for key in MEASURES if key in found}
    probes = sorted(key for key in found if key.startswith("probe/"))
    return known | {key: (key.removeprefix("probe/").replace("_", " "), 1.0) for key in probes}


def axes(group: Group) -> dict[str, tuple[str, float]]:
    """Return the axes on which the rows differ, key -> (words, factor), starting with the one that is shown first."""
    places = group.numbers.reindex(columns=[*AXES]).nunique()
    varied = [key for key in AXES if places[key] > 1]
    if places["step_rewind"] > 2:  # several rewind points at one density
        varied.sort(key=lambda key: key != "step_rewind")
    return {key: AXES[key] for key in varied or ["round"]}


def experiment_chart(group: Group) -> dict[str, Any]:
    """Return the data of a chart: every measurement over the rounds, a line for the ticket and each control.

    `x` of a line: for each axis the mean place of every round, and for "arm" the place of the line among the others: an
    axis where all masks have one density. `once`: each study prunes once. `y`: for each measurement mean, lowest,
    highest, and number of the trainings of every round, or null where none was measured.
    """
    along, shown = axes(group), measures(group)
    places = pd.DataFrame({key: factor * group.summary(key)["mean"] for key, (_, factor) in along.items()})
    rounds = group.summary("round")["min"].astype(int)
    points = {}
    for key, (_, factor) in shown.items():
        table = group.summary(key)
        values = (table[["mean", "min", "max"]] * factor).assign(n=table["count"]).astype(object).to_numpy().tolist()
        points[key] = pd.Series([point if point[3] else None for point in values], table.index)
    lines: list[dict[str, Any]] = []
    for look in looks((control or None for control in rounds.index.unique("control")), group.method):
        own = look.control or ""
        y = {key: found[own].tolist() for key, found in points.items() if found[own].notna().any()}
        lines.append({
            "words": look.words, "colour": look.colour, "marker": look.marker, "ticket": look.control is None,
            "x": {key: places[key][own].tolist() for key in places} | {"arm": [len(lines)] * len(rounds[own])},
            "y": y, "rounds": rounds[own].tolist(),
        })  # fmt: skip
    pruned = [row["density"] for row in group.rows if row["round"] > 0 and row["control"] is None]
    alone = len({row["level"] for row in group.rows if row["round"] > 0}) == 1 and len(pruned) > 0
    arms = {"arm": f"networks with {percent(sum(pruned) / len(pruned))} % of the prunable weights"} if alone else {}
    return {
        "words": group.words,
        "subject": group.subject,
        "once": any(study.density is not None for study in group.studies),
        "axes": arms | {key: words for key, (words, _) in along.items()},
        "measures": {key: words for key, (words, _) in shown.items()},
        "lines": lines,
    }


# -- training curves ---------------------------------------------------------------------------------------------------


def training_curves(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return each study's words and curves: split -> a list of {round, density, step, loss, accuracy}, thinned to fit.

    Controls have no curves: they are compared where they end. Studies are added until CURVE_POINTS is reached.
    """
    every = [
        (f"{words}, {group.name(study)}" if len(groups) > 1 else group.name(study), study)
        for group, words in zip(groups, short_words(groups), strict=True)
        for study in group.studies
    ]
    found: list[dict[str, Any]] = []
    room = CURVE_POINTS
    for place, (words, study) in enumerate(every):
        curves = _read_curves(study)
        most = min(LONGEST, room // (len(every) - place) // (3 * max(len(curves), 1)))
        if not curves or most < SHORTEST:
            continue
        splits: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for split, line in curves:
            splits[split].append(_thinned(line, most))
            room -= 3 * len(splits[split][-1]["step"])
        found.append({"words": words, "splits": splits})
    return found


def _read_curves(study: ReportedRun) -> list[tuple[str, dict[str, Any]]]:
    """Return the tickets' curves as (split, line), by round; warn of a damaged or altered file, and return none."""
    density = {row["round"]: row["density"] for row in study.tickets}
    try:
        table = study.curves.astype({"round": int, "step": int, "loss": float, "accuracy": float})
    except LotteryError as error:
        if not isinstance(error.__cause__, Missing):
            LOG.warning("%s; its curves are left out", error)
        return []
    except ValueError:
        LOG.warning("%s: damaged, its curves are left out", study.path / CURVES)
        return []
    table = table[table["control"].isna() & table["round"].isin(list(density))]
    found = []
    for (number, split), rows in table.sort_values("round", kind="stable").groupby(["round", "split"], sort=False):
        line = {
            "step": rows["step"].tolist(),
            "loss": rows["loss"].tolist(),
            "accuracy": (100 * rows["accuracy"]).tolist(),
        }
        found.append((split, {"round": number, "density": 100 * density[number]} | line))
    return found


def _thinned(line: dict[str, Any], most: int) -> dict[str, Any]:
    """Reduce a line to at most `most` points, evenly spaced, the first and the last among them."""
    count = len(line["step"])
    kept = range(count) if count <= most else [round(k * (count - 1) / (most - 1)) for k in range(most)]
    return {key: [value[k] for k in kept] if isinstance(value, list) else value for key, value in line.items()}
