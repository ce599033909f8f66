"""Read the rows of a run folder's table, and check the type of every value. Torch-free."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.files import Missing, Unreadable, parse_json
from lottery.record.manifest import read_file, remedy
from lottery.record.names import TABLE
from lottery.saved import check_format
from lottery.values import fits

LOG = logging.getLogger("lottery")

Row = dict[str, Any]
Identity = tuple[int, str | None, int]

NUMBER = float | None
NEEDED = ("round", "control", "density", "density_weights", "kept", "layer_density", "test_accuracy", "mask_digest")
# The keys that readers compute with, and the types of their values. NEEDED keys are in the rows of all versions.
KINDS: dict[str, Any] = {
    "round": int, "control": str | None, "copy": int,
    "density": float, "density_weights": float, "kept": int, "prunable": int,
    "layer_density": dict[str, NUMBER], "collapsed_layers": list[str], "removed_units": list[str],
    "step_rewind": int | None, "steps": int, "early_stop_step": int | None, "seconds": NUMBER,
    "cached": bool, "mask_digest": str | None, "weights_digest": str | None,
    "score_name": str | None, "score_better": str | None,
    **dict.fromkeys(
        ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
         "early_stop_test_accuracy", "train_score", "val_score", "test_score"), NUMBER),
}  # fmt: skip


def identity(row: Mapping[str, Any]) -> Identity:
    """Return round, control and copy, which identify a row within its table."""
    return row["round"], row["control"], row.get("copy", 0)


def figures(row: Row, without: Sequence[str] = ("seconds", "cached")) -> str:
    """Return a row as JSON without its timing keys; equal for rows with the same figures."""
    return json.dumps({key: value for key, value in row.items() if key not in without}, sort_keys=True)


def parse_row(line: bytes, where: object) -> Row:
    """Parse a line, read from `where`. Raises Unreadable, naming a wrong key; LotteryError for newer versions' rows."""
    row = parse_json(line, where)
    check_format(where, row)
    for key in NEEDED:
        if key not in row:
            raise Unreadable.of(where, f"it has no {key!r}, expected a round")
    for key, value in row.items():
        kind = KINDS.get(key, Any)
        if not fits(value, kind, finite=False):
            expected = kind.__name__ if isinstance(kind, type) else str(kind)
            raise Unreadable.of(where, f"{key}: got {str(value)[:80]!r}, expected {expected}")
    return {"copy": 0, **row}


def read_rows(run: Path, lenient: bool = False) -> list[Row]:
    """Return the rows of a run folder's table, in the order in which they were finished; empty without a table.

    A torn last line, left by a kill or still being written, is ignored. Raises LotteryError where the file is
    unreadable or altered, has a row of a newer format, or has a damaged line.
    lenient: skip a damaged line, with a warning that names file and line.
    """
    path = run / TABLE
    try:
        *lines, _torn = read_file(run, TABLE).split(b"\n")
    except Missing:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(parse_row(line, f"{path}, line {number}"))
        except Unreadable as error:
            if not lenient:
                raise
            LOG.warning("%s, line %d: damaged, and left out; the rest is used", path, number)
            LOG.debug("%s", error)
    return _each_once(path, rows)


def _each_once(path: Path, rows: list[Row]) -> list[Row]:
    """Keep the first row of each identity. Raises LotteryError where rows of one identity have different figures."""
    found: dict[Identity, Row] = {}
    for row in rows:
        if figures(found.setdefault(identity(row), row)) != figures(row):
            raise LotteryError(
                f"{path}: round {row['round']} is there twice, with different figures; {remedy(path.parent, TABLE)}"
            )
    if doubled := len(rows) - len(found):  # older versions could write a row several times
        LOG.warning("%s: %d rows are there twice, and count once; %s", path, doubled, remedy(path.parent, TABLE))
    return list(found.values())
