"""Text is UTF-8 whatever the locale: every reader and writer of text says so, and the command line works without."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line_tools import ROOT

SOURCES = sorted(path for part in ("lottery", "benchmarks", "slurm") for path in (ROOT / part).rglob("*.py"))
TEXT = {"read_text", "write_text", "open", "fdopen"}
SUBPROCESS = {"run", "Popen", "check_output"}
OTHERS = {
    "os",
    "Image",
    "self",
    "stage",
    "sink",
    "folder",
    "record",
    "terminal",
    "status",
}  # whose open() opens no text


def without_encoding(path: Path) -> Iterator[int]:
    """The lines of a source that open a text, or decode what a process says, as the locale would have it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        owner, name = getattr(node.func, "value", None), word(node.func)
        text = "text" in given and name in SUBPROCESS
        if name in TEXT and (owner is not None or name == "open"):
            mode = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            binary = any("b" in each for each in mode[-1:]) and name in ("open", "fdopen")
            text = not binary and not (name == "open" and word(owner) in OTHERS)
        if text and "encoding" not in given:
            yield node.lineno


def word(node: object) -> str:
    """The last name of a dotted one."""
    return getattr(node, "attr", getattr(node, "id", ""))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_names_its_encoding(path: Path) -> None:
    assert [f"{path.name}:{line}" for line in without_encoding(path)] == []
