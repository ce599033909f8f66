"""A paper's figures and table, from the rounds of its studies. Torch-free."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError, LotteryError, cause, nearest
from lottery.files import write_atomic
from lottery.papers.paper import Figure, Paper

if TYPE_CHECKING:
    import pandas as pd

PLOTS = "lottery.analysis.plots"
SUMMARY = "summary.csv"
VALUES = ("test_accuracy", "early_stop_test_accuracy", "early_stop_step")


class Undrawn(LotteryError):
    """Some figures could not be drawn; the `drawn` ones were."""

    def __init__(self, failed: Sequence[str], drawn: Sequence[Path]) -> None:
        super().__init__(f"{len(failed)} of the figures could not be drawn: {'; '.join(failed)}")
        self.drawn = drawn


def draw(paper: Paper, frame: pd.DataFrame, folder: Path, scale: str | None = None) -> list[Path]:
    """Every figure of the scale that the rows allow, and summary.csv; their paths.

    scale: by default that of the table, as `papers.table` made it, or else all.
    A figure of whose blocks there is no row is left out. Raises Undrawn, when the others are drawn, where one could not
    be.
    """
    scale = scale or frame.attrs.get("scale")
    paths, failed = [], []
    for figure in paper.figures:
        if scale is not None and scale not in figure.scales:
            continue
        rows = rows_of(figure, frame)
        if rows.empty:
            continue
        try:
            paths += draw_one(paper, figure, rows, folder, published=scale != "smoke")
        except (LotteryError, ImportError) as error:
            failed.append(f"{figure.name}: {cause(error)}")
    paths.append(write_summary(frame, folder / SUMMARY))
    if failed:
        raise Undrawn(failed, paths)
    return paths


def rows_of(figure: Figure, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that a figure shows."""
    from lottery.analysis.runs import accepts

    rows = frame
    if figure.runs and "block" in rows:
        rows = rows[rows["block"].isin(figure.runs)]
    for key, wanted in figure.filters.items():
        column = key if key in rows else f"config.{key}"
        if column not in rows:
            known = [str(name) for name in rows]
            raise ConfigError(f"figure {figure.name}: filters: no row has {key!r}{nearest(key, known)}")
        accept = accepts(wanted)
        rows = rows[[accept(value) for value in rows[column]]]
    return rows.reset_index(drop=True)


def draw_one(paper: Paper, figure: Figure, rows: pd.DataFrame, folder: Path, published: bool = True) -> list[Path]:
    """One figure; the files that it was written to.

    `published`: with the published numbers, which are of other networks and data than those of the scale smoke.
    """
    function = plot(figure.plot)
    takes = inspect.signature(function).parameters
    arguments: dict[str, Any] = dict(figure.arguments)
    if figure.published and published:
        arguments["published"] = paper.published(figure.name)
    if unknown := [name for name in arguments if name not in takes]:
        raise ConfigError(
            f"figure {figure.name}: arguments.{unknown[0]}: no such argument of {figure.plot}"
            f"{nearest(unknown[0], takes)}"
        )
    made = function(rows, folder / figure.name, **arguments)
    return [Path(path) for path in made]


def plot(name: str) -> Callable[..., Any]:
    """A function of lottery.analysis.plots, such as `accuracy` or `density.accuracy`. Raises ConfigError."""
    family, _, function = name.rpartition(".")
    modules = [import_module(f"{PLOTS}.{each}") for each in families() if family in ("", each)]
    found = next((getattr(module, function) for module in modules if _owns(module, function)), None)
    if found is None:
        raise ConfigError.of("plot", name, f"a function of {PLOTS}, such as accuracy")
    return found


def _owns(module: ModuleType, function: str) -> bool:
    """Whether the module itself defines it: others import it."""
    return getattr(getattr(module, function, None), "__module__", None) == module.__name__


def families() -> Iterator[str]:
    """The files of lottery.analysis.plots."""
    yield from (found.name for found in iter_modules(import_module(PLOTS).__path__))


def write_summary(frame: pd.DataFrame, path: Path) -> Path:
    """A row a configuration, round and control: the number of studies n, and the mean, median, min and max over them of
    accuracies and early-stop step; the mean of whatever else was measured as a number. Copies of a control are averaged
    first.
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
    """What tells the rows of a table apart besides the seed: block, the options that differ in it, round, control."""
    free = ("config.seed", "config.seeds.", "config.paths.", "config.tracker.", "config.trainer.", "config.name")
    options = [name for name in frame if str(name).startswith("config.") and not str(name).startswith(free)]
    differ = [name for name in options if frame[name].astype(str).nunique() > 1]
    return [*(name for name in ("block", "label") if name in frame), *differ, "round", "control"]
