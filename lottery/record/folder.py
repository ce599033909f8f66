"""Write the run folder (design, 4.2): plain files, which are the record of truth."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from lottery.errors import ConfigError, Interrupted, LotteryError, cause
from lottery.lease import Lease, LeaseLost
from lottery.record.files import Blocks, Files, csv_key, csv_lines
from lottery.record.names import (
    CONFIG,
    CURVE_COLUMNS,
    CURVES,
    FIGURES,
    MASKS,
    ROUNDS,
    SEARCH,
    SEARCH_COLUMNS,
    STUDY_LOG,
    TABLE,
    details_file,
    mask_file,
    moving_mask_file,
    search_mask_file,
    stem,
)
from lottery.record.rows import Identity, Row, figures, identity, parse_row
from lottery.sharing import make_folder
from lottery.signals import StopFlag
from lottery.ticket import Mask


def _line_identity(line: bytes) -> Identity:
    """Return the identity of the row in a line. Raises ValueError for a line that is no row."""
    try:
        return identity(parse_row(line, TABLE))
    except LotteryError as error:
        raise ValueError(line) from error


class RunFolder(Files):
    """The folder of one study. A row on record that has the same figures stays as it was first written.

    Every other file that is missing or altered is written again from the stages, and the log says so.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.opened = False
        self.lease = Lease(path, f"{path.parent.name}/{path.name}")
        self.notes: list[str] = []  # damage found; logged later, since the log is opened after the folder
        self.rows: dict[Identity, Row] = {}  # on record
        self._suspect = False  # the table was altered after it was written
        self._table = Blocks(_line_identity)
        self._curves = Blocks(csv_key(3), csv_lines([CURVE_COLUMNS]))
        self._searches = Blocks(csv_key(1))

    def open(self, config_yaml: str, stop: StopFlag, on_wait: Callable[[str], None]) -> None:
        """Create the folder, or read the files that an earlier run of the study left. `close` releases it.

        Waits while another process runs the study, until that process has finished or died. Raises ConfigError where
        the folder is not writable, Interrupted on a signal.
        """
        self.create()
        self.lease.obtain(stop, on_wait, "this very study")  # removes temporary files, so write nothing before
        if flaw := self.read_manifest():
            self.notes.append(flaw)
        for name in (CONFIG, TABLE):
            if self.altered(name, found := self.read(name)):
                self._suspect |= name == TABLE
                self.notes.append(f"{self.path / name} was {'missing' if found is None else 'altered'}; repaired")
        self.keep(CONFIG, config_yaml.encode())
        self.notes += self._read_table()
        self._curves.read(self.read(CURVES) or b"")
        self.write()

    def close(self) -> None:
        self.lease.release()

    def create(self) -> None:
        """Create the folder and its subfolders. Raises ConfigError where that fails."""
        try:
            for name in (MASKS, ROUNDS, FIGURES):
                make_folder(self.path / name)
        except OSError as error:
            raise ConfigError(f"paths.runs: cannot write to {self.path}: {error.strerror}") from error
        self.opened = True

    # -- the table --------------------------------------------------------------------------------------------------

    def _read_table(self) -> list[str]:
        """Read the rows on disk, without torn, damaged and doubled lines. Returns notes for the log on the last two."""
        path, data = self.path / TABLE, self.read(TABLE) or b""
        self._table.read(data)
        notes = [
            f"{path}: line {number} was damaged; it is written again when its round is reached"
            for number in self._table.damaged
        ]
        if doubled := sum(len(lines) > 1 for lines in self._table.found.values()):
            notes.append(f"{path}: {doubled} rows were there more than once; one of each is kept")
        self._table.found = {key: lines[:1] for key, lines in self._table.found.items()}
        self.rows = {key: json.loads(lines[0]) for key, lines in self._table.found.items()}
        self._write_table()
        return notes

    def _write_table(self) -> None:
        self.keep_blocks(TABLE, self._table, False, self._append)

    def _append(self, lines: bytes) -> None:
        """Append lines to the table, and wait until they are on disk.

        Raises LeaseLost where another process has taken the study over; its table is then left unchanged.
        """
        with (self.path / TABLE).open("ab") as file:
            start = file.tell()
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
            try:
                self.lease.check()
            except LeaseLost:
                if os.fstat(file.fileno()).st_size == start + len(lines):
                    file.truncate(start)
                raise

    def add(self, row: Row, details: dict[str, Any], mask: Mask, parent: str | None) -> Row:
        """Record a finished round: mask snapshot, details, training curve, and last its line of the table.

        Returns the row on record, which is the old row where that has the same figures. Raises LeaseLost where another
        process has taken the study over.
        """
        self.lease.check()
        key = identity(row)
        if (self.read(TABLE) or b"") != self._table.data:  # another process has written the table
            for note in self._read_table():
                self.warn(note)
        known = self.rows.get(key)
        same = known is not None and self._same(known, row)
        self.keep_mask(mask_file(*key), mask, row["round"], parent, same)
        facts = {name: value for name, value in details.items() if name != "curve"}
        self.keep_details(details_file(*key), facts, same)
        place = [row["round"], row["control"] or "", row["copy"]]
        self._curves.met[tuple(map(str, place))] = csv_lines([*place, *point] for point in details["curve"])
        self.keep_blocks(CURVES, self._curves, same)
        if known is not None and not same:  # damaged, or computed by another version of torch or machine
            self.warn(f"{stem(*key)} on record had other figures; the table now shows what was found now")
        self._table.met[key] = self._table.found[key][0] if same else (json.dumps(row) + "\n").encode()
        self._write_table()
        self.write()
        self.rows[key] = known if known is not None and same else row
        return self.rows[key]

    def _same(self, known: Row, row: Row) -> bool:
        """Whether both rows have the same figures; where the table was altered, `seconds` must be equal too."""
        without = ("cached",) if self._suspect else ("seconds", "cached")
        return figures(known, without) == figures(row, without)

    def settle(self) -> None:
        """Drop rows on record that the study does not have. Called after the method has yielded its last round."""
        self.lease.check()
        if foreign := [stem(*key) for key in self.rows if key not in self._table.met]:
            self.warn(f"{self.path} held rows that the study does not have, and left out: {', '.join(foreign)}")
        for blocks in (self._table, self._curves, self._searches):
            blocks.found = {}
        self._write_table()
        self.keep_blocks(CURVES, self._curves, known=True)
        if self._searches.met:
            self.keep_blocks(SEARCH, self._searches, known=True)
        self.write()

    def seal(
        self, drawn: Sequence[Path], inputs: str = "", warnings: Sequence[str] = (), repeated: Container[str] = ()
    ) -> None:
        """Add the drawn files (figures, report) to the manifest and mark it complete: no file changes any more.

        inputs: see `Manifest`. They are left out if this run gave a warning that not every run gives (`repeated`), and
        not of damage that was mended: the next run may succeed where this one failed.
        """
        left = [each for each in warnings if each not in self.mended and each not in self.notes]
        self.lease.check()
        for path in filter(Path.is_file, drawn):
            self.list(str(path.relative_to(self.path)), path.read_bytes())
        self.write(True, inputs if all(each in repeated for each in left) else "", left)

    # -- the files of a row -----------------------------------------------------------------------------------------

    def mask_path(self, row: Row) -> Path:
        """Return the path of a row's mask snapshot."""
        return self.path / mask_file(*identity(row))

    def add_search(self, row: Row, log: Sequence[Mapping[str, Any]], snapshots: Mapping[int, Mask]) -> None:
        """Record the search for a round's mask: its log, and snapshots of intermediate masks (step -> mask)."""
        self.lease.check()
        known = identity(row) in self.rows
        for step, mask in snapshots.items():
            self.keep_mask(search_mask_file(step), mask, row["round"], None, known)
        if not self._searches.header:
            bins = [f"score_bin_{number:02d}" for number in range(1, len(log[0]["score_histogram"]) + 1)]
            self._searches.header = csv_lines([("round", *SEARCH_COLUMNS, *bins)])
            self._searches.read(self.read(SEARCH) or b"")
        entries = (
            [row["round"], *(entry[name] for name in SEARCH_COLUMNS), *entry["score_histogram"]] for entry in log
        )
        self._searches.met[str(row["round"]),] = csv_lines(entries)
        self.keep_blocks(SEARCH, self._searches, known)

    def add_snapshots(self, row: Row, snapshots: Mapping[int, Mask]) -> None:
        """Record masks on the way of a training whose mask moves (step -> mask)."""
        self.lease.check()
        for step, mask in snapshots.items():
            file = moving_mask_file(row["round"], step)
            self.keep_mask(file, mask, row["round"], None, identity(row) in self.rows)

    def add_units(self, row: Row, units: Mask) -> None:
        """Record the units that a layer ticket keeps, as a mask snapshot with one entry a unit."""
        self.lease.check()
        self.keep_mask(mask_file(*identity(row), units=True), units, row["round"], None, identity(row) in self.rows)

    def log_failure(self, error: Exception) -> None:
        """Write the error that ended the study to its log, with the traceback. The caller prints one line of it."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"{stamp}  {cause(error)}\n"
        if not isinstance(error, Interrupted | LeaseLost):
            text += "".join(traceback.format_exception(error))
        with suppress(OSError), (self.path / STUDY_LOG).open("a", encoding="utf-8") as file:
            file.write(text)  # may fail as well, when the disk is full
            if not isinstance(error, LotteryError):
                error.add_note(f"the traceback is in {file.name}")


def check_writable(folders: Mapping[str, Path]) -> None:
    """Create folders (configuration key -> folder), and test writing and renaming a file in each.

    Raises ConfigError, which names the key, for the first folder that fails; new folders are then removed again.
    """
    made: list[Path] = []
    for key, folder in folders.items():
        made = [*(path for path in (folder, *folder.parents) if not path.exists()), *made]
        probes, written = [folder / f".{uuid4().hex}.tmp" for _ in range(2)], False
        try:
            make_folder(folder)
            for probe in probes:
                probe.write_bytes(b"x")
            written = True
            os.replace(*probes)
            probes[1].unlink()
        except OSError as error:
            for path in (*probes, *made):
                with suppress(OSError):
                    path.unlink() if path in probes else path.rmdir()
            flaw = f"{folder} is on a file system without atomic rename ({error.strerror}); choose another folder"
            raise ConfigError(
                f"{key}: {flaw}" if written else f"{key}: cannot write to {folder}: {error.strerror}"
            ) from error
