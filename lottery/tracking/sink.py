"""What a mirror needs of a tracking service: four calls, and what the service has on record already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lottery.errors import LotteryError

Figures = Mapping[str, float]


@dataclass(frozen=True)
class RunInfo:
    """Which run of the service a study is: the same each time the study runs."""

    key: str
    name: str  # for people; as unique as the key, which it ends with
    group: str
    tags: list[str]
    config: dict[str, Any]  # nothing in it says where things lie on this machine


@dataclass(frozen=True)
class Metrics:
    """A row of figures."""

    figures: Figures

    @property
    def id(self) -> str:
        """The same for the same names and values, whether they are written 1 or 1.0."""
        row = {name: float(value) for name, value in sorted(self.figures.items())}
        return hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Image:
    """A figure: a PNG file, and its sha256."""

    key: str
    path: Path
    digest: str

    @property
    def id(self) -> str:
        return f"{self.key} {self.digest[:16]}"


@dataclass(frozen=True)
class MaskFile:
    """A ticket's mask: a version of the study's artifact of type `mask`."""

    artifact: str
    path: Path
    round: int
    density: float
    digest: str  # the mask's own

    @classmethod
    def of(cls, row: Mapping[str, Any], artifact: str, path: Path) -> MaskFile:
        return cls(artifact, path, row["round"], row["density"], row["mask_digest"])

    @property
    def alias(self) -> str:
        return f"round-{self.round:03d}"

    @property
    def id(self) -> str:
        return f"{self.alias} {self.digest[:16]}"

    def metadata(self) -> dict[str, Any]:
        """What the version says of itself. LotteryError where the file is damaged, or not the mask it should be."""
        from lottery.ticket import read_metadata

        header = read_metadata(self.path)
        if header["digest"] != self.digest:
            raise LotteryError(f"{self.path}: holds another mask than the table says")
        told = {"digest": self.digest, "parent": header["parent"] or None, "study": header["study"]}
        return {"round": self.round, "density": self.density} | told


Item = Metrics | Image | MaskFile


@dataclass
class Recorded:
    """What a service has of a study: the ids of the items, and whether it was told that the study is done."""

    items: set[str] = field(default_factory=set)
    finished: bool = False


class Sink(Protocol):
    """A tracking service, for one study. `open` comes before the calls that record; `leave` may come at any time.

    What it raises, or that it hangs, is its user's to handle; `leave` raises nothing and hangs no longer than
    its argument.
    """

    label: str  # its name in a warning
    patience: float  # seconds after which a call has hung
    keeps: bool  # whether what is handed over will be on record (False where the service is disabled)

    def enter(self) -> None:
        """Prepare this process."""

    def recorded(self) -> Recorded:
        """What is on record from earlier runs of the study, and from this one as far as it is safe from a kill."""

    def open(self, run: RunInfo) -> None:
        """Begin the study's run, or continue it."""

    def metrics(self, figures: Figures) -> None:
        """Record a row; the service counts the rows."""

    def image(self, key: str, path: Path) -> None:
        """Record a figure."""

    def artifact(self, mask: MaskFile, metadata: dict[str, Any]) -> None:
        """Record a mask as a version of an artifact."""

    def summary(self, figures: Figures) -> None:
        """Say what came out of the study as a whole."""

    def close(self, exit_code: int) -> None:
        """End the run: all that was recorded is safe when this returns."""

    def leave(self, seconds: float) -> None:
        """Undo what the service did to this process, by force if it does not answer."""
