"""A study's results as they are finished, mirrored in a tracking service, each exactly once.

A study that is continued is replayed from the store, row by row; the service is asked what it has on record, and is
handed the rest. Nothing that happens to the service stops the study.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from lottery.config import Config
from lottery.errors import LotteryError
from lottery.files import file_digest
from lottery.stages.lease import Lease, read_holder
from lottery.tracking.folder import Row
from lottery.tracking.guard import harmless
from lottery.tracking.rows import artifact_name, curve_rows, publishable, round_row, summary, tags
from lottery.tracking.sink import Image, Item, MaskFile, Metrics, Recorded, RunInfo, Sink

LOG = logging.getLogger("lottery")


class Mirror:
    """The tracker over a sink.

    Keys are fixed and the round is an axis: `round/test_accuracy`, `round/density/LAYER`, `round/probe/NAME`, and of a
    control `round/control/KIND-COPY/test_accuracy`, against `round`. Training curves (`curve/val_loss`,
    `curve/control/KIND-COPY/val_loss`, …) are drawn against `curve/total_step`: the tickets' trainings laid end to end,
    each control beside its ticket. `curve/round` and `curve/step` say which training and which step of it a point is.
    Each ticket's mask is a version, alias `round-007`, of one artifact of type `mask`.

    Of several processes that run the same study, the one that holds the lease mirrors it.
    """

    def __init__(self, config: Config, key: str, folder: Path, sink: Sink) -> None:
        self.config, self.key, self.folder, self.sink = config, key, folder, sink
        self.patience, self.lost = sink.patience, False
        self._lease = Lease(sink.folder, f"{config.name}/{key}")
        self._held = self._opened = False
        self._run: RunInfo | None = None
        self._recorded = Recorded()
        self._waiting: list[Item] = []  # not handed over yet
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
        items: list[Item] = [Metrics(point) for point in curve_rows(row, curve, self._curve_start)]
        items.append(Metrics(round_row(row)))
        if not row["control"]:
            items.append(MaskFile.of(row, artifact_name(self.config.name, self.key), mask))
        self._hand_over(*items)

    @harmless
    def figure(self, path: Path) -> None:
        """A figure, as an image."""
        self._hand_over(Image(f"figure/{path.stem}", path, file_digest(path)))

    def close(self, status: str) -> None:
        """End the run, and give back what the service changed in this process."""
        self._finish(status)
        self.sink.leave(min(self.patience, 10.0))
        with suppress(OSError):
            self._lease.release()

    # -- what they are made of --------------------------------------------------------------------------------------

    @harmless
    def _start(self, config_yaml: str) -> None:
        from omegaconf import OmegaConf

        options = self.config.tracker
        config = publishable(OmegaConf.to_container(OmegaConf.create(config_yaml), resolve=True))
        name = f"{self.config.name} seed {self.config.seed} ({self.key})"
        self._run = RunInfo(self.key, name, options.group or self.config.name, tags(config, options.tags), config)
        self.sink.folder.mkdir(parents=True, exist_ok=True)
        if not self._ours():
            LOG.info("%s: the study is mirrored by %s", self.label, read_holder(self.sink.folder))
        elif not self._recorded.finished:
            self._open()

    def _ours(self) -> bool:
        """Whether this process mirrors the study. What the service has on record is read when it begins to."""
        if not self._held and self._lease.acquire():
            self._held, self._recorded = True, self.sink.recorded()
        return self._held

    def _open(self) -> None:
        if not self._opened:
            assert self._run is not None, "start() comes first"
            self.sink.open(self._run)
            self._opened = True

    def _hand_over(self, *items: Item) -> None:
        """Hand over the items, and those that wait, but for what is on record."""
        self._waiting += items
        if not self._ours():
            return
        for item in self._waiting:
            if item.id not in self._recorded.items:
                self._open()
                self._record(item)
                self._recorded.items.add(item.id)
        self._waiting = []

    def _record(self, item: Item) -> None:
        if isinstance(item, Metrics):
            self.sink.metrics(item.figures)
        elif isinstance(item, Image):
            self.sink.image(item.key, item.path)
        else:
            self.sink.artifact(item, mask_metadata(item))

    @harmless
    def _finish(self, status: str) -> None:
        self._hand_over()
        if self._waiting:
            holder = read_holder(self.sink.folder)
            LOG.warning("%s: the study is mirrored by %s; if that ended, run the command again", self.label, holder)
        elif self._opened:
            if figures := summary(self._tickets):
                self.sink.summary(figures)
            self.sink.close(0 if status == "finished" else 1)


def mask_metadata(mask: MaskFile) -> dict[str, Any]:
    """What a version of the mask artifact says of itself. LotteryError where the file is not that mask, or damaged."""
    from lottery.ticket import read_metadata

    header = read_metadata(mask.path)
    if header["digest"] != mask.digest:
        raise LotteryError(f"{mask.path}: holds another mask than the table says")
    told = {"digest": mask.digest, "parent": header["parent"] or None, "study": header["study"]}
    return {"round": mask.round, "density": mask.density} | told
