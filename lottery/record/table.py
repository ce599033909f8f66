"""Load run folders into one tidy table: one row a round, control and copy, with the configuration. Torch-free."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lottery.errors import ConfigError, LotteryError, nearest
from lottery.record.folders import Paths, find_runs
from lottery.record.frame import frame_of, leaf_keys, read_curves
from lottery.record.names import CURVE_COLUMNS, KEY
from lottery.record.run import Run

LOG = logging.getLogger("lottery")

SHOWN = 8  # values that a message lists

Accept = Callable[[Any], bool]


class NoRound(LotteryError):
    """Raised where none of the studies has finished a round."""


def load_runs(
    paths: Paths = "runs", filters: Mapping[str, Any] | None = None, *, config: Iterable[str] | None = None
) -> pd.DataFrame:
    """Return all rounds of several studies: one row a round, control and copy, in the order of each study's file.

    Columns: `run` (the folder), `name`, `key` (the folder's name), `seed`, `finished` (True only for a study known to
    have done all its rounds); then the keys of the rows, some of which, such as `layer_density`, hold dictionaries;
    then the configuration, one column a leaf such as `config.train.steps`, lists as tuples. `control` is missing for
    the ticket itself: group with `dropna=False` to keep it. Figures not measured are NaN. A study without a finished
    round has no rows.

    paths: run folders, folders that contain run folders at any depth (hidden folders are skipped), or patterns such as
        "runs/imp*".
    filters: key -> the wanted value, a list of wanted values, or a predicate. None stands for a missing value;
        predicates are not called on missing values. Keys are columns; the prefix `config.` may be left out.
    config: the configuration keys to keep, single ("train.steps") or groups ("train"); all by default.

    Warns of a damaged line of a table, which is skipped (a torn last line silently), and of a study that is there
    twice. Raises LotteryError where no run folder is found, has a round or passes the filters, or where one has a
    newer format; ConfigError for a key that no run has.

    >>> table = lottery.load_runs("runs/imp*", {"control": None}, config=["train.steps"])
    >>> table[["round", "density", "config.train.steps"]]
       round  density config.train.steps
    0      0      1.0               40it
    1      1      0.8               40it
    """
    runs = [Run(folder, lenient=True) for folder in find_runs(paths)]
    options = leaf_keys(runs)
    accept = {key: accepts(wanted) for key, wanted in (filters or {}).items()}
    for key in [key for key in accept if _leaf(key) in options]:
        runs = _passing_runs(runs, _leaf(key), accept.pop(key))
    _warn_of_copies(runs)
    if not any([run.rows for run in runs]):  # a list: read every run, so that all warnings are logged
        others = f", nor one of {len(runs) - 1} more" if len(runs) > 1 else ""
        raise NoRound(f"{runs[0].path}: has not finished a round yet{others}; run it first")
    table = frame_of(runs, _kept(runs, config))
    for key, test in accept.items():
        if key not in table:
            raise ConfigError(f"filters: no run has {key!r}{nearest(key, [*map(str, table.columns), *options])}")
        table = _passing_rows(table, key, test)
    return table.reset_index(drop=True)


def _leaf(key: str) -> str:
    return key.removeprefix("config.")


def _warn_of_copies(runs: Iterable[Run]) -> None:
    """Warn of folders with equal keys: they hold the same study, which would count twice."""
    places = defaultdict(list)
    for run in runs:
        if KEY.fullmatch(run.path.name):
            places[run.path.name].append(str(run.path))
    for folders in places.values():
        if len(folders) > 1:
            LOG.warning("%s are the same study, which counts %d times; leave out all but one", folders, len(folders))


def _kept(runs: list[Run], asked: Iterable[str] | None) -> list[str]:
    """Return the configuration keys that become columns, in the order of the files; ConfigError for an unknown key."""
    every = leaf_keys(runs)
    if asked is None:
        return every
    kept: dict[str, None] = {}
    for want in map(_leaf, [asked] if isinstance(asked, str) else asked):
        found = [key for key in every if key == want or key.startswith(f"{want}.")]
        if not found:
            raise ConfigError(f"config: no run has {want!r}{nearest(want, every)}")
        kept |= dict.fromkeys(found)
    return list(kept)


# -- filters -----------------------------------------------------------------------------------------------------------


def accepts(wanted: Any) -> Accept:
    """Return the filter `wanted` (see `load_runs`) as a predicate on values."""
    if callable(wanted):
        return lambda value: not _missing(value) and bool(wanted(value))
    options = list(wanted) if isinstance(wanted, list | tuple | set | frozenset | range | np.ndarray) else [wanted]
    return lambda value: any(_missing(value) if _missing(each) else value == each for each in options)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _passing_runs(runs: list[Run], key: str, accept: Accept) -> list[Run]:
    passing = [run for run in runs if accept(run.leaves.get(key))]
    if not passing:
        raise _nothing_left(key, (run.leaves.get(key) for run in runs))
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
    """Return the training curves of these rows: run, seed, round, control, copy, step, split, loss, accuracy.

    runs: rows of a `load_runs` table, or paths as for `load_runs`. `loss` and `accuracy` (a fraction) are NaN where a
    split has none. Raises LotteryError where a study's curves file is missing, damaged or altered.
    """
    table = runs if isinstance(runs, pd.DataFrame) else load_runs(runs, config=())
    identity = ["run", "round", "control", "copy"]
    asked = table[[*identity, "seed"]].assign(
        control=table["control"].astype(object).where(table["control"].notna(), "")
    )
    parts = [read_curves(Path(run)).assign(run=run) for run in asked["run"].unique()]
    joined = pd.concat(parts, ignore_index=True).merge(asked, on=identity)
    joined["control"] = joined["control"].where(joined["control"] != "", None)
    return joined[["run", "seed", *CURVE_COLUMNS]]
