"""The contract of a sink: the same calls, on the recording that the other tests use and on W&B itself.

W&B is read back by its own command line, not by the sink.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recording import RecordingSink, Service

from lottery.config import Tracker
from lottery.files import file_digest
from lottery.tracking.items import Artifact, Image, Metrics, RunInfo, Table

KEY = "0123456789ab"
INFO = RunInfo(
    KEY, f"imp seed 3 ({KEY})", "imp", "imp", ["mnist1d"], {"name": "imp", "seed": 3, "model": {"hidden": [8]}}
)
ROWS = [
    {"round": 0, "round/test_accuracy": 1 / 3, "round/density": 1.0},
    {"curve/total_step": 10, "curve/val_loss": 1e-7 / 3},
    {"round": 1, "round/kept": 25_000_000, "round/probe/x": float("nan"), "round/probe/y": float("inf")},
]
TABLE = Table("rounds", ["round", "control", "test_accuracy"], [[0, None, 0.9], [1, "reinit", None]])
Found = dict[str, Any]


class Recorded:
    """The recording."""

    def __init__(self, folder: Path) -> None:
        self.service = Service()

    def sink(self) -> Any:
        return RecordingSink(self.service)

    def read(self) -> Found:
        masks = [(alias, metadata["digest"]) for _, alias, metadata in self.service.masks]
        tables = [(table.key, len(table.rows), len(table.columns)) for table in self.service.tables]
        images = [key for key, _ in self.service.images]
        return {"rows": self.service.rows, "images": images, "masks": masks, "tables": tables}


class Wandb:
    """W&B, offline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "wandb"

    def sink(self) -> Any:
        from lottery.tracking.wandb import WandbSink

        return WandbSink(Tracker(mode="offline"), KEY, self.folder)

    def read(self) -> Found:
        found: Found = {"rows": [], "images": [], "masks": [], "tables": []}
        for path in sorted(self.folder.glob("offline-run-*/*.wandb")):
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
            for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
                record = json.loads(line)
                if record["type"] == "history":
                    row = {k: v for k, v in record["history"]["item"].items() if k[0] != "_"}
                    images = [key.removesuffix("._type") for key, value in row.items() if value == "image-file"]
                    found["images"] += images
                    tables = [key.removesuffix("._type") for key, value in row.items() if value == "table-file"]
                    found["tables"] += [(key, row[f"{key}.nrows"], row[f"{key}.ncols"]) for key in tables]
                    found["rows"] += [row] if not images and not tables else []
                elif record["type"] == "artifact" and record["artifact"]["type"] == "mask":
                    (alias,) = (alias for alias in record["artifact"]["aliases"] if alias != "latest")
                    found["masks"].append((alias, json.loads(record["artifact"]["metadata"])["digest"]))
        return found


@pytest.fixture(params=[Recorded, Wandb], ids=lambda kind: kind.__name__.lower())
def service(request: pytest.FixtureRequest, study: Any, home: Path) -> Any:
    return request.param(study.folder)


def png(path: Path) -> Path:
    from PIL import Image as Picture

    Picture.new("RGB", (4, 4)).save(path)
    return path


def masks(study: Any) -> list[Artifact]:
    return [Artifact.mask("imp", KEY, study.row(index), study.mask_path(index)) for index in range(3)]


def record(sink: Any, study: Any, rows: list[dict[str, float]], part: list[Artifact], figure: Path | None) -> None:
    """One process's part in a study's record."""
    sink.enter()
    sink.recorded()
    sink.open(INFO)
    for row in rows:
        sink.take(Metrics(row))
    for mask in part:
        sink.take(mask)
    if figure:
        sink.take(Image(f"figure/{figure.stem}", figure, file_digest(figure)))
        sink.take(TABLE)
    sink.summary({"best_test_accuracy": 0.5})
    sink.close(0 if figure else 1)


def same(a: list[dict[str, float]], b: list[dict[str, float]]) -> bool:
    return [Metrics(row).id for row in a] == [Metrics(row).id for row in b]


def test_what_is_handed_over_is_on_record_and_known_to_the_next_process(service: Any, study: Any) -> None:
    figure, all_masks = png(study.folder / "accuracy.png"), masks(study)
    first = service.sink()
    record(first, study, ROWS[:2], all_masks[:2], None)
    assert first.recorded().items >= {*(Metrics(row).id for row in ROWS[:2]), *(mask.id for mask in all_masks[:2])}
    first.leave(10.0)
    assert same(service.read()["rows"], ROWS[:2])

    second = service.sink()
    second.enter()
    known = second.recorded()
    assert known.items >= {*(Metrics(row).id for row in ROWS[:2]), *(mask.id for mask in all_masks[:2])}
    assert not known.items & {Metrics(ROWS[2]).id, all_masks[2].id}
    assert not known.finished
    second.leave(10.0)

    third = service.sink()
    record(third, study, ROWS[2:], all_masks[2:], figure)
    known = third.recorded()
    third.leave(10.0)
    image = Image("figure/accuracy", figure, file_digest(figure))
    assert known.items >= {image.id, TABLE.id, *(Metrics(row).id for row in ROWS), *(mask.id for mask in all_masks)}
    found = service.read()
    assert same(found["rows"], ROWS)
    assert found["images"] == ["figure/accuracy"]
    assert found["tables"] == [("rounds", 2, 3)]
    assert found["masks"] == [(f"round-00{k}", study.masks[k].digest) for k in range(3)]


def test_leaving_is_always_possible(service: Any) -> None:
    before = dict(os.environ)
    sink = service.sink()
    sink.enter()
    sink.leave(10.0)
    assert dict(os.environ) == before
