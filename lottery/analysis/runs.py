"""Run folders to one tidy table: a row a round, control and copy, beside the configuration. Torch-free."""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lottery.analysis.folders import Paths, config_leaves, find_runs, finished, lenient_rounds
from lottery.analysis.read import NULLABLE
from lottery.errors import ConfigError, LotteryError, nearest

LOG = logging.getLogger("lottery")

PLACE = ("run", "name", "key", "seed", "finished")  # the columns that come first, and are no keys of rounds.jsonl
KEY = re.compile(r"[0-9a-f]{12}")
CURVE = ("round", "control", "copy", "step", "split", "loss", "accuracy")
SHOWN = 8  # values that a message lists

Accept = Callable[[Any], bool]


@dataclass(frozen=True)
class _Run:
    """A run folder, and its configuration as dotted key -> value."""

    folder: Path
    config: dict[str, Any]

    @property
    def place(self) -> tuple[Any, ...]:
        """The values of PLACE."""
        config, folder = self.config, self.folder
        return str(folder), config.get("name"), folder.name, config.get("seed"), finished(folder)


def load_runs(
    paths: Paths = "runs", filters: Mapping[str, Any] | None = None, *, config: Iterable[str] | None = None
) -> pd.DataFrame:
    """All rounds of several studies: one row a round, control and copy, those of a study in the order of its file.

    Columns: `run` (the folder), `name`, `key` (the folder's own name), `seed`, `finished` (False for a study that has
    rounds left to do, or of which nothing says that it has none); then the keys of rounds.jsonl, of which
    `layer_density` and others hold dictionaries; then the configuration, a column such as `config.train.steps` a leaf,
    lists as tuples. `control` is missing for the ticket itself: group with `dropna=False` to keep it. What was not
    measured is NaN. A study that has finished no round has no rows.

    paths: run folders, folders with run folders in them at any depth (but not in those whose name begins with a dot),
        or patterns such as "runs/imp*".
    filters: key -> what its value must be: a value, a list of them, or a function of a value; None is a missing value,
        about which a function is not asked. Keys are columns, the configuration's also without `config.`.
    config: the keys of the configuration to keep, single ones ("train.steps") or groups ("train"); all by default.

    Warned of are a damaged line of rounds.jsonl, which is left out (a torn last one is none), and a study that is there
    twice. Raises LotteryError where no run folder is found, none has a round, none passes the filters, or one is
    of a newer format; ConfigError for a key that no run has.
    """
    runs = [_Run(folder, config_leaves(folder)) for folder in find_runs(paths)]
    accept = {key: accepts(wanted) for key, wanted in (filters or {}).items()}
    for key in [key for key in accept if any(_leaf(key) in run.config for run in runs)]:
        runs = _passing_runs(runs, _leaf(key), accept.pop(key))
    _warn_of_copies(runs)
    table = _table(runs, _kept(runs, config))
    for key, test in accept.items():
        if key not in table:
            known = [*map(str, table.columns), *{leaf for run in runs for leaf in run.config}]
            raise ConfigError(f"filters: no run has {key!r}{nearest(key, known)}")
        table = _passing_rows(table, key, test)
    return table.reset_index(drop=True)


def _leaf(key: str) -> str:
    return key.removeprefix("config.")


def _warn_of_copies(runs: Iterable[_Run]) -> None:
    """The key holds all that the numbers of a study depend on: two folders of one key would count it twice."""
    places = defaultdict(list)
    for run in runs:
        if KEY.fullmatch(run.folder.name):
            places[run.folder.name].append(str(run.folder))
    for folders in places.values():
        if len(folders) > 1:
            LOG.warning("%s are the same study, which counts %d times; leave out all but one", folders, len(folders))


def _kept(runs: Iterable[_Run], asked: Iterable[str] | None) -> list[str]:
    """The leaves that become columns, in the order of the files."""
    every = list(dict.fromkeys(key for run in runs for key in run.config))
    if asked is None:
        return every
    kept: dict[str, None] = {}
    for want in map(_leaf, [asked] if isinstance(asked, str) else asked):
        found = [key for key in every if key == want or key.startswith(f"{want}.")]
        if not found:
            raise ConfigError(f"config: no run has {want!r}{nearest(want, every)}")
        kept |= dict.fromkeys(found)
    return list(kept)


