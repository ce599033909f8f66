"""What the figures have in common: files, headings, curves with bands, dense level, published points, legends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from lottery.analysis.plots.curves import PALETTE, Curve, band_columns, dense_levels
from lottery.analysis.plots.experiments import Experiment
from lottery.analysis.plots.words import entries, method_words, subjects
from lottery.analysis.style import DENSE, HEIGHT, WIDTH, canvas, looks
from lottery.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Published = Sequence[Mapping[str, Any]]
DASHED = (0, (5, 3))
LETTER = 0.073  # inches of a character in a legend
ROW = 0.19  # inches of a line in a legend
OWN = "#000000"  # of published points that belong to no curve


@contextmanager
def sheet(
    path: str | Path, heading: str, height: float = HEIGHT, width: float = WIDTH
) -> Iterator[tuple[Figure, list[Path]]]:
    """A figure, and the files that it is written to: `path`.png and `path`.svg, without an ending it has."""
    path = Path(path)
    stem = path.stem if path.suffix in (".png", ".svg", ".pdf") else path.name
    paths = [path.with_name(f"{stem}.{kind}") for kind in ("png", "svg")]
    with canvas(paths[0], heading, height, width, paths[1:]) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.07, wspace=0.03)  # so that labels stand apart
        yield figure, paths


def heading(frame: pd.DataFrame, title: str | None = None) -> str:
    """`title`, or what all rows have in common: network and data, method, seed."""
    if title is not None:
        return title
    known = entries(frame)
    networks, data = (list(dict.fromkeys(name.rpartition(" on ")[k] for name in subjects(frame))) for k in (0, 2))
    named = ", ".join(networks) if len(networks) < 3 else f"{len(networks)} networks"
    parts = [f"{named} on {', '.join(data)}"] if data else []
    methods = {method_words(entry) for entry in known.values()}
    parts += methods if len(methods) == 1 else []
    seeds = frame["seed"].dropna().unique()
    parts += [f"seed {seeds[0]}"] if len(seeds) == 1 else []
    return ", ".join(part for part in parts if part) or ", ".join(
        map(str, frame["name"].unique()) if "name" in frame else []
    )


# -- on axes ----------------------------------------------------------------------------------------------------------


def draw_curve(axes: Axes, curve: Curve, unit: float = 1.0, unit_x: float = 1.0, joined: bool = True) -> None:
    """Means as a marked line, in a band from low to high; bars where there is no line."""
    x = unit_x * curve.points["x"]
    mean, low, high = (unit * curve.points[name] for name in ("mean", "low", "high"))
    over = 10 if curve.control is None else 5
    alone = not joined or len(x) == 1
    style = "none" if not joined else curve.style
    named = curve.control is None or not curve.experiment  # else `draw_control_keys` says what its marker is
    axes.plot(
        x, mean, color=curve.colour, marker=curve.marker, linestyle=style, zorder=over,
        label=curve.counted if named else None,
    )  # fmt: skip
    if (high > low).any() and alone:
        bars = [(mean - low).clip(lower=0), (high - mean).clip(lower=0)]
        axes.errorbar(x, mean, bars, fmt="none", ecolor=curve.colour, elinewidth=1, capsize=2, zorder=over)
    elif (high > low).any():
        axes.fill_between(x, low, high, color=curve.colour, alpha=0.16, linewidth=0, zorder=1)


def draw_control_keys(axes: Axes, curves: Sequence[Curve]) -> None:
    """What the markers of controls mean, in grey, where colours tell the experiments."""
    of_many = {curve.control: curve for curve in curves if curve.control is not None and curve.experiment}
    for curve in of_many.values():
        axes.plot([], [], color=DENSE, marker=curve.marker, linestyle=curve.style, label=f"its {curve.words}")


def draw_dense(axes: Axes, groups: Sequence[Experiment], value: str, unit: float = 1.0) -> list[float]:
    """A dashed line at the mean of the dense networks, or each experiment's in its colour. Returns the levels."""
    levels = dense_levels(groups, value)
    for level, group in levels:
        colour = DENSE if group is None else PALETTE[groups.index(group) % len(PALETTE)][0]
        axes.axhline(
            unit * level,
            color=colour,
            linestyle=DASHED,
            linewidth=1.1,
            zorder=1.5,
            label="dense" if group is None else None,
        )
    if levels and levels[0][1] is not None:
        axes.plot([], [], color=DENSE, linestyle=DASHED, linewidth=1.1, label="dense, each in its colour")
    return [unit * level for level, _ in levels]


