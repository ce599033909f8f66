"""Many run folders: where they are, and what each says, leniently and fast. Torch-free."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from lottery.analysis.read import Row, read_config
from lottery.errors import LotteryError
from lottery.tracking.status import Status

LOG = logging.getLogger("lottery")

Paths = str | Path | Iterable[str | Path]

# What a folder says under the key `format`, of config.yaml or of a row. One that says nothing is of this first format.
FORMAT = "lottery-run/1"
MAKE = "`python -m lottery +exp=imp_rewind` makes one in runs"
LOG_TAIL = 4096  # bytes in which the last line of study.log is looked for


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """YAML as Hydra understands it: 1e-3 is a number, and a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def find_runs(paths: Paths = "runs") -> list[Path]:
    """The run folders at or below `paths`, which may be patterns; each once, a path's own in the order of their names.

    Folders whose name begins with a dot are left out. LotteryError where a path has none: it says how to make one.
    """
    found: dict[str, Path] = {}
    asked = [paths] if isinstance(paths, str | Path) else list(paths)
    if not asked:
        raise LotteryError(f"got no path, expected run folders or folders of them; {MAKE}")
    for path in asked:
        here = [run for start in _starts(path) for run in _below(start, set())]
        if not here:
            what = "no run folder in it" if Path(path).expanduser().is_dir() else "no such run folder"
            raise LotteryError(f"{path}: {what}; {MAKE}")
        for run in here:
            found.setdefault(os.path.realpath(run), run)
    return list(found.values())


def _starts(path: str | Path) -> list[Path]:
    """The folders that a path or pattern names."""
    path = Path(path).expanduser()
    return [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]


def _below(folder: Path, seen: set[str]) -> Iterator[Path]:
    """The run folders at or below a folder; `seen` are those behind us, for links that lead in circles."""
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(folder):
        return
    seen.add(real)
    try:
        with os.scandir(folder) as entries:
            inside = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise LotteryError(f"{folder}: cannot be looked into: {error.strerror}") from error
    names = {name for name, _ in inside}
    if "rounds.jsonl" in names or {"config.yaml", "masks"} <= names:
        yield folder
        return
    for name, is_folder in inside:
        if is_folder and not name.startswith("."):
            yield from _below(folder / name, seen)


def config_leaves(run: Path) -> dict[str, Any]:
    """The configuration that `read_config` reads, as dotted key -> value, lists as tuples; an empty group has no leaf.

    LotteryError as there, and where the folder is of a newer format.
    """
    path = run / "config.yaml"
    try:
        leaves = _fast_leaves(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # not as a study writes it: then speed matters less
        leaves = flat(read_config(run))
    _check_format(path, leaves)
    return leaves


def _fast_leaves(text: str) -> dict[str, Any]:
    """A group at a time, since the studies of a sweep share most of theirs. ValueError where that will not do."""
    groups = [_group_leaves(group) for group in re.split(r"^(?=\w)", text, flags=re.MULTILINE)]
    leaves = {key: value for group in groups for key, value in group.items()}
    if "${" in text or len(leaves) < sum(map(len, groups)):  # interpolated, or a key is there twice
        raise ValueError
    return leaves


@lru_cache(maxsize=4096)
def _group_leaves(text: str) -> dict[str, Any]:
    """The leaves below one top-level key. Not to be changed: they are kept."""
    group = yaml.load(text, Loader=_Loader)
    if not isinstance(group, dict | NoneType):
        raise ValueError
    return flat(group or {})


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested groups: dotted key -> value, lists as tuples."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = _hashable(value)
    return leaves


def _hashable(value: Any) -> Any:
    return tuple(_hashable(each) for each in value) if isinstance(value, list) else value


def _check_format(where: object, found: Mapping[str, Any]) -> None:
    if found.get("format", FORMAT) != FORMAT:
        raise LotteryError(f"{where}: format {found['format']!r}, expected {FORMAT!r}: update lottery to read this run")


def lenient_rounds(run: Path) -> list[Row]:
    """As `read_rounds`, but a complete line that is damaged is warned of, by file and line, and the rest is used.

    LotteryError where rounds.jsonl cannot be read, or a line is of a newer format.
    """
    path = run / "rounds.jsonl"
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # no round yet
        return []
    except OSError as error:
        raise LotteryError(f"{path}: cannot be read: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        _check_format(f"{path}, line {number}", row or {})
        if row is None or not isinstance(row.get("round"), int) or "control" not in row:
            LOG.warning("%s, line %d: damaged, and left out; the rest is used", path, number)
            continue
        row.setdefault("copy", 0)
        rows.append(row)
    return rows


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def finished(run: Path) -> bool:
    """Whether a study has done all its rounds: as status.json says, or in its absence the end of study.log.

    False where neither says so.
    """
    if (status := Status.read(run)) is not None:
        return status.state == "done"
    try:
        with (run / "study.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
            last = log.read().rstrip().rpartition(b"\n")[2]
    except OSError:
        return False
    return re.match(rb"\S+ \S+  done: ", last) is not None
