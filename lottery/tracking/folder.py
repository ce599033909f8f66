"""The run folder (design, 4.2): the plain files that are always written, and the record of truth."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from lottery.errors import ConfigError, Interrupted, LotteryError, cause
from lottery.files import write_atomic, write_json
from lottery.stages.lease import Lease
from lottery.ticket import Mask
from lottery.training.signals import StopFlag

if TYPE_CHECKING:
    from lottery.stages.search import Searched

LOG = logging.getLogger("lottery")

CURVE_COLUMNS = ("round", "control", "copy", "step", "split", "loss", "accuracy")
# Besides the histogram of the scores. swaps: weights that came in (and went out) a step, since the entry before.
SEARCH_COLUMNS = ("step", "train_loss", "val_loss", "val_accuracy", "swaps", "magnitude_iou", "score_low", "score_high")

Row = dict[str, Any]


Identity = tuple[int, str | None, int]


def identity(row: Row) -> Identity:
    """What makes a row of the table the same row: round, control, copy."""
    return row["round"], row["control"], row.get("copy", 0)


def figures(row: Row) -> str:
    """All that a row says, but for how long it took."""
    return json.dumps({key: value for key, value in row.items() if key not in ("seconds", "cached")}, sort_keys=True)


class RunFolder:
    """One study's folder. Rows that are already there stay as they were first written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened = False
        self.lease = Lease(path, f"{path.parent.name}/{path.name}")
        self.notes: list[str] = []  # what was found damaged, for the log, which is opened after the folder
        self.rows: dict[Identity, Row] = {}
        self._met: list[Identity] = []  # the rows that this run has come to, in the order of the method
        self._curves: list[list[Any]] = []
        self._searches: list[list[Any]] = []

    def open(self, config_yaml: str, stop: StopFlag, on_wait: Callable[[str], None]) -> None:
        """Create the folder, or read what an earlier run of the same study left; `close` gives it free again.

        Where another process runs this very study, wait until it has finished, or has died. Raises ConfigError where
        the folder cannot be written to, Interrupted on a signal.
        """
        self.create(config_yaml)
        self.lease.obtain(stop, on_wait, "this very study")
        for row in self._read_rows():
            self.rows[identity(row)] = row

    def close(self) -> None:
        self.lease.release()

    def create(self, config_yaml: str) -> None:
        """The folder and its configuration. Raises ConfigError where they cannot be written."""
        try:
            for name in ("masks", "rounds", "figures"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / "config.yaml", config_yaml.encode())
        except (OSError, LotteryError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"paths.runs: cannot write to {self.path}: {reason}") from error
        self.opened = True

    def _read_rows(self) -> list[Row]:
        """The complete lines of rounds.jsonl: a torn last one, left by a kill, is cut off, a damaged one dropped."""
        path = self.path / "rounds.jsonl"
        if not path.exists():
            return []
        data = path.read_bytes()
        rows, lines = [], data.splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line if line.endswith(b"\n") else b"")
                identity(row)
                rows.append(row)
            except (ValueError, KeyError, TypeError):
                if line.endswith(b"\n"):
                    self.notes.append(
                        f"{path}: line {number} was damaged; it is written again when its round is reached"
                    )
        if len(rows) < len(lines):
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return rows

    def add(self, row: Row, details: dict[str, Any], mask: Mask, parent: str | None) -> Row:
        """Record a finished round: its mask snapshot, its details, its curve, and last its line of rounds.jsonl.

        A row that is on record with the same figures is left alone and the old one returned. Raises LeaseLost where
        another process has taken the study over.
        """
        self.lease.check()
        self._write_mask(row, mask, parent)
        self._curves += [[row["round"], row["control"] or "", row["copy"], *point] for point in details["curve"]]
        key, known = identity(row), self.rows.get(identity(row))
        complete = set(self.rows) <= set(self._met)
        self._met.append(key)
        if known is not None and figures(known) == figures(row):
            return known
        facts = {name: value for name, value in details.items() if name != "curve"}
        write_json(self.path / "rounds" / f"{self._stem(row)}.json", facts)
        self._write_curves()
        self.rows[key] = row
        if known is None and complete:
            self._append(row)
            return row
        if known is not None:  # damaged, or found by another version of torch or on another machine
            LOG.warning("%s on record had other figures; the table now shows what was found now", self._stem(row))
        table = [self.rows[i] for i in dict.fromkeys([*self._met, *self.rows])]
        write_atomic(self.path / "rounds.jsonl", "".join(json.dumps(r) + "\n" for r in table).encode())
        return row

    @staticmethod
    def _stem(row: Row) -> str:
        control = f".{row['control']}-{row['copy']}" if row["control"] else ""
        return f"round_{row['round']:03d}{control}"

    def mask_path(self, row: Row) -> Path:
        """The snapshot of a row's mask. The reinit control trains its ticket's own mask."""
        own = row if row["control"] != "reinit" else {**row, "control": None}
        return self.path / "masks" / f"{self._stem(own)}.safetensors"

    def add_search(self, row: Row, search: Searched) -> None:
        """Record how the mask of a round was searched for: `search.csv`, and the masks on the way."""
        self.lease.check()
        for step, mask in search.snapshots.items():
            path = self.path / "masks" / "search" / f"step_{step:08d}.safetensors"
            path.parent.mkdir(exist_ok=True)
            self._write_mask_to(path, mask, row["round"], None)
        for entry in search.result["log"]:
            self._searches.append([row["round"], *(entry[name] for name in SEARCH_COLUMNS), *entry["score_histogram"]])
        bins = [f"score_bin_{number:02d}" for number in range(1, len(self._searches[0]) - len(SEARCH_COLUMNS))]
        self._write_csv("search.csv", ("round", *SEARCH_COLUMNS, *bins), self._searches)

    def add_units(self, row: Row, units: Mask) -> None:
        """Record which units a layer ticket keeps: a snapshot like that of its mask, one entry a unit."""
        self.lease.check()
        path = self.mask_path(row)
        self._write_mask_to(path.with_name(f"{path.stem}.units.safetensors"), units, row["round"], None)

    def _write_mask(self, row: Row, mask: Mask, parent: str | None) -> None:
        self._write_mask_to(self.mask_path(row), mask, row["round"], parent)

    def _write_mask_to(self, path: Path, mask: Mask, round: int, parent: str | None) -> None:
        try:
            if path.exists() and Mask.load(path).digest == mask.digest:
                return
        except LotteryError as error:
            LOG.warning("%s; written again from the mask found now", error)
        mask.save(path, round=round, study=self.path.name, parent=parent)

    def _append(self, row: Row) -> None:
        with (self.path / "rounds.jsonl").open("ab") as file:
            file.write((json.dumps(row) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def _write_curves(self) -> None:
        self._write_csv("curves.csv", CURVE_COLUMNS, self._curves)

    def _write_csv(self, name: str, columns: Sequence[str], rows: list[list[Any]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        write_atomic(self.path / name, text.getvalue().encode())

    def log_failure(self, error: Exception) -> None:
        """Write what ended the study to study.log, with its traceback; on the terminal it is the caller's one line."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"{stamp}  {cause(error)}\n"
        if not isinstance(error, Interrupted):
            text += "".join(traceback.format_exception(error))
        with (
            suppress(OSError),
            (self.path / "study.log").open("a", encoding="utf-8") as file,
        ):  # a full disk may be what ended it
            file.write(text)
            if not isinstance(error, LotteryError):
                error.add_note(f"the traceback is in {file.name}")


def check_writable(folders: Mapping[str, Path]) -> None:
    """Create the folders, each named by its configuration key, and try to write in them.

    Raises ConfigError, naming the key, for the first that cannot be written to; then no folder is left that was new.
    """
    made: list[Path] = []
    for key, folder in folders.items():
        made = [*(path for path in (folder, *folder.parents) if not path.exists()), *made]
        probe = folder / f".{uuid4().hex}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
            check_rename(probe, key)
            probe.unlink()
        except OSError as error:
            for path in (probe, *made):
                with suppress(OSError):
                    path.unlink() if path is probe else path.rmdir()
            raise ConfigError(f"{key}: cannot write to {folder}: {error.strerror}") from error


def check_rename(probe: Path, key: str) -> None:
    """Raise ConfigError where a file cannot be replaced by renaming another: then no write is whole or absent."""
    other = probe.with_suffix(".other.tmp")
    other.write_bytes(b"y")
    try:
        os.replace(other, probe)
    except OSError as error:
        for path in (other, probe):
            path.unlink()
        raise ConfigError(
            f"{key}: {probe.parent} is on a file system without atomic rename ({error.strerror}); choose another folder"
        ) from error
