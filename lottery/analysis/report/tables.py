"""The tables of a report: plain HTML that reads without a script; the script makes them sort. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lottery.analysis.curves import finite
from lottery.analysis.read import Row
from lottery.analysis.report.markup import Html, tag
from lottery.analysis.report.study import Experiment, Study, differences, labels
from lottery.analysis.style import percent

NOTHING = (None, None, 0)
MOST_ROWS = 1_500  # of the table of all rows; more make a browser slow


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> Html:
    """Cells are `td`s made by `number` and `words`, or text."""
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    body = (tag("tr", *(cell if isinstance(cell, Html) else words(cell) for cell in row)) for row in rows)
    made = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=f"sortable {kind}".strip()
    )
    return tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def words(value: object) -> Html:
    return tag("td", "" if value is None else str(value))


def number(value: Any, form: str = ",.0f", factor: float = 1.0) -> Html:
    """What was not measured is an empty cell, which sorts last."""
    if not finite(value):
        return tag("td", class_="number")
    return tag("td", format(factor * value, form), class_="number", data_value=format(float(value), ".9g"))


def _percent(value: Any) -> Html:
    if not finite(value):
        return number(None)
    return tag("td", percent(value), class_="number", data_value=format(float(value), ".9g"))


def experiment_table(experiments: Sequence[Experiment]) -> Html:
    """A line an experiment: its accuracy when dense, at its lowest density, and at its best."""
    heads = ["Experiment", "Seeds", "Finished", "Dense acc. (%)", "n", "Lowest weights (%)", "Acc. there (%)", "n"]
    heads += ["Best ticket acc. (%)", "At weights (%)", "n"]
    rows = [[label, *_experiment_row(each)] for each, label in zip(experiments, labels(experiments), strict=True)]
    return table("Experiments: means over n seeds", heads, rows)


def _experiment_row(experiment: Experiment) -> list[object]:
    tickets: dict[int, list[Row]] = {}
    for row in experiment.rows:
        if row["control"] is None:
            tickets.setdefault(row["level"], []).append(row)
    levels = [_level(rows) for rows in tickets.values() if rows[0]["round"] > 0]
    dense = next((_level(rows) for rows in tickets.values() if rows[0]["round"] == 0), NOTHING)
    pruned = [level for level in levels if None not in level]
    lowest = min(pruned, default=NOTHING)
    best = max(pruned, key=lambda level: level[1], default=NOTHING)
    done = sum(study.finished for study in experiment.studies)
    return [
        words(", ".join(dict.fromkeys(str(study.seed) for study in experiment.studies))),
        words(f"{done} of {len(experiment.studies)}"),
        *_accuracy(dense),
        _percent(lowest[0]),
        *_accuracy(lowest),
        *_accuracy(best)[:1],
        _percent(best[0]),
        *_accuracy(best)[1:],
    ]


def _level(rows: Sequence[Row]) -> tuple[Any, Any, int]:
    """Mean weights remaining, mean accuracy, and of how many."""
    scored = [row for row in rows if finite(row.get("test_accuracy"))]
    return _mean(scored, "density_weights"), _mean(scored, "test_accuracy"), len(scored)


def _accuracy(level: tuple[Any, Any, int]) -> list[Html]:
    return [number(level[1], ".2f", 100), number(level[2] or None)]


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if finite(row.get(key))]
    return fmean(values) if values else None


def level_table(experiments: Sequence[Experiment]) -> Html:
    """What the first chart shows: test accuracy and early stop over seeds and copies, each with its n."""
    heads = [
        "Experiment",
        "Control",
        "Round",
        "Weights (%)",
        "n",
        "Mean acc. (%)",
        "Lowest",
        "Highest",
        "Mean early stop",
    ]
    heads = heads if len(experiments) > 1 else heads[1:]
    rows = [
        [label, *cells] if len(experiments) > 1 else cells
        for experiment, label in zip(experiments, labels(experiments), strict=True)
        for cells in _levels(experiment)
    ]
    return table("Test accuracy by round: mean and range over seeds and copies", heads, rows)


def _levels(experiment: Experiment) -> list[list[object]]:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in experiment.rows:
        groups.setdefault((row["control"] or "", row["level"]), []).append(row)
    lines: list[list[object]] = []
    for (control, _), rows in sorted(groups.items()):
        scores = [row["test_accuracy"] for row in rows if finite(row.get("test_accuracy"))]
        low, high = (min(scores), max(scores)) if scores else (None, None)
        line: list[object] = [control or "ticket", number(rows[0]["round"]), _percent(_mean(rows, "density_weights"))]
        line += [number(len(scores)), number(_mean(rows, "test_accuracy"), ".2f", 100)]
        line += [number(low, ".2f", 100), number(high, ".2f", 100), number(_mean(rows, "early_stop_step"))]
        lines.append(line)
    return lines


def row_table(studies: Sequence[Study]) -> Html:
    """Every row of every study, or the tickets alone where these are too many."""
    heads = ["Study", "Seed", "Round", "Control", "Copy", "Weights (%)", "Kept", "Steps", "Test acc. (%)"]
    heads += ["Val. acc. (%)", "Early stop", "Seconds"]
    everything = [(study, row) for study in studies for row in study.rows]
    shown = everything
    if len(shown) > MOST_ROWS:
        shown = [(study, row) for study, row in everything if row["control"] is None][:MOST_ROWS]
    note = f" ({len(shown):,} of {len(everything):,}; lottery.analysis.runs.load_runs reads all)"
    caption = "All rounds" + (note if len(shown) < len(everything) else "")
    return table(caption, heads, [_row(study, row) for study, row in shown])


def _row(study: Study, row: Row) -> list[object]:
    return [
        study.name,
        words(study.seed),
        number(row["round"]),
        row["control"] or "",
        number(row.get("copy")),
        _percent(row.get("density_weights")),
        number(row.get("kept")),
        number(row.get("steps")),
        number(row.get("test_accuracy"), ".2f", 100),
        number(row.get("val_accuracy"), ".2f", 100),
        number(row.get("early_stop_step")),
        number(row.get("seconds"), ",.1f"),
    ]


def difference_table(experiments: Sequence[Experiment]) -> Html:
    """A line a key in which experiments differ, a column an experiment."""
    keys, values = differences(list(experiments))
    heads = ["Key", *labels(experiments)]
    rows = [[tag("th", key, scope="row"), *map(_value, each)] for key, each in zip(keys, values, strict=True)]
    return table("Configuration: where the experiments differ", heads, rows, "differences")


def _value(value: Any) -> str:
    return "–" if value is None else str(list(value) if isinstance(value, tuple) else value)


def study_table(studies: Sequence[Study]) -> Html:
    """A line a study: how far it is, what it cost, what it ran on."""
    heads = ["Study", "Seed", "State", "Rows", "Hours", "Device", "torch", "lottery"]
    rows = [
        [
            study.name,
            words(study.seed),
            "finished" if study.finished else "unfinished",
            number(len(study.rows)),
            number(sum(row.get("seconds") or 0 for row in study.rows) / 3600, ",.2f"),
            study.environment.get("device", ""),
            study.environment.get("torch", ""),
            study.environment.get("lottery", ""),
        ]
        for study in studies
    ]
    return table("Studies", heads, rows)
