"""Mirror a study's results in a tracking service as they are finished, each exactly once.

A continued study is replayed from the store row by row, and only items without a record are sent. Failures of the
service never stop the study.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.config import Config
from lottery.errors import LotteryError, cause
from lottery.files import file_digest
from lottery.record.rows import Row
from lottery.tracking.items import (
    Artifact,
    Image,
    Item,
    Metrics,
    RunInfo,
    Table,
    curve_rows,
    publish,
    round_items,
    summary,
)  # fmt: skip
from lottery.tracking.wandb_guard import within
from lottery.tracking.wandb_log import Recorded

if TYPE_CHECKING:
    from lottery.tracking.wandb import WandbSink

LOG = logging.getLogger("lottery")


def harmless(method: Callable[..., None]) -> Callable[..., None]:
    """Decorate a method of the mirror: a failure or hang causes one warning, and disables the mirror.

    The method runs in a separate thread, since a service that is stopped or waits for a disk blocks its caller.
    """

    @wraps(method)
    def guarded(self: Mirror, *args: Any) -> None:
        if self.lost:
            return
        try:
            within(self.patience, lambda: method(self, *args))
        except (Exception, SystemExit) as error:
            self.lost = True
            what = f"{self.sink.label} failed ({cause(error)})"
            LOG.warning("%s: the study goes on without it, all results are in %s", what, self.folder)

    return guarded


class Mirror:
    """The tracker that passes results to a sink.

    Keys are fixed, with `round` as their axis: `round/test_accuracy`, and `round/control/KIND-0/test_accuracy` for the
    first copy of a control. Training curves (`curve/val_loss`, `curve/lr`, …) have the axis `curve/total_step`: the
    tickets' trainings end to end, each control beside its ticket. `curve/round` and `curve/step` give the training of a
    point and the step in it. A search for a mask is `search/NAME`, as in search.csv, with the axis `search/step`. The
    course of a mask that moves is `moving/NAME`, with the axis `moving/step`.
    Keys that W&B shall not draw by itself begin with `more/`: `more/round/density/LAYER`, `more/round/probe/NAME`,
    `more/round/control/KIND-COPY/NAME`, `more/curve/control/KIND-COPY/val_loss` (`items.placed`).
    The table `rounds` has a row for each row of the study.
    Each ticket's mask is a version, alias `round-007`, of one artifact of type `mask`.
    """

    def __init__(self, config: Config, key: str, folder: Path, sink: WandbSink) -> None:
        self.config, self.key, self.folder, self.sink = config, key, folder, sink
        self.patience, self.lost = sink.patience, False
        self._run: RunInfo  # set by `start`
        self._opened = False
        self._recorded = Recorded()
        self._handed: list[str] = []
        self._curve_start = self._curve_end = 0
        self._rows: list[Row] = []

    # -- the tracker's four methods ---------------------------------------------------------------------------------

    def start(self, config_yaml: str) -> None:
        """Open the run. If the service has the study as finished, the run is opened only when there is a new item."""
        self.sink.enter()
        self._start(config_yaml)

    @harmless
    def round(self, row: Row, curve: list[list[Any]], mask: Path) -> None:
        """Send the new items of a round or control (see `round_items`)."""
        if not row["control"]:
            self._curve_start = self._curve_end
            self._curve_end += max((point[0] for point in curve), default=row["steps"])
        self._rows.append(row)
        artifact = Artifact.mask(self.config.name, self.key, row, mask)
        publish(round_items(row, curve, self._curve_start, self.folder, artifact), self)

    @harmless
    def points(self, place: Row, curve: list[list[Any]]) -> None:
        """Send points of the training of a round or control, before it is done."""
        start = self._curve_start if place["control"] else self._curve_end
        publish(map(Metrics, curve_rows(place, curve, start)), self)

    @harmless
    def figure(self, path: Path) -> None:
        """Send a figure as an image."""
        publish([Image(f"figure/{path.stem}", path, file_digest(path))], self)

    def close(self, status: str) -> None:
        """End the run, and undo the changes of the service to this process."""
        self._finish(status)
        self.sink.leave(min(self.patience, 10.0))

    # -- the client of `publish` ------------------------------------------------------------------------------------

    def has(self, item: Item) -> bool:
        return item.id in self._recorded.items

    def take(self, item: Item) -> None:
        self._open()
        self.sink.take(item)
        self._recorded.items.add(item.id)
        self._handed.append(item.id)

    # -- helpers ----------------------------------------------------------------------------------------------------

    @harmless
    def _start(self, config_yaml: str) -> None:
        self._run = RunInfo.of(self.config, self.key, config_yaml)
        self._recorded = self.sink.recorded()
        if not self._recorded.finished:
            self._open()

    def _open(self) -> None:
        if not self._opened:
            self.sink.open(self._run)
            self._opened = True

    @harmless
    def _finish(self, status: str) -> None:
        if self._rows and status == "finished":  # the rest of the rows would make it another table
            publish([Table.of(self._rows)], self)
        if not self._opened:
            return
        self.sink.summary(summary([row for row in self._rows if not row["control"]]))
        self.sink.close(0 if status == "finished" else 1)
        if self.sink.keeps and (missing := set(self._handed) - self.sink.recorded().items):
            raise LotteryError(f"{len(missing)} of {len(self._handed)} entries are not on its record")
