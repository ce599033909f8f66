"""What W&B wrote into a run folder's wandb/: its transaction logs, read back.

A file `run-KEY.wandb` is 7 bytes, then records in the framing of LevelDB's log: blocks of 32 KiB, in them chunks of
crc32 (4 bytes, little-endian, over type and data), length (2), type (1: whole record, 2-4: its first, middle and last
part). A kill leaves a torn end, which is not a record. The records are W&B's own protobuf messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import unpack_from
from typing import Any
from zlib import crc32

from lottery.files import write_json
from lottery.tracking.sink import Metrics, Recorded

HEADER, BLOCK, CHUNK = 7, 1 << 15, 7
FULL, LAST = 1, 4
MEMORY = "recorded.json"  # what each log holds: logs that were sent may be deleted (`wandb clean`)


def recorded(folder: Path, key: str, project: str, entity: str | None) -> Recorded:
    """What the logs under `folder` (wandb/) hold of this study in this project, and those that were there once.

    A log that has not grown is not read again.
    """
    memory: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        memory = json.loads((folder / MEMORY).read_text())
    known = dict(memory)
    for path in folder.glob(f"*run-*-{key}/run-{key}.wandb"):
        size = path.stat().st_size
        if known.get(path.parent.name, {}).get("size") != size:
            known[path.parent.name] = {"size": size, **contents(path)}
    if known != memory:
        write_json(folder / MEMORY, known)
    ours = [log for _, log in sorted(known.items(), key=_age) if log["project"] == project]
    ours = [log for log in ours if entity is None or log["entity"] == entity]
    items = {item for log in ours for item in log["items"]}
    return Recorded(items, finished=bool(ours) and ours[-1]["exit"] == 0)


def _age(log: tuple[str, Any]) -> str:
    """The folder's name from its date on: [offline-]run-DATE_TIME-KEY."""
    return log[0].partition("run-")[2]


def contents(path: Path) -> dict[str, Any]:
    """Of one log: entity and project, the ids of the items, the exit code (None: was killed, or goes on)."""
    found: dict[str, Any] = {"entity": "", "project": "", "items": [], "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"entity": record.run.entity, "project": record.run.project}
        elif kind == "history":
            found["items"].append(_row_id(record.history))
        elif kind == "artifact" and record.artifact.type == "mask":
            told = json.loads(record.artifact.metadata)
            found["items"].append(f"round-{told['round']:03d} {told['digest'][:16]}")
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _row_id(history: Any) -> str:
    """The id of the item that a history row was; nothing for a row that is none of ours."""
    row = {}
    for item in history.item:
        name, *part = item.nested_key or [item.key]
        if part == ["sha256"]:  # of an image, which has a row of its own
            return f"{name} {json.loads(item.value_json)[:16]}"
        if name[0] != "_":  # W&B's own columns: step, time
            row["/".join([name, *part])] = json.loads(item.value_json)
    try:
        return Metrics(row).id
    except (TypeError, ValueError):
        return ""


def records(path: Path) -> Iterator[Any]:
    """The records of a log (`wandb_internal_pb2.Record`), up to the first that is not whole."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    record = b""
    for kind, data in _chunks(path.read_bytes()):
        record += data
        if kind in (FULL, LAST):
            yield Record.FromString(record)
            record = b""


def _chunks(log: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and data of each whole chunk."""
    at = HEADER
    while at + CHUNK <= len(log):
        if BLOCK - at % BLOCK < CHUNK:  # the end of a block that is too short for a chunk is padding
            at += BLOCK - at % BLOCK
            continue
        checksum, size, kind = unpack_from("<IHB", log, at)
        end = at + CHUNK + size
        if kind == 0 or end > len(log) or crc32(log[at + 6 : end]) != checksum:
            return
        yield kind, log[at + CHUNK : end]
        at = end
