"""Write files whole or not at all, and read them, with one-line errors. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from lottery.errors import LotteryError
from lottery.sharing import guard, make_folder, shared_mode

MOST_BYTES = 2**28  # of a file that is read whole
DEEPEST = 100  # levels of nesting in JSON and YAML; the code that reads them recurses
MOST_VALUES = 100_000  # in a YAML file

_EXPONENT = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")


class Unreadable(LotteryError):
    """A file cannot be read, or its content is wrong. The message names the file and the remedy."""

    @classmethod
    def of(cls, where: object, reason: str, remedy: str = "") -> Unreadable:
        """Return the error. where: the file, or a line of it."""
        return cls(f"{where}: {reason}{remedy and f'; {remedy}'}")


class Missing(Unreadable):
    """The file does not exist."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. When the block ends, sync that file to disk and rename it to `path`.

    If the block fails, `path` is unchanged and the temporary file is removed. In a leased folder the lease is checked
    again before the rename, and a process that takes the folder over removes all temporary files in it. So a process
    that is suspended before the check fails the check, and one that is suspended after it has no file to rename.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    guard(path)
    try:
        make_folder(path.parent)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(shared_mode(path.parent, 0o666))  # safetensors gives only the owner access; stores are shared
        guard(path)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        guard(path)  # the temporary file may be gone because the folder is no longer ours
        raise LotteryError(f"{path}: cannot be written: {str(error).partition(chr(10))[0]}") from error
    finally:
        with suppress(OSError):  # the folder itself may be the cause
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises LotteryError, naming the file, where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as a JSON file, whole or not at all."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path, remedy: str = "") -> bytes:
    """Return all bytes of a file. Raises Missing where there is none, Unreadable where it is unreadable or too large.

    remedy: the end of the error message, which says what the user can do.
    """
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                raise Unreadable.of(path, f"got {size:,} bytes, expected at most {MOST_BYTES:,}", remedy)
            return file.read()
    except FileNotFoundError as error:
        raise Missing.of(path, "no such file", remedy) from error
    except OSError as error:
        raise Unreadable.of(path, f"cannot be read: {error.strerror or error}", remedy) from error


def read_text(path: Path, remedy: str = "") -> str:
    """Return the text of a UTF-8 file. Raises as `read_bytes` does, and Unreadable where it is not UTF-8."""
    try:
        return read_bytes(path, remedy).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable.of(path, f"not UTF-8 text (byte {error.start})", remedy) from error


def read_json(path: Path, remedy: str = "") -> Any:
    """Return the JSON object in a file. Raises as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path, remedy), path, remedy)


def parse_json(data: str | bytes, where: object, remedy: str = "") -> Any:
    """Parse a JSON object read from `where`. Raises Unreadable for other texts, and for over 100 levels."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable.of(where, f"not JSON ({str(error).partition(chr(10))[0]})", remedy) from error
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise Unreadable.of(where, f"got more than {DEEPEST} levels of nesting", remedy)
    if not isinstance(value, dict):
        raise Unreadable.of(where, "not a JSON object", remedy)
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        held = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for inside in held for inner in inside if isinstance(inner, dict | list)]
    return bool(level)


def read_yaml(path: Path, remedy: str = "") -> dict[str, Any]:
    """Return the mapping in a YAML file, parsed as Hydra does: 1e-3 is a number, a date is text. {} for an empty file.

    Raises as `read_text` does, and Unreadable for other YAML, over 100 levels, or 100,000 values with aliases expanded.
    """
    return parse_yaml(read_text(path, remedy), path, remedy)


def parse_yaml(text: str, where: object, remedy: str = "") -> dict[str, Any]:
    """Return the mapping in a YAML text that was read from `where`. Raises Unreadable as `read_yaml` does."""
    import yaml

    try:
        _check_events(text, where, remedy)
        value = yaml.load(text, _yaml_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark else where
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise Unreadable.of(place, f"not valid YAML ({reason})", remedy) from error
    if not isinstance(value, dict | None):
        raise Unreadable.of(where, f"got a YAML {type(value).__name__}, expected a mapping", remedy)
    return value or {}


def _check_events(text: str, where: object, remedy: str) -> None:
    """Raise Unreadable for deep nesting, and for aliases that expand a small text to a huge or endless value."""
    import yaml

    sizes: dict[str, int] = {}  # anchor -> values under it, aliases written out
    inside: list[tuple[str | None, int]] = [(None, 0)]  # the open collections: anchor, values so far
    for event in yaml.parse(text, _yaml_loader()):
        anchor, size = getattr(event, "anchor", None), 1
        if isinstance(event, yaml.CollectionStartEvent):
            inside.append((anchor, 1))
            if len(inside) > DEEPEST:
                raise Unreadable.of(where, f"got more than {DEEPEST} levels of nesting", remedy)
            continue
        if isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise Unreadable.of(where, f"got an alias (*{anchor}) of nothing before it", remedy)
            size = sizes[anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = inside.pop()
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor:
            sizes[anchor] = size
        outer, held = inside.pop()
        inside.append((outer, held + size))
        if held + size > MOST_VALUES:
            raise Unreadable.of(where, f"got more than {MOST_VALUES:,} values, aliases written out", remedy)


@cache
def _yaml_loader() -> Any:
    """Return PyYAML's safe loader, in C where available, changed to read numbers and dates as Hydra does."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [name for name in names if names.count(name) > 1]:
                raise yaml.YAMLError(f"the key {twice[0]!r} is there twice")
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
        for first, rules in Loader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    return Loader
