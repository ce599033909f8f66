"""Files are read with one line for whatever is wrong with them, which names the file and the remedy."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from lottery.files import Missing, Unreadable, read_json, read_text, read_yaml

DEEP = 100_000
BOMB = "a: &a [x, x]\n" + "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in pairwise("abcdefgh"))


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (read_text, b"\xff\xfe"),
        (read_json, b""),
        (read_json, b"{"),
        (read_json, b"[1]"),
        (read_json, b"[" * DEEP),
        (read_json, b"\xff{}"),
        (read_json, b"9" * 5000),
        (read_yaml, b"a: [1"),
        (read_yaml, b"- 1"),
        (read_yaml, b"[" * DEEP + b"]" * DEEP),
        (read_yaml, b"- " * DEEP),
        (read_yaml, b"?" * DEEP),
        (read_yaml, BOMB.encode()),
        (read_yaml, b"a: &a [*a]"),
        (read_yaml, b"a: *b"),
        (read_yaml, b"a: \x00"),
        (read_yaml, b"a: \xff"),
        (read_yaml, b"a: !!python/object/apply:os.getcwd []"),
        (read_yaml, b"? {a: 1}\n: 2"),
    ],
)
def test_what_is_damaged_is_one_line_with_file_and_remedy(reader, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(Unreadable) as caught:
        reader(path, "run it again")
    line = str(caught.value)
    assert re.match(re.escape(str(path)) + r"(, line \d+)?: ", line)
    assert line.endswith("; run it again")
    assert "\n" not in line
    assert len(line) < 500


@pytest.mark.parametrize("reader", [read_text, read_json, read_yaml])
def test_what_is_missing_is_told_apart_from_what_cannot_be_read(reader, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no such file; run it again"):
        reader(tmp_path / "none", "run it again")
    with pytest.raises(Unreadable, match="cannot be read") as caught:
        reader(tmp_path)
    assert not isinstance(caught.value, Missing)


def test_aliases_of_a_reasonable_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n", encoding="utf-8")
    whole = {"x": 1, "y": [2]}
    assert read_yaml(path) == {"a": whole, "b": {"x": 3, "y": [2]}, "c": [whole, whole]}


def test_yaml_is_read_as_hydra_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("rate: 1e-3\nsince: 2026-01-01\nname: 'ä*&'\nlist: [1, .5]\n", encoding="utf-8")
    assert read_yaml(path) == {"rate": 1e-3, "since": "2026-01-01", "name": "ä*&", "list": [1, 0.5]}
    path.write_text("# nothing\n", encoding="utf-8")
    assert read_yaml(path) == {}
