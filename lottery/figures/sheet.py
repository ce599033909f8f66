"""Elements of every figure: files, heading, curves with bands, dense level, published points, legend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from lottery.errors import ConfigError, LotteryError, cause
from lottery.figures.curves import PALETTE, Curve, band_columns
from lottery.figures.style import DENSE, HEIGHT, WIDTH, canvas, looks
from lottery.figures.words import configs, method_words, subjects, words_and_unit

Published = Sequence[Mapping[str, Any]]
Level = tuple[float, str | None]  # mean of dense networks, colour of their experiment
DASHED = (0, (5, 3))
LETTER = 0.073  # inches of a character in a legend
ROW = 0.19  # inches of a line in a legend
OWN = "#000000"  # colour of published points that belong to no curve


def paths_of(path: str | Path, vector: bool = True) -> list[Path]:
    """Return the files of a figure: PNG and, if `vector`, SVG and PDF. An image suffix of `path` is dropped."""
    path = Path(path)
    stem = path.stem if path.suffix in (".png", ".svg", ".pdf") else path.name
    return [path.with_name(f"{stem}.{kind}") for kind in ("png", *(["svg", "pdf"] if vector else []))]


@contextmanager
def sheet(
    path: str | Path,
    heading: str,
    height: float = HEIGHT,
    width: float = WIDTH,
    vector: bool = True,
    count: int = 1,
    most: int | None = None,
    **share: Any,
) -> Iterator[list[Axes]]:
    """Yield `count` axes, at most `most` in a row, of a figure that is written to `paths_of` when the block ends.

    share: `sharex`, `sharey`. Raises LotteryError for rows that cannot be drawn, such as rows of NaN only.
    """
    png, *others = paths_of(path, vector)
    columns = min(most or count, count)
    try:
        with canvas(png, heading, height, width, others) as figure:
            figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.07, wspace=0.03)  # so that labels stand apart
            panels = figure.subplots(ceil(count / columns), columns, squeeze=False, **share).flatten().tolist()
            for axes in panels[count:]:
                axes.remove()
            yield panels[:count]
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise LotteryError(f"{png}: cannot be drawn of these rows: {cause(error)}") from error


def heading(frame: pd.DataFrame, title: str | None, what: str, *more: str) -> str:
    """Return `title`; without one, `what` the figure shows, and below it what all rows share, their n, and `more`."""
    if title is not None:
        return title
    networks, data = (list(dict.fromkeys(name.rpartition(" on ")[k] for name in subjects(frame))) for k in (0, 2))
    named = ", ".join(networks) if len(networks) < 3 else f"{len(networks)} networks"
    methods = set(map(method_words, configs(frame).values()))
    seeds = frame["seed"].dropna().unique()
    parts = [
        f"{named} on {', '.join(data)}" if data else "",
        *(methods if len(methods) == 1 else []),
        f"seed {seeds[0]} (n = 1)" if len(seeds) == 1 else f"{len(seeds)} seeds",
    ]
    names = frame["name"].unique() if "name" in frame else []
    common = ", ".join(filter(None, parts)) or ", ".join(map(str, names))
    return f"{what[:1].upper()}{what[1:]}\n{', '.join(filter(None, [common, *more]))}"


def on_panel(published: Published, key: str, *values: Any) -> Published:
    """Return the published points whose `key` has one of these values."""
    return [point for point in published if point.get(key) in values]


# -- on axes ----------------------------------------------------------------------------------------------------------


def draw_panel(
    axes: Axes,
    value: str,
    curves: Sequence[Curve],
    dense: Sequence[Level] = (),
    published: Published = (),
    unit_x: float = 1.0,
    joined: bool = True,
) -> None:
    """Draw curves of the column `value`, the levels of dense networks from `dense_levels`, and published points.

    Values are drawn in the unit of `words_and_unit`; x is multiplied by `unit_x`.
    """
    words, unit = words_and_unit(value)
    for curve in curves:
        draw_curve(axes, curve, unit, unit_x, joined)
    draw_control_keys(axes, curves)
    draw_dense(axes, dense, unit)
    draw_published(axes, published, curves, unit, unit_x)
    axes.set_ylabel(words)
    axes.grid(axis="y")


def draw_curve(axes: Axes, curve: Curve, unit: float = 1.0, unit_x: float = 1.0, joined: bool = True) -> None:
    """Draw means as a line with markers in a band from low to high; with error bars where points are not joined."""
    x = unit_x * curve.points["x"]
    mean, low, high = (unit * curve.points[name] for name in ("mean", "low", "high"))
    joined = joined and curve.joined
    over = 10 if curve.control is None else 5
    named = curve.control is None or not curve.experiment  # else `draw_control_keys` says what its marker is
    axes.plot(
        x, mean, color=curve.colour, marker=curve.marker, linestyle=curve.style if joined else "none", zorder=over,
        label=curve.counted if named else None,
    )  # fmt: skip
    if (high > low).any() and (len(x) == 1 or not joined):
        bars = [(mean - low).clip(lower=0), (high - mean).clip(lower=0)]
        axes.errorbar(x, mean, bars, fmt="none", ecolor=curve.colour, elinewidth=1, capsize=2, zorder=over)
    elif (high > low).any():
        axes.fill_between(x, low, high, color=curve.colour, alpha=0.16, linewidth=0, zorder=1)


def draw_control_keys(axes: Axes, curves: Sequence[Curve]) -> None:
    """Add grey legend entries for the markers of controls, in figures where colours stand for experiments."""
    for curve in {curve.control: curve for curve in curves if curve.control is not None and curve.experiment}.values():
        axes.plot([], [], color=DENSE, marker=curve.marker, linestyle=curve.style, label=f"its {curve.words}")


def draw_dense(axes: Axes, levels: Sequence[Level], unit: float = 1.0) -> None:
    """Draw a dashed line at each level: grey for the mean of all dense networks, else in its experiment's colour."""
    look: dict[str, Any] = {"linestyle": DASHED, "linewidth": 1.1}
    for level, colour in levels:
        label = None if colour else "dense"
        axes.axhline(unit * level, color=colour or DENSE, zorder=1.5, label=label, **look)
    if levels and levels[0][1]:
        axes.plot([], [], color=DENSE, label="dense, each in its colour", **look)


