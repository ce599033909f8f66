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
from lottery.record.folders import find_runs
from lottery.record.manifest import read_file, remedy
from lottery.record.names import MASKS, ROUNDS, SEARCH, TABLE, details_file, mask_file
from lottery.record.rows import Row, identity, parse_row, read_rows
from lottery.record.status import Status, finished
from lottery.tensor_files import END

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from lottery.record.masks import PackedMask
    from lottery.record.weights import Weights
    from lottery.ticket import Mask, Ticket

TAIL_BYTES = 64 * 1024  # of the table; enough for the last ticket and its controls after it


def load_run(path: str | Path) -> Run:
    """Return a run folder, or the only one below a folder.

    Raises LotteryError where there is none, or where there are several, whose names it lists.

    >>> run = lottery.load_run("runs/imp_rewind")
    >>> run.config["train"]["steps"]
    '40it'
    >>> run.table[["round", "control", "density"]]
       round control  density
    0      0     NaN      1.0
    1      1     NaN      0.8
    2      1  reinit      0.8
    3      1  random      0.8
    """
    found = find_runs([path])
    if len(found) > 1:
        names = ", ".join(str(folder) for folder in found[:4]) + (", ..." if len(found) > 4 else "")
        raise LotteryError(f"{path}: {len(found)} run folders, expected one; name one of {names}")
    return Run(found[0])


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

    def require(self, round: int, control: str | None = None, copy: int = 0) -> Row:
        """Return one row. Raises LotteryError, which lists the finished rounds, where the study does not have it."""
        if (row := self.row(round, control, copy)) is not None:
            return row
        wanted = f"round {round}" + (f", control {control} {copy}" if control else "")
        tickets = ", ".join(str(row["round"]) for row in self.rows if not row["control"])
        controls = ", ".join(f"{row['round']} {row['control']} {row['copy']}" for row in self.rows if row["control"])
        listed = (f"rounds {tickets}" if self.rows else "finished none yet") + (controls and f"; controls {controls}")
        status = self.status
        state = "" if status is None or status.done else f"; the study is not finished ({status.state})"
        raise LotteryError(f"{self.path}: has no {wanted}; it has {listed}{state}")

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
        """Return the mask of a row. Raises LotteryError where the file is damaged or holds another mask.

        >>> run = lottery.load_run("runs/imp_rewind")
        >>> run.mask(1)
        Mask(2 tensors, 320 of 400 weights kept, 80.00%)
        """
        from lottery.ticket import Mask

        name = mask_file(round, control, copy)
        try:
            mask = Mask.load(self.path / name)
        except LotteryError as error:
            self.require(round, control, copy)
            raise LotteryError(f"{error}; {remedy(self.path, name)}") from error
        self._check_digest(name, mask.digest, self.row(round, control, copy) or {})
        return mask

    def ticket(self, round: int, control: str | None = None, copy: int = 0, trust: bool = False) -> Ticket:
        """Return the ticket of a row: its mask, and `state`, the weights that its training started from.

        `ticket.state.tensors()` are the weights as they were rewound, with the pruned ones; `ticket.mask.apply` zeroes
        these. Initial weights are drawn again from the seed, other ones are read from the store. `recipe` is None.

        trust: call a network's factory, or a data source, that the folder names and that you have never run
        Raises LotteryError where the weights are nowhere (any more); it names the command that computes them.

        >>> run = lottery.load_run("runs/imp_rewind")
        >>> ticket = run.ticket(1)
        >>> ticket.step
        10
        >>> ticket.mask == run.mask(1)
        True
        """
        return self.stored(round, control, copy, trust).ticket

    def network(
        self, round: int, control: str | None = None, copy: int = 0, at: str = "end", trust: bool = False
    ) -> nn.Module:
        """Return the network of a row on the CPU, in training mode, with its weights; pruned ones are exactly zero.

        at: "end" of its training, "start" (the rewound weights), or "early_stop" (lowest validation loss)
        trust: as in `ticket`
        The units that a layer ticket removes are in the network, and add nothing to its output.
        Raises LotteryError where the weights are nowhere (any more); it names the command that computes them.

        >>> run = lottery.load_run("runs/imp_rewind")
        >>> network = run.network(1, at="start")
        >>> network.fc1.weight[~run.mask(1)["fc1.weight"]].any()
        tensor(False)
        """
        return self.stored(round, control, copy, trust).network(at)

    def stored(self, round: int, control: str | None = None, copy: int = 0, trust: bool = False) -> Weights:
        """Return what `ticket` and `network` read the states of a row by. Raises LotteryError without such a row."""
        from lottery.record.weights import Weights

        return Weights(self, self.require(round, control, copy), trust)

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
        paths = [store / "train" / stage / END for store in self.stores]
        return next((path for path in paths if path.is_file()), None)
