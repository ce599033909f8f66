"""The report's page: sections in order, with what they need embedded. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lottery import __version__
from lottery.analysis.report.bundle import Bundle, script_digest
from lottery.analysis.report.charts import experiment_chart, training_curves
from lottery.analysis.report.markup import Html, embedded, join, tag
from lottery.analysis.report.masks import explorer
from lottery.analysis.report.static import Picture, pictures
from lottery.analysis.report.study import Experiment, Study
from lottery.analysis.report.tables import difference_table, experiment_table, level_table, row_table, study_table

HERE = Path(__file__).parent
HEADINGS = {
    "charts": "Charts",
    "tables": "Results",
    "masks": "Masks",
    "differences": "Configuration differences",
    "reproduce": "Reproduce",
}
SCRIPTS = ("common", "tables", "charts", "masks", "start")
CONFIG_ROOM = 600_000  # characters of all configurations; those of later studies are in their folders alone
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Ccircle cx='4' cy='4' r='4' fill='%230072B2'/%3E%3C/svg%3E"
)


def page(experiments: Sequence[Experiment], studies: Sequence[Study], bundle: Bundle | None) -> str:
    """The whole file. `studies` are all that were found, also those without a row."""
    told = [study for experiment in experiments for study in experiment.studies]
    data = {
        "charts": [experiment_chart(experiment) for experiment in experiments],
        "curves": training_curves(experiments) if bundle else [],
        "masks": explorer(experiments),
    }
    script = _script()
    results = (experiment_table(experiments), level_table(experiments), _all_rows(told))
    sections = {
        "charts": _charts(bundle is not None, pictures(experiments), bool(data["curves"])),
        "tables": _section("tables", *results),
        **({"masks": _masks()} if data["masks"] else {}),
        "differences": _differences(experiments),
        "reproduce": _reproduce(studies),
    }
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#tables", class_="skip"),
        tag("header", tag("h1", _title(experiments)), _summary(experiments, studies), _contents(sections)),
        tag("main", *sections.values()),
        tag("footer", f"Made by lottery {__version__} from run folders. This file is complete: it loads nothing."),
        tag("script", embedded(data), type="application/json", id="data"),
        tag("script", Html(bundle.packed), type="text/plain", id="plotly") if bundle else "",
        tag("script", script),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n{_head(_title(experiments), script, bundle)}\n{body}\n</html>\n'


def _script() -> Html:
    """The parts, in one function so that they leave no names behind."""
    parts = [(HERE / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return Html('"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n")


def _head(title: str, script: Html, bundle: Bundle | None) -> Html:
    """The policy lets a browser run these two scripts and load nothing, whatever a configuration has in it."""
    digests = [script_digest(script.encode()), *([bundle.digest] if bundle else [])]
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Html(f'<link rel="icon" href="{ICON}">'),
        tag("style", Html((HERE / "style.css").read_text(encoding="utf-8"))),
    )


def _title(experiments: Sequence[Experiment]) -> str:
    if len(experiments) == 1:
        return experiments[0].words
    subjects = list(dict.fromkeys(experiment.subject for experiment in experiments))
    return f"{len(experiments)} experiments: {', '.join(subjects[:3])}" + (", …" if len(subjects) > 3 else "")


def _summary(experiments: Sequence[Experiment], studies: Sequence[Study]) -> Html:
    rows = sum(len(experiment.rows) for experiment in experiments)
    counts = (_count(len(studies), "study", "studies"), _count(len(experiments), "experiment", "experiments"))
    unfinished = [study.name for study in studies if not study.finished]
    more = ", …" if len(unfinished) > 6 else ""
    note = f" Unfinished, with the rounds that they have: {', '.join(unfinished[:6])}{more}."
    facts = f"{', '.join(counts)}, {_count(rows, 'row', 'rows')}."
    return tag("p", facts, tag("strong", note) if unfinished else "")


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _contents(names: Iterable[str]) -> Html:
    return tag("nav", *(tag("a", HEADINGS[name], href=f"#{name}") for name in names), aria_label="Contents")


def _section(name: str, *children: object) -> Html:
    return tag("section", tag("h2", HEADINGS[name]), *children, id=name)


# -- charts -----------------------------------------------------------------------------------------------------------


def _charts(interactive: bool, found: dict[str, list[Picture]], curves: bool) -> Html:
    """The interactive charts, which the script fills and shows once it can, and the static figures, open until then."""
    if not interactive:
        note = "Static figures only: interactive charts need Plotly (pip install 'lottery[report]')."
        return _section("charts", tag("p", note, class_="note"), _static(found))
    off = tag("noscript", tag("p", "Scripts are off: these static figures show the results.", class_="note"))
    rounds = _panel("rounds", "Measurements over rounds", ("what", "Show"), ("y", "Measure"), ("x", "Against"))
    shades = "Dark lines are of dense tickets, bright ones of sparse tickets."
    choices = (("run", "Study"), ("split", "Split"), ("curve", "Measure"))
    training = _panel("training", "Training curves of tickets", *choices, note=shades) if curves else ""
    return _section("charts", off, rounds, training, _static(found))


def _panel(name: str, heading: str, *selects: tuple[str, str], note: str = "") -> Html:
    """A chart with its choices."""
    choices = [tag("label", words, " ", tag("select", id=f"{name}-{key}")) for key, words in selects]
    chart = tag("div", id=f"{name}-chart", class_="chart", role="img", aria_label=heading)
    hint = tag("p", note, class_="hint") if note else ""
    return tag("div", tag("h3", heading), hint, tag("div", *choices, class_="choices"), chart, id=name, hidden=True)


def _static(found: dict[str, list[Picture]]) -> Html:
    groups = []
    for words, figures in found.items():
        images = [
            tag("figure", tag("img", src=figure.uri, alt=f"{figure.words}: {words}"), tag("figcaption", figure.words))
            for figure in figures
        ]
        if images:
            groups += [tag("h3", words), tag("div", *images, class_="figures")]
    if not groups:
        return Html("")
    return tag("details", tag("summary", "Static figures"), *groups, id="static", open=True)


# -- the rest ---------------------------------------------------------------------------------------------------------


def _all_rows(studies: Sequence[Study]) -> Html:
    return tag("details", tag("summary", "All rounds of all studies"), row_table(studies))


def _masks() -> Html:
    hint = "Each square is a layer in a round, coloured by its share of weights kept. Choose one to see its mask."
    return _section(
        "masks",
        tag("noscript", tag("p", "The mask explorer needs scripts.", class_="note")),
        tag(
            "div",
            tag("p", hint, " Arrow keys move between squares, Enter opens one."),
            tag("div", tag("label", "Study ", tag("select", id="masks-run")), class_="choices"),
            tag("div", id="masks-scale", class_="scale"),
            tag("div", id="masks-grid", class_="scroll"),
            tag("div", id="masks-detail", class_="detail", aria_live="polite"),
            id="explorer",
            hidden=True,
        ),
    )


def _differences(experiments: Sequence[Experiment]) -> Html:
    if len(experiments) < 2:
        text = "One experiment: its studies differ in seeds, densities of a one-shot method, controls and probes only."
        return _section("differences", tag("p", text))
    return _section("differences", difference_table(experiments))


def _reproduce(studies: Sequence[Study]) -> Html:
    """Each study's command and configuration, in full: the file may reach somebody who has no run folder."""
    hint = (
        "Save a study's configuration as config.yaml and run its command: the same configuration gives the same study "
        "key. On another machine add paths.data=DIR where the data set is kept elsewhere."
    )
    entries, room = [], CONFIG_ROOM
    for study in studies:
        text = study.config_text
        room -= len(text)
        shown = (
            tag("pre", text, tabindex="0", class_="config") if room >= 0 else tag("p", "In its folder: config.yaml.")
        )
        command = tag("pre", tag("code", f"python -m lottery --config {study.run / 'config.yaml'}"), class_="command")
        saved = tag("pre", tag("code", "python -m lottery --config config.yaml"), class_="command")
        name = tag("summary", f"{study.name}, seed {study.seed}")
        entries.append(
            tag("details", name, tag("p", "Beside the run folder:"), command, tag("p", "Elsewhere:"), saved, shown)
        )
    return _section("reproduce", study_table(studies), tag("p", hint), join(entries))
