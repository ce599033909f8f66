"""Compare the data and the user's own code that the rounds on record came from with those of today. Torch-free."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.files import Unreadable, read_json, write_json
from lottery.own_code import file_of, folder_of
from lottery.record.names import OWN_CODE, ROUNDS
from lottery.values import fits

SHORT = 12  # digits of a digest that a message shows


@dataclass(frozen=True)
class Provenance:
    """The sources of a study's numbers besides its configuration: the data set, and the user's own code."""

    name: str  # of the data set
    data: str  # digest
    code: dict[str, str] = field(default_factory=dict)  # module of the user's own -> digest

    def record(self) -> dict[str, Any]:
        """Return the entries for a row's details."""
        return {"data": self.data, "own_code": self.code}

    def noted(self, folder: Path) -> list[str]:
        """Write where own code is into a run folder, and return a line for each thing that changed since its rounds."""
        self.keep_folders(folder)
        return self.changes(folder)

    def keep_folders(self, folder: Path) -> None:
        """Write the folders of the user's modules into a run folder, if there are any, for `code_folders`."""
        if found := sorted({str(place) for module in self.code if (place := folder_of(module)) is not None}):
            write_json(folder / OWN_CODE, {"folders": found})

    def changes(self, folder: Path) -> list[str]:
        """Return one line if the data, and one if the user's code, differ from those of rounds on record in a folder.

        Each line gives the time of the last such round. Rounds without readable provenance are skipped.
        """
        data, code = dict[str, float](), dict[str, float]()  # former digest or module -> time of its last round
        for path in sorted((folder / ROUNDS).glob("round_*.json")):
            try:
                then, when = read_json(path), path.stat().st_mtime
                digest, edited = then["data"], {module for module, _ in then["own_code"].items() ^ self.code.items()}
            except (LotteryError, OSError, KeyError, TypeError, AttributeError):
                continue
            if digest != self.data:
                data[digest] = max(when, data.get(digest, 0.0))
            for module in edited:
                code[module] = max(when, code.get(module, 0.0))
        lines = []
        if data:
            former = max(data, key=lambda digest: data[digest])
            lines.append(
                f"data set {self.name}: not the data that the rounds on record up to {_said(data[former])} were "
                f"computed with (digest {former[:SHORT]}, now {self.data[:SHORT]}); "
                "these rounds are computed again and replaced"
            )
        if code:
            files = ", ".join(str(file_of(module) or module) for module in sorted(code))
            lines.append(
                f"own code: {files} changed since the rounds on record up to {_said(max(code.values()))} were "
                "computed; what depends on it is computed again"
            )
        return lines


def code_folders(folder: Path) -> list[str]:
    """Return the folders where the user's own modules were when the study of a run folder last ran; [] if unknown."""
    with suppress(Unreadable):
        found = read_json(folder / OWN_CODE).get("folders")
        return found if fits(found, list[str]) else []
    return []


def _said(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
