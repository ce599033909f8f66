"""Our docstrings as Markdown: their lines "name: what it is" become the items of a list, other text stays as it is."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ITEM = re.compile(r"([a-z_][\w, ]*): +(\S.*)")
CODE = re.compile(r"(`[^`]*`)")


class Lists(Extension):
    """Changes the docstring of every object that is documented."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The docstring with its lists. An item ends at the next one, or at an empty line."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        item = ITEM.fullmatch(line)
        if item:
            lines += [] if inside else [""]
            lines.append(f"- `{item[1]}`: {escaped(item[2])}")
        elif inside and line.strip():
            lines.append(f"    {escaped(line.strip())}")
        else:
            lines.append(line if line.startswith("    ") else escaped(line))
        inside = bool(line.strip()) and (inside or item is not None)
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Outside of code, what Markdown would take for markup is itself."""
    return "".join(part if part[:1] == "`" else re.sub(r"([*_<\[\]])", r"\\\1", part) for part in CODE.split(text))
