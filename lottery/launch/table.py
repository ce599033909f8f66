"""A plain table: as wide as its values, at most as wide as the terminal; the last column is free text. Torch-free."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

COLORS = {"red": 31, "green": 32, "yellow": 33, "cyan": 36, "dim": 2, "bold": 1}
GAP = "  "
SHORTEST = 12  # characters that a left column keeps when it is cut


@dataclass(frozen=True)
class Column:
    """One column; `rank` says how soon it goes where the terminal is too narrow (0: never)."""

    title: str
    right: bool = False
    rank: int = 0


def terminal_width() -> int | None:
    """Columns of the terminal; None where the output goes elsewhere, and has all the room it wants."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def colored(text: str, color: str) -> str:
    """In this colour on a terminal (and NO_COLOR is not set), else as it is."""
    if color not in COLORS or "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return text
    return f"\033[{COLORS[color]}m{text}\033[0m"


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], notes: Sequence[str], colors: Sequence[dict[int, str]]
) -> list[str]:
    """The lines of the table, headed. `notes` is the free text of each row, `colors` says which of its cells have one.

    A column without a value in any row is left out. Where the width does not do, columns go by rank, then the first one
    is cut; a note that does not fit beside its row stands below it.
    """
    width = terminal_width()
    widths = [max(len(column.title), *(len(row[i]) for row in rows), 0) for i, column in enumerate(columns)]
    shown = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    for i in sorted((i for i in shown if columns[i].rank), key=lambda i: columns[i].rank):
        if width is None or length(widths, shown) - widths[0] + min(widths[0], 2 * SHORTEST) <= width:
            break
        shown.remove(i)
    if width is not None:
        widths[0] = max(min(widths[0], SHORTEST), min(widths[0], width - length(widths, shown) + widths[0]))

    def line(cells: Sequence[str], marks: dict[int, str]) -> str:
        parts = []
        for i in shown:
            cell = cells[i] if len(cells[i]) <= widths[i] else cells[i][: widths[i] - 1] + "…"
            padded = f"{cell:>{widths[i]}}" if columns[i].right else f"{cell:<{widths[i]}}"
            parts.append(colored(padded, marks.get(i, "")))
        return GAP.join(parts)

    found = [line([column.title for column in columns], dict.fromkeys(shown, "dim")).rstrip()]
    for row, note, marks in zip(rows, notes, colors, strict=True):
        text, free = line(row, marks), (width or 10**6) - length(widths, shown) - len(GAP)
        if len(note) <= free:
            found.append(f"{text}{GAP}{note}".rstrip())
        else:
            found += [text.rstrip(), *(f"    {part}" for part in wrap(note, max(20, (width or 80) - 4)))]
    return found


def flowing(head: str, parts: Sequence[tuple[str, str]]) -> list[str]:
    """`head` and then the parts, each with its colour, with commas between; in as many lines as the width asks for."""
    width = terminal_width() or 10**6
    lines, used = [head], len(head)
    for number, (text, color) in enumerate(parts):
        end = "," if number + 1 < len(parts) else ""
        if used + 1 + len(text) + len(end) > width:
            lines.append("   ")
            used = 3
        lines[-1] += f" {colored(text, color)}{end}"
        used += 1 + len(text) + len(end)
    return lines


def length(widths: Sequence[int], shown: Sequence[int]) -> int:
    """Of a line with these columns."""
    return sum(widths[i] for i in shown) + len(GAP) * (len(shown) - 1)