def _table(runs: list[_Run], leaves: list[str]) -> pd.DataFrame:
    """The rows of all runs, with each run's place before and its configuration behind."""
    rows = [lenient_rounds(run.folder) for run in runs]
    if not any(rows):
        others = f", nor one of {len(runs) - 1} more" if len(runs) > 1 else ""
        raise LotteryError(f"{runs[0].folder}: has not finished a round yet{others}; run it first")
    measured = pd.DataFrame([row for part in rows for row in part]).drop(columns=list(PLACE), errors="ignore")
    probes = [name for name in measured if str(name).startswith("probe/") and measured[name].isna().all()]
    floats = [*probes, *(name for name in NULLABLE if name in measured)]
    places = pd.DataFrame([run.place for run in runs], columns=list(PLACE))
    config = pd.DataFrame(
        {f"config.{leaf}": pd.Series([run.config.get(leaf) for run in runs]) for leaf in leaves}, index=places.index
    )
    run_of = np.repeat(places.index, [len(part) for part in rows])
    each_run = [part.take(run_of).reset_index(drop=True) for part in (places, config)]
    table = pd.concat([each_run[0], measured.astype(dict.fromkeys(floats, float)), each_run[1]], axis=1)
    return table.copy()  # of one piece: pandas warns where columns are added to a hundred pieces


# -- filters -----------------------------------------------------------------------------------------------------------


def accepts(wanted: Any) -> Accept:
    """A filter, as a function of a value."""
    if callable(wanted):
        return lambda value: not _missing(value) and bool(wanted(value))
    options = list(wanted) if isinstance(wanted, list | tuple | set | frozenset | range | np.ndarray) else [wanted]
    return lambda value: any(_missing(value) if _missing(each) else value == each for each in options)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _passing_runs(runs: list[_Run], key: str, accept: Accept) -> list[_Run]:
    passing = [run for run in runs if accept(run.config.get(key))]
    if not passing:
        raise _nothing_left(key, (run.config.get(key) for run in runs))
    return passing


def _passing_rows(table: pd.DataFrame, key: str, accept: Accept) -> pd.DataFrame:
    passing = table[[accept(value) for value in table[key]]]
    if passing.empty:
        raise _nothing_left(key, table[key])
    return passing


def _nothing_left(key: str, values: Iterable[Any]) -> LotteryError:
    found = list(dict.fromkeys(repr(None if _missing(value) else value) for value in values))
    shown = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
    return LotteryError(f"filters: {key} leaves no row; its values are {shown}")


# -- training curves ---------------------------------------------------------------------------------------------------


def curves(runs: pd.DataFrame | Paths) -> pd.DataFrame:
    """The training curves of these rows: run, seed, round, control, copy, step, split, loss, accuracy.

    runs: a table of `load_runs` or a part of it, or what `load_runs` takes. `loss` and `accuracy` (a fraction) are NaN
    where a split has none. Raises LotteryError where a study's curves.csv is not there or is none.
    """
    table = runs if isinstance(runs, pd.DataFrame) else load_runs(runs, config=())
    identity = ["run", "round", "control", "copy"]
    asked = table[[*identity, "seed"]].assign(
        control=table["control"].astype(object).where(table["control"].notna(), "")
    )
    parts = [_curve(Path(run)).assign(run=run) for run in asked["run"].unique()]
    joined = pd.concat(parts, ignore_index=True).merge(asked, on=identity)
    joined["control"] = joined["control"].where(joined["control"] != "", None)
    return joined[["run", "seed", *CURVE]]


def _curve(run: Path) -> pd.DataFrame:
    path = run / "curves.csv"
    none = {"loss": ["", "nan"], "accuracy": ["", "nan"]}
    try:
        curve = pd.read_csv(path, keep_default_na=False, na_values=none, dtype={"control": object})
    except (OSError, ValueError) as error:
        raise LotteryError(f"{path}: no training curves: {' '.join(str(error).split())}") from error
    if missing := [name for name in CURVE if name not in curve]:
        raise LotteryError(f"{path}: has no column {missing[0]!r}, expected {', '.join(CURVE)}")
    return curve[list(CURVE)]
