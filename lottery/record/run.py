"""Read a run folder, which `lottery.record.folder` wrote. Torch and pandas are imported only where needed."""

from __future__ import annotations

import csv
import io
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.errors import LotteryError
from lottery.files import Missing, Unreadable, parse_json
from lottery.record.config import check_folder, config_leaves, read_config
from lottery.record.manifest import read_file, remedy
from lottery.record.names import MASKS, ROUNDS, SEARCH, TABLE, details_file, mask_file
from lottery.record.rows import Row, identity, parse_row, read_rows
from lottery.record.status import Status, finished

if TYPE_CHECKING:
    import pandas as pd

    from lottery.record.masks import PackedMask
    from lottery.ticket import Mask

TAIL_BYTES = 64 * 1024  # of the table; enough for the last ticket and its controls after it


class Run:
    """One run folder. Each part is read on first use, and checked against the folder's manifest."""

    def __init__(self, path: str | Path, lenient: bool = False) -> None:
        """lenient: skip a damaged line of the table with a warning, instead of raising LotteryError."""
        self.path, self.lenient = Path(path), lenient

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def key(self) -> str:
        """The study's key, which is the name of the folder."""
        return self.path.resolve().name

    @property
    def name(self) -> str:
        """Name and key of the study, such as "imp_rewind/0123456789ab"."""
        return f"{self.path.resolve().parent.name}/{self.key}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration. Raises LotteryError where it is missing, altered or incomplete."""
        return read_config(self.path)

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """The configuration as dotted key -> value, lists as tuples."""
        return config_leaves(self.path)

    @property
    def status(self) -> Status | None:
        """The study's present status, read anew at each access; None where the folder has no readable status."""
        return Status.read(self.path)

    @property
    def finished(self) -> bool:
        """Whether the study has done all its rounds."""
        return finished(self.path)

    # -- the table --------------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[Row]:
        """The rows as dictionaries, one a round, control and copy, in the order in which they were finished.

        Raises LotteryError where the folder does not exist, or the table is damaged or altered.
        """
        check_folder(self.path)
        return read_rows(self.path, self.lenient)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows as a table, in the format of `load_runs`."""
        from lottery.record.frame import frame_of

        return frame_of([self])

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The training curves: round, control, copy, step, split, loss, accuracy. LotteryError where there are none."""
        from lottery.record.frame import read_curves

        curves = read_curves(self.path)
        return curves.assign(control=curves["control"].where(curves["control"] != "", None))

    def row(self, round: int, control: str | None = None, copy: int = 0) -> Row | None:
        """Return one row, or None where the study does not have it (yet)."""
        return next((row for row in self.rows if identity(row) == (round, control, copy)), None)

    def latest_ticket(self) -> Row:
        """Return the last ticket's row, or {}. Reads only the end of the file, without checking the manifest."""
        path = self.path / TABLE
        with suppress(OSError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            for line in reversed(file.read().split(b"\n")[:-1]):
                with suppress(Unreadable):
                    if (row := parse_row(line, path))["control"] is None:
                        return row
        return {}

    # -- the files of rows ------------------------------------------------------------------------------------------

    def details(self, round: int, control: str | None = None, copy: int = 0) -> dict[str, Any]:
        """Return the origin of a row's numbers: stages, digests, versions.

        Raises Missing where the study never wrote the file; LotteryError where it was lost, damaged or altered.
        """
        return self.read_json(details_file(round, control, copy))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder. Raises the errors of `details`."""
        return parse_json(read_file(self.path, name), self.path / name, remedy(self.path, name))

    @property
    def details_files(self) -> list[str]:
        """The names of all files that `details` reads, sorted."""
        return sorted(f"{ROUNDS}/{path.name}" for path in (self.path / ROUNDS).glob("round_*.json"))

    @property
    def mask_files(self) -> list[Path]:
        """The mask snapshots, sorted, without the intermediate masks of a search."""
        return sorted((self.path / MASKS).glob("*.safetensors"))

    def mask(self, round: int, control: str | None = None, copy: int = 0) -> Mask:
        """Return the mask of a row. Raises LotteryError where the file is damaged or holds another mask."""
        from lottery.ticket import Mask

        name = mask_file(round, control, copy)
        try:
            mask = Mask.load(self.path / name)
        except LotteryError as error:
            raise LotteryError(f"{error}; {remedy(self.path, name)}") from error
        self._check_digest(name, mask.digest, self.row(round, control, copy) or {})
        return mask

    def packed_mask(self, row: Row) -> PackedMask:
        """Return the mask of a ticket's row, without torch. Raises the errors of `mask`."""
        from lottery.record.masks import read_mask

        name = mask_file(row["round"])
        try:
            mask = read_mask(self.path / name)
        except LotteryError as error:
            raise LotteryError(f"{error}; {remedy(self.path, name)}") from error
        self._check_digest(name, mask.digest, row)
        return mask

    def _check_digest(self, name: str, digest: str, row: Row) -> None:
        if row.get("mask_digest") not in (None, digest):
            raise LotteryError(f"{self.path / name}: not the mask that {TABLE} names; {remedy(self.path, name)}")

    @property
    def search(self) -> list[dict[str, float | None]]:
        """The logs of searches for masks, an entry a logged step; None if not measured. LotteryError if damaged."""
        try:
            text = read_file(self.path, SEARCH).decode("utf-8")
            return [
                {name: float(cell) if cell else None for name, cell in row.items()}
                for row in csv.DictReader(io.StringIO(text))
            ]
        except Missing:
            return []
        except (ValueError, TypeError, csv.Error) as error:
            raise LotteryError(f"{self.path / SEARCH}: damaged; {remedy(self.path, SEARCH)}") from error

    @property
    def stores(self) -> list[Path]:
        """The stores that may hold its stages: the configured one, and the one beside a run folder that was moved."""
        return [Path(self.config["paths"]["store"]), self.path.resolve().parent.parent / ".store"]

    def trained_weights(self, stage: str) -> Path | None:
        """Return the file with the final weights of a training stage, or None where no store has it any more."""
        paths = [store / "train" / stage / "state.safetensors" for store in self.stores]
        return next((path for path in paths if path.is_file()), None)
