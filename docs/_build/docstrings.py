"""Our docstrings as Markdown: their lines "name: what it is" become the items of a list, other text stays as it is."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ITEM = re.compile(r"([a-z_][\w, *]*): +(\S.*)")
QUOTED = re.compile(r"(`[^`]*`)")


class Lists(Extension):
    """Changes the docstring of every object that is documented."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The docstring with its lists; what Markdown would take for markup is escaped."""
    lines: list[str] = []
    inside = False  # an item, whose further lines are indented
    for line in text.splitlines():
        item = ITEM.fullmatch(line)
        inside = item is not None or (inside and line.startswith("  "))
        if item:
            if lines and lines[-1] and not lines[-1].startswith(("- ", "    ")):
                lines.append("")
            lines.append(f"- `{item[1]}`: {escaped(item[2])}")
        elif inside:
            lines.append(f"    {escaped(line.strip())}")
        else:
            if line.strip() and lines and lines[-1].startswith(("- ", "    ")):
                lines.append("")
            lines.append(line if line.startswith("    ") else escaped(line))
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Outside of code, `*`, `_` and `<` are themselves."""
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<\[\]])", r"\\\1", part) for part in QUOTED.split(text)
    )
