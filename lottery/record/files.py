"""Write the files of a run folder where they are missing or altered, and list them in the manifest."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.files import Missing, parse_json, read_bytes, write_atomic
from lottery.record.manifest import Content, Manifest, read_manifest
from lottery.record.names import ROUNDS
from lottery.ticket import Mask, read_metadata

LOG = logging.getLogger("lottery")

MACHINE = ("seconds", "environment")  # keys of a row's details that change when a stage is computed anew


class Blocks:
    """A text file with one block of lines for each row of a study.

    Blocks that this run of the study has reached come first, in its order; then the blocks that only the file has.
    So a run that replays a finished study repairs blocks in place and keeps the rest.
    """

    def __init__(self, key: Callable[[bytes], Hashable], header: bytes = b"") -> None:
        """key: returns the key of a line's block; raises ValueError, KeyError or TypeError for a damaged line."""
        self.key = key
        self.header = header
        self.met: dict[Any, bytes] = {}
        self.found: dict[Any, list[bytes]] = {}  # in the file
        self.damaged: list[int] = []  # numbers of the complete lines in the file that have no key

    def read(self, data: bytes) -> None:
        """Read the blocks of a file. Damaged and torn lines are skipped; a file without the header has no blocks."""
        self.found, self.damaged = {}, []
        if not data.startswith(self.header):
            return
        for number, line in enumerate(data[len(self.header) :].splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            try:
                self.found.setdefault(self.key(line), []).append(line)
            except (ValueError, KeyError, TypeError):
                self.damaged.append(number)

    @property
    def verified(self) -> bytes:
        """The header and the blocks that this run has reached."""
        return self.header + b"".join(self.met.values())

    @property
    def data(self) -> bytes:
        """The content that the file should have now: the verified part, then the other blocks found in it."""
        return self.verified + b"".join(
            line for key, lines in self.found.items() if key not in self.met for line in lines
        )


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Format rows as lines of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def csv_key(columns: int) -> Callable[[bytes], tuple[str, ...]]:
    """Return a function from a CSV line to its key: its first `columns` cells, the first of which is a round."""

    def key(line: bytes) -> tuple[str, ...]:
        cells = line.decode().split(",", columns)[:columns]
        int(cells[0])
        return tuple(cells)

    return key


class Files:
    """The files that a study has written so far. A kill at any point leaves no file that the manifest contradicts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, Content] = {}
        self._written = Manifest()  # on disk
        self._own: set[str] = set()  # files that this run of the study has reached; a complete manifest lists these
        self.mended: set[str] = set()  # warnings of damage that this run mends
        self._said: set[str] = set()
        self._spoilt: dict[str, bool] = {}  # file of blocks -> whether it was unlisted or altered when first seen

    def read_manifest(self) -> str:
        """Read the manifest. Returns a description of its damage, or ""."""
        flaw = ""
        try:
            self._written = read_manifest(self.path) or Manifest()
        except LotteryError as error:
            self._written, flaw = Manifest(), f"{error}: its files are checked against the stages alone"
        self.files = dict(self._written.files)
        return flaw

    def altered(self, name: str, data: bytes | None) -> bool:
        """Whether the manifest lists this file but `data` is None (missing) or differs."""
        return name in self.files and (data is None or not self._written.holds(name, data))

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None where there is no such file."""
        try:
            return read_bytes(self.path / name)
        except Missing:
            return None

    def keep(self, name: str, data: bytes, known: bool = False) -> None:
        """Make a file hold `data`. known: the file should hold it already; where it does not, log that."""
        found = self.read(name)
        if found != data:
            if known and (found is None or name not in self.files or self.altered(name, found)):
                self.say(name, found is not None)
            self.forget(name)
            write_atomic(self.path / name, data)
        self.list(name, data)

    def keep_blocks(
        self, name: str, blocks: Blocks, known: bool, append: Callable[[bytes], None] | None = None
    ) -> None:
        """Make a file hold these blocks. append: adds bytes to the file, used where nothing else has to change.

        The manifest lists only the blocks that this run has reached, since the others may have been altered.
        """
        found, data = self.read(name) or b"", blocks.data
        spoilt = self._spoilt.setdefault(name, name not in self.files or self.altered(name, found))
        if found != data:
            if known and spoilt:
                self.say(name, bool(found))
            grows = data.startswith(found)
            if self._written.complete or not grows:
                self.forget(name)
            if append and grows:
                append(data[len(found) :])
            else:
                write_atomic(self.path / name, data)
        if Content.of(data) == self.files.get(name):
            self._own.add(name)
        elif data:
            self.list(name, blocks.verified)

    def keep_details(self, name: str, facts: dict[str, Any], known: bool) -> None:
        """Make a file of details hold these facts; its time and environment stay as they were first written."""
        found = self.read(name)
        data = (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()
        facts_found = found and _timeless(found)
        same = facts_found == _timeless(data) and not self.altered(name, found)
        known &= not facts_found or name in self.files  # an unlisted file may be of an older version
        self.keep(name, found if found and same else data, known)

    def keep_mask(self, name: str, mask: Mask, round: int, parent: str | None, known: bool) -> None:
        """Make a snapshot hold this mask, with its round, study and parent as metadata."""
        path, flaw = self.path / name, "another mask"
        try:
            if path.exists():
                said = read_metadata(path)
                whole = Mask.load(path).digest == mask.digest
                origin = str(round), self.path.name, parent or ""
                if whole and (said["round"], said["study"], said["parent"]) == origin:
                    return self.list(name, path.read_bytes())
        except LotteryError as error:
            flaw, known = str(error), True
        if known:
            self.say(name, path.exists(), flaw)
        self.forget(name)
        mask.save(path, round=round, study=self.path.name, parent=parent)
        self.list(name, path.read_bytes())

    def say(self, name: str, there: bool, flaw: str = "") -> None:
        """Log that a file is written again, but only once for each file."""
        if name not in self._said:
            self._said.add(name)
            why = f" ({flaw})" if there and flaw else ""
            self.warn(f"{self.path / name} was {'altered' if there else 'missing'}{why}; written again")

    def warn(self, text: str) -> None:
        """Log a warning of damage that is mended, so that the next run finds none."""
        self.mended.add(text)
        LOG.warning("%s", text)

    # -- the manifest -----------------------------------------------------------------------------------------------

    def list(self, name: str, data: bytes) -> None:
        """Note the content of a file; `write` puts it into the manifest."""
        self._own.add(name)
        self.files[name] = Content.of(data)

    def forget(self, name: str) -> None:
        """Remove a file that is about to be replaced from the manifest, until it is listed again."""
        if name in self.files:
            del self.files[name]
            self.write()

    def write(self, complete: bool = False, inputs: str = "", notes: Sequence[str] = ()) -> None:
        """Write the manifest if it has changed. complete: the study is finished, and every file is listed."""
        if complete:
            self.files = {name: self.files[name] for name in sorted(self._own)}
        else:
            complete = self._written.complete and self.files == self._written.files
        now = Manifest(dict(self.files), self.path.name, complete, inputs, tuple(notes))
        if now != self._written:
            now.write(self.path)
            self._written = now


def _timeless(data: bytes) -> Any:
    try:
        found = parse_json(data, ROUNDS)
    except LotteryError:
        return None
    return {name: value for name, value in found.items() if name not in MACHINE}