def draw_published(
    axes: Axes, published: Published, curves: Sequence[Curve], unit: float = 1.0, unit_x: float = 1.0
) -> pd.DataFrame:
    """Others' numbers as hollow markers, in the colour of the curve that their `series` names, by its words or its
    control, or grey for "dense"; `label` says in the legend where they are from. Returns x and y as drawn.
    """
    points = _published(published)
    used: set[tuple[str, str]] = set()
    for (label, series), rows in points.groupby(["label", "series"], dropna=False, sort=False):
        colour, marker = _look(series, curves)
        marker = next((m for m in (marker, *(m for _, m in PALETTE)) if (colour, m) not in used), marker)
        used.add((colour, marker))
        axes.plot(
            unit_x * rows["x"], unit * rows["y"], linestyle="none", marker=marker, markersize=7, color=colour,
            markerfacecolor="white", markeredgewidth=1.4, label=label, zorder=12,
        )  # fmt: skip
    return points.assign(x=unit_x * points["x"], y=unit * points["y"])


def _published(published: Published) -> pd.DataFrame:
    for point in published:
        if missing := [key for key in ("x", "y", "label") if point.get(key) is None]:
            raise ConfigError.of("published", dict(point), f"a point with x, y and label: it has no {missing[0]}")
    columns = {key: [point.get(key) for point in published] for key in ("x", "y", "label", "series")}
    return pd.DataFrame(columns).astype({"x": float, "y": float, "label": str, "series": object})


def _look(series: Any, curves: Sequence[Curve]) -> tuple[str, str]:
    tickets = [curve for curve in curves if curve.control is None]
    if series is None or pd.isna(series):
        return (tickets[0].colour, tickets[0].marker) if len(tickets) == 1 else (OWN, "o")
    if series == "dense":
        return DENSE, "o"
    for curve in curves:
        if series in (curve.words, curve.control) or (series == curve.experiment and curve.control is None):
            return curve.colour, curve.marker
    for look in looks([str(series)]):  # a control that we have not run, or the ticket by that name
        if look.words != series:
            return look.colour, look.marker
    return OWN, "o"


def legend(figure: Figure, axes: Axes | Sequence[Axes], band: str = "range", note: str = "") -> None:
    """Below the figure, which grows by it: never over data. What several axes show is named once. Its title says what
    the bands are, where any n is more than one, and a note.
    """
    named: dict[str, Any] = {}
    for place in [axes] if not isinstance(axes, Sequence) else axes:
        handles, labels = place.get_legend_handles_labels()
        named |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in named}
    if not named:
        return
    several = any("(n = " in label and not label.endswith("(n = 1)") for label in named)
    title = "; ".join([*([f"{band_columns(band)[2]} of n seeds"] if several else []), *([note] if note else [])])
    width, height = figure.get_size_inches()
    room = round((width - 0.6) / LETTER)
    words = [fill(label, room) for label in named]
    longest = max(len(line) for text in words for line in text.splitlines())
    columns = max(1, min(len(words), int(width / (LETTER * (longest + 1) + 0.5))))
    lines = -(-sum(text.count("\n") + 1 for text in words) // columns) + bool(title)
    figure.set_size_inches(width, height + ROW * max(0, lines - 1))
    found = figure.legend(
        named.values(), words, loc="outside lower left", ncols=columns, title=title or None, alignment="left",
        fontsize=8.5, title_fontsize=8.5, columnspacing=1.2,
    )  # fmt: skip
    found.set_zorder(20)
