"""The documentation's pages, read: their code blocks, command lines and inline code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXPECTED = re.compile(r"# exit status (\d+)")
PROGRAM = "python -m lottery"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is (or ""), its text, and the line that it begins on."""

    language: str
    file: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command line of lottery's: its words after `python -m lottery`, and the exit status that it is said to have."""

    words: list[str]
    status: int

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text()
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text)), f"{page}: a fence is left open"
    return [Block(m[1], m[2] or "", m[3], text[: m.start()].count("\n") + 2) for m in FENCE.finditer(text)]


def commands(text: str) -> Iterator[Command]:
    """The command lines of lottery's in a block; a backslash continues a line, # begins a comment."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith(PROGRAM):
            expected = EXPECTED.search(line)
            words = shlex.split(line, comments=True)[len(PROGRAM.split()) :]
            yield Command(words, int(expected[1]) if expected else 0)


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks, outside of blocks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", page.read_text()))
