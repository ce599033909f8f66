"""The findings of a check, and how they are printed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from textwrap import wrap

from lottery.printing import colored, terminal_width

LEVELS = {"problem": "red", "note": "yellow", "ok": "green"}  # the worst first
LEVEL, TOPIC = 7, 12  # characters of these columns
WIDTH = 118  # where the output is no terminal


@dataclass(frozen=True)
class Finding:
    """The result of one check, and advice where something is wrong."""

    level: str  # one of LEVELS
    topic: str
    text: str
    advice: str = ""

    def lines(self, width: int) -> list[str]:
        """Format the finding as `level  topic  text`, with the advice below it."""
        indent = " " * (LEVEL + TOPIC + 4)
        head = f"{colored(f'{self.level:<{LEVEL}}', LEVELS[self.level])}  {self.topic:<{TOPIC}}  "
        text = wrap(self.text, max(20, width - len(indent))) or [""]
        advice = wrap(self.advice, max(20, width - len(indent) - 3))
        arrows = [f"{'   ' if number else '-> '}{line}" for number, line in enumerate(advice)]
        return [head + text[0], *(indent + line for line in [*text[1:], *arrows])]


ok = partial(Finding, "ok")  # as it should be
note = partial(Finding, "note")  # not wrong, but worth knowing
problem = partial(Finding, "problem")  # will stop a study, or lose work


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort the findings: problems first, then notes."""
    return sorted(findings, key=lambda finding: [*LEVELS].index(finding.level))


def show(findings: Iterable[Finding]) -> None:
    """Print the findings, problems first."""
    width = terminal_width() or WIDTH
    for finding in in_order(findings):
        print("\n".join(finding.lines(width)), flush=True)


def size(count: float) -> str:
    """Format a number of bytes, such as 176 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
