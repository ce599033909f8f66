"""The report's page: its sections in order, and the data that they embed. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

from lottery import __version__
from lottery.report.bundle import script_digest
from lottery.report.charts import experiment_chart, training_curves
from lottery.report.markup import Html, embedded, join, tag
from lottery.report.masks import explorer
from lottery.report.static import pictures
from lottery.report.study import Group, ReportedRun
from lottery.report.tables import difference_table, experiment_table, level_table, row_table, study_table

HERE = Path(__file__).parent
HEADINGS = {
    "charts": "Charts",
    "tables": "Results",
    "masks": "Masks",
    "differences": "Configuration differences",
    "reproduce": "Reproduce",
}
SCRIPTS = ("common", "tables", "charts", "masks", "start")
CONFIG_ROOM = 600_000  # characters of all configurations; later studies refer to their run folders


def page(groups: Sequence[Group], studies: Sequence[ReportedRun], bundle: tuple[str, str] | None, note: Html) -> str:
    """Return the page as HTML. `studies`: all, also those without a row; `bundle`: the result of `plotly_bundle`.

    note: why there are no interactive charts, and how to get them; for a page without `bundle`.
    """
    drawn = [study for group in groups for study in group.studies]
    data = {
        "charts": [experiment_chart(group) for group in groups],
        "curves": training_curves(groups) if bundle else [],
        "masks": explorer(groups),
    }
    rows = tag("details", tag("summary", "All rounds of all studies"), row_table(drawn))
    sections = {
        "charts": _charts(note if bundle is None else None, pictures(groups), bool(data["curves"])),
        "tables": _section("tables", experiment_table(groups), level_table(groups), rows),
        **({"masks": _section("masks", _html("masks"))} if data["masks"] else {}),
        "differences": _section("differences", _differences(groups)),
        "reproduce": _reproduce(studies),
    }
    contents = tag("nav", *(tag("a", HEADINGS[name], href=f"#{name}") for name in sections), aria_label="Contents")
    # one function, so that the scripts define no global names
    script = '"use strict";\n(() => {\n' + "\n".join(_text(f"script/{name}.js") for name in SCRIPTS) + "})();\n"
    digests = [script_digest(script.encode()), *([bundle[1]] if bundle else [])]
    return Template(_text("page.html")).substitute(
        scripts=" ".join(f"'sha256-{digest}'" for digest in digests),  # a browser runs these and loads nothing else
        title=tag("title", _title(groups)),
        style=_text("style.css"),
        header=join([tag("h1", _title(groups)), _summary(groups, studies), contents]),
        main=join(sections.values()),
        version=__version__,
        data=embedded(data),
        plotly=tag("script", Html(bundle[0]), type="text/plain", id="plotly") if bundle else "",
        script=script,
    )


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _html(name: str) -> Html:
    return Html(_text(f"{name}.html"))


def _title(groups: Sequence[Group]) -> str:
    if len(groups) == 1:
        return groups[0].words
    subjects = list(dict.fromkeys(group.subject for group in groups))
    return f"{len(groups)} experiments: {', '.join(subjects[:3])}" + (", …" if len(subjects) > 3 else "")


def _summary(groups: Sequence[Group], studies: Sequence[ReportedRun]) -> Html:
    rows = sum(len(group.rows) for group in groups)
    counts = (_count(len(studies), "study", "studies"), _count(len(groups), "experiment", "experiments"))
    unfinished = [study.name for study in studies if not study.finished]
    more = ", …" if len(unfinished) > 6 else ""
    note = f" Unfinished, with the rounds that they have: {', '.join(unfinished[:6])}{more}."
    facts = f"{', '.join(counts)}, {_count(rows, 'row', 'rows')}."
    return tag("p", facts, tag("strong", note) if unfinished else "")


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _section(name: str, *children: object) -> Html:
    return tag("section", tag("h2", HEADINGS[name]), *children, id=name)


# -- charts -----------------------------------------------------------------------------------------------------------


def _charts(note: Html | None, found: dict[str, dict[str, str]], curves: bool) -> Html:
    """Return the interactive charts, which the script fills, and the static figures, which are open until then.

    note: None for a page with interactive charts, else what stands in their place.
    """
    if note is not None:
        return _section("charts", tag("p", note, class_="note"), _static(found))
    return _section("charts", _html("rounds"), _html("training") if curves else "", _static(found))


def _static(found: dict[str, dict[str, str]]) -> Html:
    groups = []
    for words, figures in found.items():
        images = [
            tag("figure", tag("img", src=uri, alt=f"{name}: {words}"), tag("figcaption", name))
            for name, uri in figures.items()
        ]
        groups += [tag("h3", words), tag("div", *images, class_="figures")] if images else []
    return tag("details", tag("summary", "Static figures"), *groups, id="static", open=True) if groups else Html("")


# -- the rest ---------------------------------------------------------------------------------------------------------


def _differences(groups: Sequence[Group]) -> Html:
    if len(groups) < 2:
        text = "One experiment: its studies differ in seeds, densities of a one-shot method, controls and probes only."
        return tag("p", text)
    return difference_table(groups)


def _reproduce(studies: Sequence[ReportedRun]) -> Html:
    """Return each study's command and full configuration, for readers who do not have the run folder."""
    hint = (
        "Save a study's configuration as config.yaml and run its command: the same configuration gives the same study "
        "key. On another machine add paths.data=DIR where the data set is kept elsewhere."
    )
    entries, room = [], CONFIG_ROOM
    for study in studies:
        path = study.path / "config.yaml"
        text = path.read_text(encoding="utf-8")
        room -= len(text)
        commands = [tag("pre", tag("code", f"python -m lottery --config {each}"), class_="command")
                    for each in (path, "config.yaml")]  # fmt: skip
        entries.append(tag(
            "details", tag("summary", f"{study.name}, seed {study.seed}"),
            tag("p", "Beside the run folder:"), commands[0], tag("p", "Elsewhere:"), commands[1],
            tag("pre", text, tabindex="0", class_="config") if room >= 0 else tag("p", "In its folder: config.yaml."),
        ))  # fmt: skip
    return _section("reproduce", study_table(studies), tag("p", hint), join(entries))
