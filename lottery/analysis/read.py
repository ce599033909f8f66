"""Run folders as plain data: rounds, configuration, DataFrame. Reads files only; torch is never needed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.errors import LotteryError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

# Null where there is no validation split: NaN in a frame, also where a whole column is null.
NULLABLE = ("val_loss", "val_accuracy", "early_stop_step", "early_stop_test_accuracy")


def read_rounds(run: Path) -> list[Row]:
    """The rows of `run`/rounds.jsonl, one a round, control and copy, in the order in which they were finished.

    A torn last line, left by a kill or still being written, is not a row. A study that has finished no round has none.
    Raises LotteryError where `run` is no folder or a complete line is not a JSON object.
    """
    _check_folder(run)
    path = run / "rounds.jsonl"
    if not path.exists():
        return []
    *whole, _torn = path.read_bytes().split(b"\n")
    return [_row(path, number, line) for number, line in enumerate(whole, 1)]


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise LotteryError(f"{path}, line {number}: got text that is not JSON ({error}), expected a round") from error
    if not isinstance(row, dict):
        raise LotteryError(f"{path}, line {number}: got {type(row).__name__}, expected a JSON object, which is a round")
    return row


def read_config(run: Path) -> dict[str, Any]:
    """The resolved configuration of a study, as plain dictionaries and lists.

    Raises LotteryError where `run` is no run folder or its config.yaml cannot be read.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _check_folder(run)
    path = run / "config.yaml"
    try:  # OmegaConf reads 1e-3 as a number; plain YAML 1.1 would read it as text
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError as error:
        raise LotteryError(f"{run}: no config.yaml in it, expected a run folder (runs/NAME/KEY)") from error
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise LotteryError(f"{path}: not a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise LotteryError(f"{path}: got {type(config).__name__}, expected keys and values")
    return config  # type: ignore[return-value]


def _check_folder(run: Path) -> None:
    if not run.is_dir():
        raise LotteryError(f"{run}: no such folder, expected a run folder (runs/NAME/KEY)")


def frame(runs: Iterable[Path]) -> pd.DataFrame:
    """All rounds of several studies: one row a round, control and copy.

    The columns are the keys of rounds.jsonl, after `run` (the folder) and `seed` (the configuration's). `control` is
    missing for the ticket itself, as in the file: group with `dropna=False` to keep it. `layer_density` holds
    dictionaries. What a study did not measure is NaN.
    """
    import pandas as pd

    rows = []
    for run in runs:
        place = {"run": str(run), "seed": read_config(run).get("seed")}
        rows += [place | row for row in read_rounds(run)]
    table = pd.DataFrame(rows)
    return table.astype({name: float for name in NULLABLE if name in table})
