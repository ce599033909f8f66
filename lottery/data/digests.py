"""Digests of data, kept in `<paths.data>/.digests/`, so that large trees are read once and changed data are noticed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.files import Unreadable, file_digest, read_json, write_json

LOG = logging.getLogger("lottery")

FOLDER = ".digests"
FRESH_NS = 2 * 10**9  # a file this young may change again without a new time of modification
SAVE_SECONDS = 30.0


def kept_at(folder: Path, name: str) -> Path:
    """Return the file that keeps the digests of a data set or a tree of this name."""
    return folder / FOLDER / f"{name.strip('/').replace('/', '_')}.json"


def notice(kept: Path, data: Path, digest: str) -> None:
    """Save the digest of data when they are first read, and warn when it differs later."""
    known = _read(kept)
    if "digest" not in known:
        _write(kept, {**known, "digest": digest, "since": time.strftime("%Y-%m-%d %H:%M:%S")})
    elif known["digest"] != digest:
        LOG.warning(
            "%s: not the data that were first read on %s (digest %s, now %s), so earlier studies saw others; restore "
            "them, or delete %s if these are meant", data, known["since"], known["digest"][:12], digest[:12], kept,
        )  # fmt: skip


def tree_digests(kept: Path, root: Path, groups: Mapping[str, Iterable[Path]]) -> dict[str, str]:
    """Return, for each group of files under `root`, the sha256 of their names and bytes.

    A group is read again only if a name, a size or a time of modification in it has changed.
    """
    found = _read(kept)
    before = found.get("groups", {}).items()
    known = {name: pair for name, pair in before if isinstance(pair, list) and len(pair) == 2}
    stamps = {name: _stamp(root, files) for name, files in groups.items()}
    missing = [name for name, (stamp, _) in stamps.items() if known.get(name, [""])[0] != stamp]
    digests = {name: known[name][1] for name in stamps if name not in missing}
    if missing:
        LOG.info("%s: reading %d of %d folders of images for their digests, once", root, len(missing), len(stamps))
    saved = time.monotonic()
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        try:
            for name in missing:
                stamp, newest = stamps[name]
                digests[name] = _group(pool, root, groups[name])
                if time.time_ns() - newest > FRESH_NS:
                    known = {**known, name: [stamp, digests[name]]}
                if time.monotonic() - saved > SAVE_SECONDS:
                    saved = time.monotonic()
                    _write(kept, {**found, "groups": known})
        finally:
            if missing:
                _write(kept, {**found, "groups": known})
    return digests


def json_digest(value: Any) -> str:
    """Return the sha256 (hex) of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _stamp(root: Path, files: Iterable[Path]) -> tuple[str, int]:
    stats = {path.relative_to(root).as_posix(): path.stat() for path in files}
    listing = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())
    return json_digest(listing), max(stat.st_mtime_ns for stat in stats.values())


def _group(pool: ThreadPoolExecutor, root: Path, files: Iterable[Path]) -> str:
    paths = sorted(files)
    names = (path.relative_to(root).as_posix() for path in paths)
    return json_digest(list(zip(names, pool.map(_file_digest, paths), strict=True)))


def _file_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise LotteryError(f"{path}: cannot be read: {error.strerror}") from error


def _read(kept: Path) -> dict[str, Any]:
    """Return the file's content, or {} where the file is missing or damaged and has to be rewritten."""
    try:
        found = read_json(kept)
    except Unreadable:
        return {}
    return found if isinstance(found.get("groups", {}), dict) else {}


def _write(kept: Path, found: dict[str, Any]) -> None:
    try:
        write_json(kept, found)
    except LotteryError as error:  # the folder may belong to another user
        if "groups" in found:
            LOG.warning("%s; every run reads all images again, unless paths.data is a folder of your own", error)
