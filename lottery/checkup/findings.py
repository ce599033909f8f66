"""What a check has found, and how it is printed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import wrap

from lottery.launch.table import colored, terminal_width

LEVELS = ("problem", "note", "ok")
COLORS = {"problem": "red", "note": "yellow", "ok": "green"}
TOPIC = 12  # characters
WIDTH = 118  # where the output is no terminal


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it is, and what to do about it."""

    level: str  # one of LEVELS
    topic: str
    text: str
    advice: str = ""

    def lines(self, width: int) -> list[str]:
        """As printed: `level  topic  text`, and below it the advice."""
        indent = " " * (len(LEVELS[0]) + TOPIC + 4)
        first, *rest = wrap(self.text, max(20, width - len(indent))) or [""]
        head = f"{colored(f'{self.level:<{len(LEVELS[0])}}', COLORS[self.level])}  {self.topic:<{TOPIC}}  {first}"
        advice = wrap(self.advice, max(20, width - len(indent) - 3))
        arrows = ["-> ", *["   "] * len(advice)]
        return [head, *(indent + line for line in rest), *(indent + a + line for a, line in zip(arrows, advice))]  # noqa: B905


def ok(topic: str, text: str) -> Finding:
    """As it should be."""
    return Finding("ok", topic, text)


def note(topic: str, text: str, advice: str = "") -> Finding:
    """Not wrong, but worth knowing."""
    return Finding("note", topic, text, advice)


def problem(topic: str, text: str, advice: str) -> Finding:
    """Something that will stop a study, or lose work."""
    return Finding("problem", topic, text, advice)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """What is wrong first."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def show(findings: Iterable[Finding]) -> None:
    """Print them, what is wrong first."""
    width = terminal_width() or WIDTH
    for finding in in_order(findings):
        print("\n".join(finding.lines(width)), flush=True)


def size(count: float) -> str:
    """Bytes, such as 176 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
