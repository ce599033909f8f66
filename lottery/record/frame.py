"""Rows and training curves of run folders as pandas tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from lottery.errors import LotteryError
from lottery.files import Missing
from lottery.record.manifest import read_file
from lottery.record.names import CURVE_COLUMNS, CURVES

PLACE = ("run", "name", "key", "seed", "finished")  # the first columns, which are not keys of rows
# Null without a validation split. NaN in a table, even where the whole column is null.
NULLABLE = ("val_loss", "val_accuracy", "early_stop_step", "early_stop_test_accuracy")


class Rows(Protocol):
    """The attributes of a run folder that a table needs; `lottery.record.run.Run` has them."""

    @property
    def path(self) -> Path: ...
    @property
    def leaves(self) -> dict[str, Any]: ...
    @property
    def rows(self) -> list[dict[str, Any]]: ...
    @property
    def finished(self) -> bool: ...


def frame_of(runs: Sequence[Rows], keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Build a table with one row a round, control and copy: the columns PLACE, the figures, the configuration.

    keys: the configuration keys to include; all by default."""
    rows = [run.rows for run in runs]
    measured = pd.DataFrame([row for part in rows for row in part]).drop(columns=list(PLACE), errors="ignore")
    probes = [name for name in measured if str(name).startswith("probe/") and measured[name].isna().all()]
    floats = [*probes, *(name for name in NULLABLE if name in measured)]
    places = pd.DataFrame([_place(run) for run in runs], columns=list(PLACE))
    keys = leaf_keys(runs) if keys is None else keys
    config = pd.DataFrame(
        {f"config.{key}": pd.Series([run.leaves.get(key) for run in runs]) for key in keys}, index=places.index
    )
    run_of = np.repeat(places.index, [len(part) for part in rows])
    each_run = [part.take(run_of).reset_index(drop=True) for part in (places, config)]
    table = pd.concat([each_run[0], measured.astype(dict.fromkeys(floats, float)), each_run[1]], axis=1)
    return table.copy()  # defragmented: else pandas warns when columns are added later


def _place(run: Rows) -> tuple[Any, ...]:
    return str(run.path), run.leaves.get("name"), run.path.name, run.leaves.get("seed"), run.finished


def leaf_keys(runs: Sequence[Rows]) -> list[str]:
    """Return every key of the runs' configurations, in the order of the files."""
    return list(dict.fromkeys(key for run in runs for key in run.leaves))


def read_curves(run: Path) -> pd.DataFrame:
    """Return the training curves of a run folder; `control` is "" for a ticket. Raises LotteryError without curves."""
    none = {"loss": ["", "nan"], "accuracy": ["", "nan"]}
    try:
        data = io.BytesIO(read_file(run, CURVES))
        curve = pd.read_csv(data, keep_default_na=False, na_values=none, dtype={"control": object})
    except (Missing, ValueError) as error:
        raise LotteryError(f"{run / CURVES}: no training curves: {' '.join(str(error).split())}") from error
    if missing := [name for name in CURVE_COLUMNS if name not in curve]:
        raise LotteryError(f"{run / CURVES}: has no column {missing[0]!r}, expected {', '.join(CURVE_COLUMNS)}")
    return curve[list(CURVE_COLUMNS)]
