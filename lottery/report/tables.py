"""The tables of a report: plain HTML that reads without a script; the script makes it sortable. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lottery.figures.style import finite, looks, percent
from lottery.report.markup import Html, tag
from lottery.report.study import Group, ReportedRun, differences, short_words

MOST_ROWS = 1_500  # in the table of all rows; more make a browser slow
Rows = Sequence[Sequence[object]]

COUNTS = ("n", "Lowest", "Highest")  # columns that say nothing where every n is 1


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> Html:
    """Return an HTML table; cells are those that `number` and `words` return, or text."""
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    body = (tag("tr", *(cell if isinstance(cell, Html) else words(cell) for cell in row)) for row in rows)
    made = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=f"sortable {kind}".strip()
    )
    return tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def words(value: object) -> Html:
    return tag("td", "" if value is None else str(value))


def number(value: Any, form: str = ",.0f", factor: float = 1.0) -> Html:
    """Return a cell with a number; a value that was not measured gives an empty cell, which sorts last."""
    if not finite(value):
        return tag("td", class_="number")
    return tag("td", format(factor * value, form), class_="number", data_value=format(float(value), ".9g"))


def _percent(value: Any) -> Html:
    if not finite(value):
        return number(None)
    return tag("td", percent(value), class_="number", data_value=format(float(value), ".9g"))


def experiment_table(groups: Sequence[Group]) -> Html:
    """Return a row for each experiment: accuracies of the dense network, of its sparsest and of its best ticket."""
    heads = ["Experiment", "Seeds", "Finished", "Dense acc. (%)", "n", "Lowest prunable weights (%)"]
    heads += ["Acc. there (%)", "n", "Best ticket acc. (%)", "At prunable weights (%)", "n"]
    rows = [[label, *_experiment_row(each)] for each, label in zip(groups, short_words(groups), strict=True)]
    if all(level["n"] <= 1 for group in groups for level in _levels(group) if not level["control"]):
        return table("Experiments: one seed each (n = 1)", *_without(COUNTS, heads, rows))
    return table("Experiments: means over n seeds", heads, rows)


def _without(names: Collection[str], heads: Sequence[str], rows: Rows) -> tuple[list[str], Rows]:
    """Return headings and rows without the columns of these names."""
    kept = [place for place, head in enumerate(heads) if head not in names]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _experiment_row(group: Group) -> list[object]:
    levels = [level for level in _levels(group) if not level["control"]]
    dense = next((level for level in levels if level["round"] == 0), {})
    pruned = [level for level in levels if level["round"] > 0 and level["n"]]
    lowest = min(pruned, key=lambda level: (level["weights"], level["mean"]), default={})
    best = max(pruned, key=lambda level: level["mean"], default={})
    done = sum(study.finished for study in group.studies)
    accuracies = [number(level.get("mean"), ".2f", 100) for level in (dense, lowest, best)]
    counts = [number(level.get("n") or None) for level in (dense, lowest, best)]
    weights = [_percent(level.get("weights")) for level in (lowest, best)]
    return [
        words(", ".join(dict.fromkeys(str(study.seed) for study in group.studies))),
        words(f"{done} of {len(group.studies)}"),
        *(accuracies[0], counts[0], weights[0], accuracies[1], counts[1], accuracies[2], weights[1], counts[2]),
    ]


def _levels(group: Group) -> list[dict[str, Any]]:
    """Return means for each control ("" is the ticket) and level, with range and number of the test accuracies."""
    found = group.summary("test_accuracy").rename(columns={"count": "n"})
    found["round"] = group.summary("round")["min"]
    found["weights"], found["stop"] = (group.summary(key)["mean"] for key in ("density", "early_stop_step"))
    return found.reset_index().to_dict("records")


def level_table(groups: Sequence[Group]) -> Html:
    """Return the numbers of the first chart: test accuracy, with n, and early stop, over seeds and copies."""
    heads = ["Experiment", "Network", "Round", "Prunable weights (%)", "n", "Test acc. (%)", "Lowest", "Highest"]
    heads += ["Early-stop step"]
    rows: list[Sequence[object]] = []
    single = True
    for group, label in zip(groups, short_words(groups), strict=True):
        for level in _levels(group):
            ends = [level[key] if level["n"] > 1 else None for key in ("min", "max")]
            accuracies = [number(value, ".2f", 100) for value in (level["mean"], *ends)]
            (look,) = looks([level["control"] or None], group.method)
            place = [label, look.words if level["round"] or level["control"] else "dense", number(level["round"])]
            rows.append([*place, _percent(level["weights"]), number(level["n"]), *accuracies, number(level["stop"])])
            single = single and level["n"] <= 1
    gone = [*(["Experiment"] if len(groups) == 1 else []), *(COUNTS if single else [])]
    caption = "Test accuracy by round" + (" (n = 1)" if single else ": mean and range of n trainings (seeds, copies)")
    return table(caption, *_without(gone, heads, rows))


def row_table(studies: Sequence[ReportedRun]) -> Html:
    """Return every row of every study, or the first MOST_ROWS tickets where there are more rows than that."""
    heads = ["Study", "Seed", "Round", "Control", "Copy", "Prunable weights (%)", "Kept", "Steps", "Test acc. (%)"]
    heads += ["Val. acc. (%)", "Early-stop step", "Seconds"]
    everything = [(study, row) for study in studies for row in study.rows]
    shown, caption = everything, "All rounds"
    if len(everything) > MOST_ROWS:
        shown = [(study, row) for study, row in everything if row["control"] is None][:MOST_ROWS]
        caption += f" ({len(shown):,} of {len(everything):,}; lottery.record.table.load_runs reads all)"
    rows = [
        [
            study.name,
            words(study.seed),
            number(row["round"]),
            row["control"] or "",
            number(row.get("copy")),
            _percent(row.get("density")),
            *(number(row.get(key)) for key in ("kept", "steps")),
            *(number(row.get(key), ".2f", 100) for key in ("test_accuracy", "val_accuracy")),
            number(row.get("early_stop_step")),
            number(row.get("seconds"), ",.1f"),
        ]
        for study, row in shown
    ]
    gone = [
        *(["Study", "Seed"] if len(studies) == 1 else []),
        *([] if any(row.get("copy") for _, row in shown) else ["Copy"]),
    ]
    return table(caption, *_without(gone, heads, rows))


def difference_table(groups: Sequence[Group]) -> Html:
    """Return a row for each option in which experiments differ, a column for each experiment."""
    rows = [[tag("th", key, scope="row"), *map(_value, values)] for key, values in differences(groups).items()]
    heads = ["Key", *short_words(groups)]
    return table("Configuration: where the experiments differ", heads, rows, "differences")


def _value(value: Any) -> str:
    return "–" if value is None else str(list(value) if isinstance(value, tuple) else value)


def study_table(studies: Sequence[ReportedRun]) -> Html:
    """Return a row for each study: its state, hours, device and versions."""
    heads = ["Study", "Seed", "State", "Rows", "Hours", "Device", "torch", "lottery"]
    rows = [
        [
            study.name,
            words(study.seed),
            "finished" if study.finished else "unfinished",
            number(len(study.rows)),
            number(sum(row.get("seconds") or 0 for row in study.rows) / 3600, ",.2f"),
            *(study.environment.get(key, "") for key in ("device", "torch", "lottery")),
        ]
        for study in studies
    ]
    return table("Studies", heads, rows)
