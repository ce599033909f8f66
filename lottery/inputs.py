"""A digest of all that a study's record depends on besides its configuration. Torch-free; takes milliseconds.

The study keeps it in its manifest. Where it is still equal, the record is what the study would write again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lottery.config import digest, plain
from lottery.own_code import unrun_parts
from lottery.values import leaves

SOURCES = "lottery.data.sources"
EMBEDDED = ("mnist1d", "digits")  # these of SOURCES read no file; the others read <paths.data>/NAME.safetensors
FRESH_NS = 2 * 10**9  # a file this young may change again without a new time of modification


class Unknown(Exception):
    """Raised where an input cannot be told quickly and surely."""


def inputs_of(cfg: DictConfig) -> str:
    """Return the digest, or "" where it cannot be told quickly and surely: for image folders and data sources of one's
    own, which may read anything; for pretrained weights from a library; for a file that was changed just now.
    """
    values = plain(cfg)
    parts = [values[name] for name in ("model", "method", "criterion", "probes")]
    try:
        code = unrun_parts([*parts, {"_target_": cfg.data["_target_"]}])
        files = [_stamp(path) for path in (*_data(values, Path(cfg.paths.data)), *_named(values))]
        return "" if code is None or values["model"].get("pretrained") else digest([_program(), code, files])
    except (Unknown, OSError, ImportError, ValueError):
        return ""


def still(cfg: DictConfig, before: str) -> str:
    """Return the digest if it is what it was `before` a study began, else "": something was edited meanwhile."""
    return before if inputs_of(cfg) == before else ""


@cache
def _program() -> list[Any]:
    """Return the digest of lottery's sources, the names of all installed distributions (with their versions), Python's
    version, and the kind of machine.
    """
    hasher, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        hasher.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    folders = filter(os.path.isdir, dict.fromkeys(sys.path))
    packages = {name for folder in folders for name in os.listdir(folder) if name.endswith((".dist-info", ".egg-info"))}
    return [hasher.hexdigest(), sorted(packages), platform.python_version(), platform.machine()]


def _data(node: Any, folder: Path) -> Iterator[Path]:
    """Yield the files in `folder`, which is paths.data, of the data sets that a configuration names."""
    if isinstance(node, Mapping):
        if {"_target_", "classes", "shape"} <= node.keys():  # the study's data set, or one that a probe measures on
            room, _, name = str(node["_target_"]).rpartition(".")
            if room != SOURCES:
                raise Unknown(node["_target_"])
            if name not in EMBEDDED:
                yield folder / f"{name}.safetensors"
        for value in node.values():
            yield from _data(value, folder)


def _named(values: dict[str, Any]) -> Iterator[Path]:
    """Yield the files that options name, such as pretrained weights or a mask."""
    for key, value in leaves({name: part for name, part in values.items() if name not in ("paths", "tracker")}):
        if isinstance(value, str) and (path := Path(value).expanduser()).exists():
            if path.is_file():
                yield path
            elif os.sep in value:  # otherwise just a folder with the name of an option's value
                raise Unknown(key)


def _stamp(path: Path) -> list[Any]:
    """Return what changes with a file's content: its place, size, and times of modification and of any change."""
    stat = path.stat()
    if time.time_ns() - stat.st_mtime_ns < FRESH_NS:
        raise Unknown(path)
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
