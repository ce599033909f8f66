"""A sink that keeps what it is given, and raises on what a real service drops, refuses or misreads without a word."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lottery.tracking.items import Artifact, Image, Item, Metrics, RunInfo, Table
from lottery.tracking.wandb_log import Recorded

MEGABYTE = 1 << 20
MAX_KEYS = 1000


class Refused(Exception):
    """What a real service would not have recorded."""


@dataclass
class Service:
    """What outlives the processes: the record of one study."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[tuple[str, bytes]] = field(default_factory=list)
    masks: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # artifact, alias, metadata
    tables: list[Table] = field(default_factory=list)
    items: set[str] = field(default_factory=set)
    runs: list[RunInfo] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def keys(self) -> set[str]:
        return {key for row in self.rows for key in row}


class RecordingSink:
    """A sink over a `Service`."""

    label = "the recording"
    patience = 10.0
    keeps = True

    def __init__(self, service: Service) -> None:
        self.service = service
        self.state = "new"

    def enter(self) -> None:
        self._be("new", "entered")

    def recorded(self) -> Recorded:
        return Recorded(set(self.service.items), finished=self.service.exit_code == 0)

    def open(self, run: RunInfo) -> None:
        self._be("entered", "open")
        if self.service.runs and self.service.runs[0].key != run.key:
            raise Refused("a study is one run")
        if len(json.dumps(run.config, allow_nan=False)) > 10 * MEGABYTE:
            raise Refused("a configuration is at most 10 MB")
        if any(not 0 < len(tag) <= 64 for tag in run.tags):
            raise Refused("a tag is 1 to 64 characters")
        self.service.runs.append(run)
        self.service.exit_code = None

    def take(self, item: Item) -> None:
        if isinstance(item, Metrics):
            self.metrics(item.figures)
        elif isinstance(item, Image):
            self.image(item.key, item.path)
        elif isinstance(item, Table):
            self.table(item)
        else:
            self.artifact(item, item.metadata())

    def metrics(self, figures: Mapping[str, float]) -> None:
        self._be("open", "open")
        for name, value in figures.items():
            if type(value) not in (int, float):
                raise Refused(f"{name}: a figure is a plain number, got {value!r}")
            if name in ("step", "_step", "global_step") or name.startswith("_"):
                raise Refused(f"{name}: the service counts the rows; a row with a smaller step would be dropped")
        if len(self.service.keys | set(figures)) > MAX_KEYS:
            raise Refused(f"more than {MAX_KEYS} names: a round is an axis, not a name")
        self.service.rows.append(dict(figures))
        self.service.items.add(Metrics(figures).id)

    def image(self, key: str, path: Path) -> None:
        self._be("open", "open")
        data = path.read_bytes()
        if not data.startswith(b"\x89PNG"):
            raise Refused(f"{path}: not an image")
        self.service.images.append((key, data))
        self.service.items.add(Image(key, path, hashlib.sha256(data).hexdigest()).id)

    def table(self, table: Table) -> None:
        self._be("open", "open")
        if any(len(row) != len(table.columns) for row in table.rows):
            raise Refused("a row has a value for each column")
        if any(not isinstance(value, str | int | float | None) for row in table.rows for value in row):
            raise Refused("a value of a table is a number, a text or nothing")
        self.service.tables.append(table)
        self.service.items.add(table.id)

    def artifact(self, mask: Artifact, metadata: dict[str, Any]) -> None:
        self._be("open", "open")
        for name in (mask.name, mask.alias):
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name):
                raise Refused(f"{name!r}: a name is made of letters, digits, '.', '_' and '-'")
        if len(json.dumps(metadata, allow_nan=False)) > MEGABYTE:
            raise Refused("metadata are at most 1 MB")
        if not (mask.path and mask.path.is_file()):
            raise Refused(f"{mask.path}: no such file")
        self.service.masks.append((mask.name, mask.alias, metadata))
        self.service.items.add(mask.id)

    def summary(self, figures: Mapping[str, float]) -> None:
        self._be("open", "open")
        self.service.summary |= figures

    def close(self, exit_code: int) -> None:
        self._be("open", "closed")
        self.service.exit_code = exit_code

    def leave(self, seconds: float) -> None:
        if self.state == "left":
            raise Refused("left twice")
        self.state = "left"

    def _be(self, before: str, after: str) -> None:
        if self.state != before:
            raise Refused(f"called while it is {self.state}, expected {before}")
        self.state = after
