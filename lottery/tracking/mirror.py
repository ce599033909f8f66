"""A study's results as they are finished, mirrored in a tracking service, each exactly once.

A study that is continued is replayed from the store, row by row; the service is asked what it has on record, and is
handed the rest. Nothing that happens to the service stops the study.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lottery.config import Config
from lottery.errors import LotteryError
from lottery.files import file_digest
from lottery.tracking.folder import Row
from lottery.tracking.guard import harmless
from lottery.tracking.rows import artifact_name, curve_rows, publishable, round_row, search_rows, summary, tags
from lottery.tracking.sink import Image, Item, MaskFile, Metrics, Recorded, RunInfo, Sink

LOG = logging.getLogger("lottery")


class Mirror:
    """The tracker over a sink.

    Keys are fixed and the round is an axis: `round/test_accuracy`, `round/density/LAYER`, `round/probe/NAME`, and of a
    control `round/control/KIND-COPY/test_accuracy`, against `round`. Training curves (`curve/val_loss`,
    `curve/control/KIND-COPY/val_loss`, …) are drawn against `curve/total_step`: the tickets' trainings laid end to end,
    each control beside its ticket. `curve/round` and `curve/step` say which training and which step of it a point is.
    A search for a mask is `search/NAME`, as in search.csv, against `search/step`.
    Each ticket's mask is a version, alias `round-007`, of one artifact of type `mask`.
    """

    def __init__(self, config: Config, key: str, folder: Path, sink: Sink) -> None:
        self.config, self.key, self.folder, self.sink = config, key, folder, sink
        self.patience, self.lost = sink.patience, False
        self._run: RunInfo | None = None
        self._opened = False
        self._recorded = Recorded()
        self._handed: list[str] = []
        self._curve_start = self._curve_end = 0
        self._tickets: list[Row] = []

    @property
    def label(self) -> str:
        return self.sink.label

    # -- the tracker's four methods ---------------------------------------------------------------------------------

    def start(self, config_yaml: str) -> None:
        """Open the run, unless the service knows the study as finished: then only if there is something new."""
        self.sink.enter()
        self._start(config_yaml)

    @harmless
    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None:
        """The training curve, the row, and for a ticket its mask."""
        if not row["control"]:
            self._curve_start = self._curve_end
            self._curve_end += max((point[0] for point in curve), default=row["steps"])
            self._tickets.append(row)
        for point in curve_rows(row, curve, self._curve_start):
            self._hand_over(Metrics(point))
        if not row["control"]:
            for point in search_rows(self.folder / "search.csv", row["round"]):
                self._hand_over(Metrics(point))
        self._hand_over(Metrics(round_row(row)))
        if not row["control"]:
            self._hand_over(MaskFile.of(row, artifact_name(self.config.name, self.key), mask))

    @harmless
    def figure(self, path: Path) -> None:
        """A figure, as an image."""
        self._hand_over(Image(f"figure/{path.stem}", path, file_digest(path)))

    def close(self, status: str) -> None:
        """End the run, and give back what the service changed in this process."""
        self._finish(status)
        self.sink.leave(min(self.patience, 10.0))

    # -- what they are made of --------------------------------------------------------------------------------------

    @harmless
    def _start(self, config_yaml: str) -> None:
        from omegaconf import OmegaConf

        options = self.config.tracker
        config = publishable(OmegaConf.to_container(OmegaConf.create(config_yaml), resolve=True))
        name = f"{self.config.name} seed {self.config.seed} ({self.key})"
        self._run = RunInfo(self.key, name, options.group or self.config.name, tags(config, options.tags), config)
        self._recorded = self.sink.recorded()
        if not self._recorded.finished:
            self._open()

    def _open(self) -> None:
        if not self._opened:
            assert self._run is not None, "start() comes first"
            self.sink.open(self._run)
            self._opened = True

    def _hand_over(self, item: Item) -> None:
        if item.id in self._recorded.items:
            return
        self._open()
        if isinstance(item, Metrics):
            self.sink.metrics(item.figures)
        elif isinstance(item, Image):
            self.sink.image(item.key, item.path)
        else:
            self.sink.artifact(item, item.metadata())
        self._recorded.items.add(item.id)
        self._handed.append(item.id)

    @harmless
    def _finish(self, status: str) -> None:
        if not self._opened:
            return
        self.sink.summary(summary(self._tickets))
        self.sink.close(0 if status == "finished" else 1)
        if self.sink.keeps and (missing := set(self._handed) - self.sink.recorded().items):
            raise LotteryError(f"{len(missing)} of {len(self._handed)} entries are not on its record")
