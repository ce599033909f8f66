"""The run folder (design, 4.2): the plain files that are always written, and the record of truth."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from lottery.errors import ConfigError, LotteryError
from lottery.files import write_atomic, write_json
from lottery.ticket import Mask

CURVE_COLUMNS = ("round", "control", "copy", "step", "split", "loss", "accuracy")

Row = dict[str, Any]


def identity(row: Row) -> tuple[int, str | None, int]:
    """What makes a row of the table the same row: round, control, copy."""
    return row["round"], row["control"], row.get("copy", 0)


class RunFolder:
    """One study's folder. Rows that are already there stay as they were first written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[int, str | None, int], Row] = {}
        self._curves: list[list[Any]] = []

    def open(self, config_yaml: str) -> None:
        """Create the folder, or read what an earlier run of the same study left.

        Raises ConfigError where it cannot be written to.
        """
        try:
            for name in ("masks", "rounds", "figures"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / "config.yaml", config_yaml.encode())
        except (OSError, LotteryError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"paths.runs: cannot write to {self.path}: {reason}") from error
        for row in self._read_rows():
            self.rows[identity(row)] = row

    def _read_rows(self) -> list[Row]:
        """The complete lines of rounds.jsonl. A torn last line, left by a kill, is cut off."""
        path = self.path / "rounds.jsonl"
        if not path.exists():
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            write_atomic(path, whole)
        return [json.loads(line) for line in whole.splitlines()]

    def add(self, row: Row, details: dict[str, Any], mask: Mask, parent: str | None) -> Row:
        """Record a finished round: its mask snapshot, its details, its curve, and last its line of rounds.jsonl.

        A row whose masks and weights equal those on record is left alone and the old one returned.
        """
        self._write_mask(row, mask, parent)
        self._curves += [[row["round"], row["control"] or "", row["copy"], *point] for point in details["curve"]]
        known = self.rows.get(identity(row))
        same = known is not None and all(known[key] == row[key] for key in ("mask_digest", "weights_digest"))
        if known is not None and same:
            return known
        facts = {key: value for key, value in details.items() if key != "curve"}
        write_json(self.path / "rounds" / f"{self._stem(row)}.json", facts)
        self._write_curves()
        self.rows[identity(row)] = row
        if known is None:
            self._append(row)
        else:  # another version of torch or another machine: the table shows what is true now
            lines = "".join(json.dumps(r) + "\n" for r in self.rows.values())
            write_atomic(self.path / "rounds.jsonl", lines.encode())
        return row

    @staticmethod
    def _stem(row: Row) -> str:
        control = f".{row['control']}-{row['copy']}" if row["control"] else ""
        return f"round_{row['round']:03d}{control}"

    def mask_path(self, row: Row) -> Path:
        """The snapshot of a row's mask. The reinit control trains its ticket's own mask."""
        own = row if row["control"] != "reinit" else {**row, "control": None}
        return self.path / "masks" / f"{self._stem(own)}.safetensors"

    def _write_mask(self, row: Row, mask: Mask, parent: str | None) -> None:
        path = self.mask_path(row)
        if not path.exists() or Mask.load(path).digest != mask.digest:
            mask.save(path, round=row["round"], study=self.path.name, parent=parent)

    def _append(self, row: Row) -> None:
        with (self.path / "rounds.jsonl").open("ab") as file:
            file.write((json.dumps(row) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def _write_curves(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CURVE_COLUMNS)
        writer.writerows(self._curves)
        write_atomic(self.path / "curves.csv", text.getvalue().encode())