def draw_published(
    axes: Axes, published: Published, curves: Sequence[Curve], unit: float = 1.0, unit_x: float = 1.0
) -> None:
    """Draw others' numbers as hollow markers, whose `label` names their source in the legend.

    `series` chooses the colour: of the curve with these words or this control, or grey for "dense".
    Raises ConfigError for a point that lacks x, y or label.
    """
    for point in published:
        if missing := [key for key in ("x", "y", "label") if point.get(key) is None]:
            raise ConfigError.of("published", dict(point), f"a point with x, y and label: it has no {missing[0]}")
    points = pd.DataFrame([{"series": None, **point} for point in published], columns=["x", "y", "label", "series"])
    used: set[tuple[str, str]] = set()
    for (label, series), rows in points.groupby(["label", "series"], dropna=False, sort=False):
        colour, marker = _look(series, curves)
        marker = next((m for m in (marker, *(m for _, m in PALETTE)) if (colour, m) not in used), marker)
        used.add((colour, marker))
        axes.plot(
            unit_x * rows["x"], unit * rows["y"], linestyle="none", marker=marker, markersize=7, color=colour,
            markerfacecolor="white", markeredgewidth=1.4, label=label, zorder=12,
        )  # fmt: skip


def _look(series: Any, curves: Sequence[Curve]) -> tuple[str, str]:
    tickets = [curve for curve in curves if curve.control is None]
    if series is None or pd.isna(series):
        return (tickets[0].colour, tickets[0].marker) if len(tickets) == 1 else (OWN, "o")
    if series == "dense":
        return DENSE, "o"
    for curve in curves:
        if series in (curve.words, curve.control) or (series == curve.experiment and curve.control is None):
            return curve.colour, curve.marker
    for look in looks([str(series)]):  # a control that was not run, or the ticket by that name
        if look.words != series:
            return look.colour, look.marker
    return OWN, "o"


def legend(panels: Sequence[Axes], band: str = "range", note: str = "") -> None:
    """Add a legend below the figure, and make the figure higher, so that the legend never hides data.

    An entry of several panels appears once. The title explains bands, where any n is more than one, and adds `note`.
    """
    named: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            named.setdefault(label, handle)
    if not named:
        return
    several = any("(n = " in label and not label.endswith("(n = 1)") for label in named)
    title = "; ".join(filter(None, [band_columns(band)[2] if several else "", note]))
    figure: Any = panels[0].figure
    width, height = figure.get_size_inches()
    room = round((width - 0.6) / LETTER)
    words = [fill(label, room) for label in named]
    longest = max(len(line) for text in words for line in text.splitlines())
    columns = max(1, min(len(words), int(width / (LETTER * (longest + 1) + 0.5))))
    lines = ceil(sum(text.count("\n") + 1 for text in words) / columns) + bool(title)
    figure.set_size_inches(width, height + ROW * max(0, lines - 1))
    found = figure.legend(
        named.values(), words, loc="outside lower left", ncols=columns, title=title or None, alignment="left",
        fontsize=8.5, title_fontsize=8.5, columnspacing=1.2,
    )  # fmt: skip
    found.set_zorder(20)
