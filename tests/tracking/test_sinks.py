"""The contract of a sink: the same calls, on the recording that the other tests use and on the real services.

Each service is read back by a reader of its own, not by the sink: W&B's command line, and SQLite.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from recording import RecordingSink, Service

from lottery.config import Tracker
from lottery.tracking.sink import Image, MaskFile, Metrics, RunInfo, Sink

KEY = "0123456789ab"
INFO = RunInfo(KEY, f"imp seed 3 ({KEY})", "imp", ["mnist1d"], {"name": "imp", "seed": 3, "model": {"hidden": [8]}})
ROWS = [
    {"round": 0, "round/test_accuracy": 1 / 3, "round/density": 1.0},
    {"curve/total_step": 10, "curve/val_loss": 1e-7 / 3},
    {"round": 1, "round/kept": 25_000_000, "round/probe/x": float("nan"), "round/probe/y": float("inf")},
]
Found = dict[str, Any]


class Recorded:
    """The recording."""

    def __init__(self, folder: Path) -> None:
        self.service = Service()

    def sink(self) -> Sink:
        return RecordingSink(self.service)

    def read(self) -> Found:
        masks = [(alias, metadata["digest"]) for _, alias, metadata in self.service.masks]
        return {"rows": self.service.rows, "images": [key for key, _ in self.service.images], "masks": masks}


class Wandb:
    """W&B, offline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "wandb"

    def sink(self) -> Sink:
        from lottery.tracking.wandb import WandbSink

        return WandbSink(Tracker(mode="offline"), KEY, self.folder)

    def read(self) -> Found:
        found: Found = {"rows": [], "images": [], "masks": []}
        for path in sorted(self.folder.glob("offline-run-*/*.wandb")):
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
            for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
                record = json.loads(line)
                if record["type"] == "history":
                    row = {k: v for k, v in record["history"]["item"].items() if k[0] != "_"}
                    images = [key.removesuffix("._type") for key, value in row.items() if value == "image-file"]
                    found["images"] += images
                    found["rows"] += [row] if not images else []
                elif record["type"] == "artifact":
                    (alias,) = (alias for alias in record["artifact"]["aliases"] if alias != "latest")
                    found["masks"].append((alias, json.loads(record["artifact"]["metadata"])["digest"]))
        return found


class Trackio:
    """trackio, in a directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / ".trackio"

    def sink(self) -> Sink:
        from lottery.tracking.trackio import TrackioSink

        return TrackioSink(Tracker(name="trackio"), KEY, self.home)

    def read(self) -> Found:
        with closing(sqlite3.connect(self.home / "lottery.db")) as database:
            logged = [json.loads(text) for (text,) in database.execute("select metrics from metrics order by step")]
            versions = "select alias, metadata from artifact_aliases a join artifact_versions v"
            masks = list(database.execute(f"{versions} on a.artifact_version_id = v.id where alias != 'latest'"))
        images = [key for row in logged for key, value in row.items() if isinstance(value, dict)]
        rows = [row for row in logged if not set(row) & set(images) and not any(k.startswith("summary/") for k in row)]
        return {
            "rows": [{k: float(v) for k, v in row.items()} for row in rows],
            "images": images,
            "masks": sorted((alias, json.loads(metadata)["digest"]) for alias, metadata in masks),
        }


@pytest.fixture(params=[Recorded, Wandb, Trackio], ids=lambda kind: kind.__name__.lower())
def service(request: pytest.FixtureRequest, study: Any, home: Path, fresh_trackio: None) -> Any:
    if request.param is Trackio and find_spec("trackio") is None:
        pytest.skip("trackio is not installed (pip install trackio)")
    return request.param(study.folder)


def png(path: Path) -> Path:
    from PIL import Image as Picture

    Picture.new("RGB", (4, 4)).save(path)
    return path


def masks(study: Any) -> list[MaskFile]:
    return [MaskFile.of(study.row(index), f"masks-imp-{KEY}", study.mask_path(index)) for index in range(3)]


def record(sink: Sink, study: Any, rows: list[dict[str, float]], part: list[MaskFile], figure: Path | None) -> None:
    """One process's part in a study's record."""
    sink.enter()
    sink.recorded()
    sink.open(INFO)
    for row in rows:
        sink.metrics(row)
    for mask in part:
        sink.artifact(mask, mask.metadata())
    if figure:
        sink.image(f"figure/{figure.stem}", figure)
    sink.summary({"best_test_accuracy": 0.5})
    sink.close(0 if figure else 1)


def same(a: list[dict[str, float]], b: list[dict[str, float]]) -> bool:
    return [Metrics(row).id for row in a] == [Metrics(row).id for row in b]


def test_what_is_handed_over_is_on_record_and_known_to_the_next_process(service: Any, study: Any) -> None:
    figure, all_masks = png(study.folder / "accuracy.png"), masks(study)
    from lottery.files import file_digest

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
    assert known.items >= {image.id, *(Metrics(row).id for row in ROWS), *(mask.id for mask in all_masks)}
    found = service.read()
    assert same(found["rows"], ROWS)
    assert found["images"] == ["figure/accuracy"]
    assert found["masks"] == [(f"round-00{k}", study.masks[k].digest) for k in range(3)]


def test_leaving_is_always_possible(service: Any) -> None:
    before = dict(os.environ)
    sink = service.sink()
    sink.enter()
    sink.leave(10.0)
    assert dict(os.environ) == before
