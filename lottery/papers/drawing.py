"""Draw a paper's figures, and write its table, from the rounds of its studies. Torch-free."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError, LotteryError, cause, nearest
from lottery.files import write_atomic
from lottery.papers.paper import Figure, Paper

if TYPE_CHECKING:
    import pandas as pd

PLOTS = "lottery.figures"
SUMMARY = "summary.csv"
VALUES = ("test_accuracy", "early_stop_test_accuracy", "early_stop_step")


class Undrawn(LotteryError):
    """Some figures could not be drawn; `drawn` are the paths of the others."""

    def __init__(self, failed: Sequence[str], drawn: Sequence[Path]) -> None:
        super().__init__(f"{len(failed)} of the figures could not be drawn: {'; '.join(failed)}")
        self.drawn = drawn


def draw(paper: Paper, frame: pd.DataFrame, folder: str | Path, scale: str | None = None) -> list[Path]:
    """Draw a paper's figures, and write summary.csv, into `folder`; return their paths.

    frame: a table of `papers.table` or `load_runs`.
    scale: only its figures are drawn; by default the scale of the table, or all where this is not known. At the scale
        smoke they lack published numbers, which are of other networks and data.
    A figure whose blocks have no row is left out. Raises Undrawn, after all others, where a figure cannot be drawn.
    """
    folder, scale = Path(folder), scale or frame.attrs.get("scale")
    paths, failed = [], []
    for figure in paper.figures:
        if scale is not None and scale not in figure.scales:
            continue
        rows = rows_of(figure, frame)
        if rows.empty:
            continue
        published = {"published": paper.published(figure.name)} if figure.published and scale != "smoke" else {}
        try:
            paths += draw_one(figure, rows, folder, published)
        except (LotteryError, ImportError) as error:
            failed.append(f"{figure.name}: {cause(error)}")
    paths.append(write_summary(frame, folder / SUMMARY))
    if failed:
        raise Undrawn(failed, paths)
    return paths


def draw_one(figure: Figure, rows: pd.DataFrame, folder: Path, more: dict[str, Any]) -> list[Path]:
    """Draw one figure, with `more` arguments added to its own; return its files. Raises ConfigError for wrong ones."""
    function, arguments = plot(figure.plot), {**figure.arguments, **more}
    takes = inspect.signature(function).parameters
    if unknown := [name for name in arguments if name not in takes]:
        wrong = f"arguments.{unknown[0]}: no such argument of {figure.plot}{nearest(unknown[0], takes)}"
        raise ConfigError(f"figure {figure.name}: {wrong}")
    return [Path(path) for path in function(rows, folder / figure.name, **arguments)]


def rows_of(figure: Figure, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a figure's blocks that pass its filters. Raises ConfigError for an unknown filter."""
    from lottery.record.table import accepts

    rows = frame
    if figure.runs and "block" in rows:
        rows = rows[rows["block"].isin(figure.runs)]
    for key, wanted in figure.filters.items():
        column = key if key in rows else f"config.{key}"
        if column not in rows:
            raise ConfigError(f"figure {figure.name}: filters: no row has {key!r}{nearest(key, map(str, rows))}")
        rows = rows[list(map(accepts(wanted), rows[column]))]
    return rows.reset_index(drop=True)


def plot(name: str) -> Callable[..., Any]:
    """Return a function of lottery.figures, such as `accuracy` or `density.accuracy`. Raises ConfigError."""
    family, _, function = name.rpartition(".")
    for file in iter_modules(import_module(PLOTS).__path__, f"{PLOTS}."):
        if family in ("", file.name.rpartition(".")[2]):
            found: Callable[..., Any] | None = getattr(import_module(file.name), function, None)
            if found is not None and found.__module__ == file.name:  # it is defined there, not imported
                return found
    raise ConfigError.of("plot", name, f"a function of {PLOTS}, such as accuracy")


def write_summary(frame: pd.DataFrame, path: Path) -> Path:
    """Write a row for each configuration, round and control, and return `path`.

    Columns: the number of studies n; mean, median, min and max over studies of accuracies and early-stop step; the mean
    of other numbers. Copies of a control are averaged first.
    """
    import pandas as pd

    by = group_columns(frame)
    measured = [name for name in frame if str(name).startswith("probe/") and frame[name].dtype.kind in "fi"]
    means = ["density", "density_weights", "seconds", *measured]
    studies = frame.groupby([*by, "run"], dropna=False, sort=False)[[*means, *VALUES]].mean()
    groups = studies.groupby(level=list(range(len(by))), dropna=False, sort=False)
    spread = groups[list(VALUES)].agg(["mean", "median", "min", "max"])
    spread.columns = pd.Index([f"{value}_{how}" for value, how in spread.columns])
    table = pd.concat([groups.size().rename("n"), groups[means].mean(), spread], axis=1).reset_index()
    order = [*(name for name in table if name not in measured), *measured]
    write_atomic(path, table[order].to_csv(index=False, float_format="%.10g").encode())
    return path


def group_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns that separate rows besides the seed: block, label, options that differ, round, control."""
    free = ("config.seed", "config.seeds.", "config.paths.", "config.tracker.", "config.trainer.", "config.name")
    options = [name for name in frame if str(name).startswith("config.") and not str(name).startswith(free)]
    differ = [name for name in options if frame[name].astype(str).nunique() > 1]
    return [*(name for name in ("block", "label") if name in frame), *differ, "round", "control"]
