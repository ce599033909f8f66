"""Print to a terminal: text of files with its control characters escaped, colours, plain tables. Torch-free."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

COLORS = {"red": 31, "green": 32, "yellow": 33, "cyan": 36, "dim": 2, "bold": 1}
GAP = "  "
SHORTEST = 12  # characters that the first column keeps when it is cut


def printable(text: str) -> str:
    r"""Escape every character that a terminal would obey, hide or fail to encode, such as \x1b for ESC.

    The blank is the only white space that is not escaped, so the result is one line.
    """
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    return "".join(escaped)


def printable_lines(text: str) -> str:
    """Apply `printable` to each line of `text`."""
    return "\n".join(map(printable, text.split("\n")))


def say(*lines: str, error: bool = False) -> None:
    """Print lines that may contain text from files, escaped by `printable`."""
    for line in lines:
        print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)


class Escaping(logging.Filter):
    """A logging filter that applies `printable_lines` to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable_lines(record.getMessage()), ()
        return True


ESCAPING = Escaping()  # a single instance, since a logger ignores a filter that it already has


def prepare_streams() -> None:
    """Prepare the standard streams so that printing any text works.

    A closed stream (`>&-`) becomes the null device, so no file gets its number. Unencodable characters are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            stream = _null_stream(number)
            setattr(sys, name, stream)
        if number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("lottery").addFilter(ESCAPING)


def _null_stream(number: int) -> object:
    """Open the null device as the stream of this number."""
    file = os.open(os.devnull, os.O_RDWR)
    if file != number:
        os.dup2(file, number)
        os.close(file)
    return os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table. On a narrow terminal columns are left out in the order of rising `rank` (0: never)."""

    title: str
    right: bool = False
    rank: int = 0


def terminal_width() -> int | None:
    """Return the terminal's width in characters; None where stdout is no terminal, so that any width will do."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def colored(text: str, color: str) -> str:
    """Return the printable text, in this colour on a terminal unless NO_COLOR is set."""
    text = printable(text)
    if color not in COLORS or "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return text
    return f"\033[{COLORS[color]}m{text}\033[0m"


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], notes: Sequence[str], colors: Sequence[dict[int, str]]
) -> list[str]:
    """Return the lines of a table with a head. notes: each row's free text. colors: for each row, cell -> colour.

    A column without a value in any row is left out. Where the width is too small, columns are left out by rank, then
    the first column is cut. A note that does not fit beside its row stands below it.
    """
    width = terminal_width()
    rows, notes = [[printable(cell) for cell in row] for row in rows], [printable(note) for note in notes]
    widths = [max(len(column.title), *(len(row[i]) for row in rows), 0) for i, column in enumerate(columns)]
    shown = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]

    def total() -> int:
        return sum(widths[i] + len(GAP) for i in shown) - len(GAP)

    if width is not None:
        for i in sorted((i for i in shown if columns[i].rank), key=lambda i: columns[i].rank):
            if total() - widths[0] + min(widths[0], 2 * SHORTEST) <= width:
                break
            shown.remove(i)
        widths[0] = max(min(widths[0], SHORTEST), min(widths[0], width - total() + widths[0]))

    def line(cells: Sequence[str], marks: dict[int, str]) -> str:
        parts = []
        for i in shown:
            cell = cells[i] if len(cells[i]) <= widths[i] else cells[i][: widths[i] - 1] + "…"
            padded = f"{cell:>{widths[i]}}" if columns[i].right else f"{cell:<{widths[i]}}"
            parts.append(colored(padded, marks.get(i, "")))
        return GAP.join(parts)

    found = [line([column.title for column in columns], dict.fromkeys(shown, "dim")).rstrip()]
    free = (width or 10**6) - total() - len(GAP)
    for row, note, marks in zip(rows, notes, colors, strict=True):
        text = line(row, marks)
        if len(note) <= free:
            found.append(f"{text}{GAP}{note}".rstrip())
        else:
            found += [text.rstrip(), *(f"    {part}" for part in wrap(note, max(20, (width or 80) - 4)))]
    return found


def flowing(head: str, parts: Sequence[tuple[str, str]]) -> list[str]:
    """Join `head` and the parts (text, colour) by commas, broken into lines of the terminal's width."""
    width, head = terminal_width() or 10**6, printable(head)
    lines, used = [head], len(head)
    for number, (text, color) in enumerate(parts):
        end = "," if number + 1 < len(parts) else ""
        if used + 1 + len(text) + len(end) > width:
            lines.append("   ")
            used = 3
        lines[-1] += f" {colored(text, color)}{end}"
        used += 1 + len(text) + len(end)
    return lines


# -- numbers in words -------------------------------------------------------------------------------------------------


def count_text(count: int, noun: str, plural: str = "") -> str:
    """Format a count and its noun, such as `1 stage` or `5,000 stages`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def age_text(seconds: float) -> str:
    """Format a time in its largest unit, such as 3d, 5h, 12m or 40s; a negative time is 0s."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def size_text(count: int) -> str:
    """Format a number of bytes, such as 1.2 MB."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"
