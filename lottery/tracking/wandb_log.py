"""Read W&B's transaction logs in a run folder.

A file `run-KEY.wandb` has a header of 7 bytes, then records in the framing of LevelDB's log: blocks of 32 KiB with
chunks. A chunk is a crc32 (4 bytes, little-endian, over type and data), length (2), type (1 byte: 1 is a whole record,
2-4 its first, middle and last part), data. A kill may leave a torn last record. Records are W&B's protobuf messages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from struct import unpack_from
from typing import Any
from zlib import crc32

from lottery.files import Unreadable, read_json, write_json
from lottery.tracking.items import Artifact, Image, Metrics, table_id
from lottery.values import fits

HEADER, BLOCK, CHUNK = 7, 1 << 15, 7
FULL, LAST = 1, 4
LOG_KEYS = {"size", "entity", "project", "items", "exit"}
MEMORY = "recorded.json"  # the content of each log, since sent logs may be deleted (`wandb clean`)


@dataclass
class Recorded:
    """The `id`s of a study's items on record, and whether the study is recorded as done."""

    items: set[str] = field(default_factory=set)
    finished: bool = False


def recorded(folder: Path, key: str, project: str, entity: str | None) -> Recorded:
    """Return the items of a study in a project from the logs in W&B's `folder`, including deleted logs read before.

    A log of unchanged size is not read again.
    """
    key, project, entity = place(key, project, entity)
    memory: dict[str, Any] = {}
    with suppress(Unreadable):
        memory = read_json(folder / MEMORY)
    known = {name: log for name, log in memory.items() if fits(log, dict[str, Any]) and log.keys() >= LOG_KEYS}
    for path in folder.glob(f"*run-*-{key}/run-{key}.wandb"):
        size = path.stat().st_size
        if known.get(path.parent.name, {}).get("size") != size:
            known[path.parent.name] = {"size": size, **contents(path)}
    if known != memory:
        write_json(folder / MEMORY, known)
    mine = [(name, log) for name, log in known.items() if name.endswith(f"-{key}")]  # not of a sweep's other trials
    ours = [log for _, log in sorted(mine, key=_age) if log["project"] == project]
    ours = [log for log in ours if entity is None or log["entity"] == entity]
    items = {item for log in ours for item in log["items"]}
    return Recorded(items, finished=bool(ours) and ours[-1]["exit"] == 0)


def place(key: str, project: str, entity: str | None) -> tuple[str, str, str | None]:
    """Return the id of a study's W&B run, its project and entity: in a sweep those that the sweep's agent gave it."""
    if "WANDB_SWEEP_ID" not in os.environ:
        return key, project, entity
    get = os.environ.get
    return get("WANDB_RUN_ID", key), get("WANDB_PROJECT", project), get("WANDB_ENTITY", entity)


def _age(log: tuple[str, Any]) -> str:
    """Return the part of a folder's name [offline-]run-DATE_TIME-KEY from its date on."""
    return log[0].partition("run-")[2]


def contents(path: Path) -> dict[str, Any]:
    """Return a log's entity, project, ids of items, and exit code (None: killed, or still running)."""
    found: dict[str, Any] = {"entity": "", "project": "", "items": [], "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"entity": record.run.entity, "project": record.run.project}
        elif kind == "history":
            found["items"].append(_row_id(record.history))
        elif kind == "artifact" and record.artifact.type == "mask":
            with suppress(ValueError, TypeError, KeyError):  # not an artifact of lottery
                told = json.loads(record.artifact.metadata)
                found["items"].append(Artifact("", "mask", told["round"], told["digest"]).id)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _row_id(history: Any) -> str:
    """Return the id of the item in a history row; "" for a row that lottery did not log."""
    row, media = {}, {}
    for item in history.item:
        name, *part = item.nested_key or [item.key]
        if part:  # an image or a table, which is alone in its row
            media[part[0]] = json.loads(item.value_json)
            media["key"] = name
        elif name[0] != "_":  # skip W&B's columns: step, time
            row[name] = json.loads(item.value_json)
    try:
        if media.get("_type") == "table-file":
            return table_id(media["key"], media["nrows"], media["ncols"])
        if media:
            return Image(media["key"], Path(), media["sha256"]).id
        return Metrics(row).id
    except (TypeError, ValueError, KeyError):
        return ""


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a log (`wandb_internal_pb2.Record`), up to the first incomplete one."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    record = b""
    for kind, data in _chunks(path.read_bytes()):
        record += data
        if kind in (FULL, LAST):
            try:
                found = Record.FromString(record)
            except DecodeError:
                return
            yield found
            record = b""


def _chunks(log: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of each chunk, up to the first damaged or incomplete one."""
    at = HEADER
    while at + CHUNK <= len(log):
        if BLOCK - at % BLOCK < CHUNK:  # padding at the end of a block, too short for a chunk
            at += BLOCK - at % BLOCK
            continue
        checksum, size, kind = unpack_from("<IHB", log, at)
        end = at + CHUNK + size
        if kind == 0 or end > len(log) or crc32(log[at + 6 : end]) != checksum:
            return
        yield kind, log[at + CHUNK : end]
        at = end
