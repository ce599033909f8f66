"""Build HTML in which every text is escaped unless it is `Html`. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from html import escape
from typing import Any

from lottery.printing import printable_lines

VOID = ("meta", "img", "col")  # elements that have no end tag


class Html(str):
    """Text that is already markup."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element; children and attributes that are not `Html` are escaped.

    Empty children, and attributes that are None or False, are left out; True gives an attribute without a value.
    `class_` is the attribute class, `data_key` data-key.
    """
    given = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()]
    words = [
        f" {key}" if value is True else f' {key}="{_escaped(value)}"'
        for key, value in given
        if value is not None and value is not False
    ]
    start = f"<{name}{''.join(words)}>"
    return Html(start) if name in VOID else Html(f"{start}{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Join children without a separator; escape those that are not `Html`, and leave out empty ones."""
    return Html("".join(child if isinstance(child, Html) else _escaped(child) for child in children if child))


def _escaped(value: object) -> str:
    return escape(printable_lines(str(value)))


def embedded(value: Any) -> Html:
    """Return JSON for a script element, in which no character can end the element; NaN and infinities become null."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return Html(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _plain(value: Any) -> Any:
    """Make texts printable, and round numbers to six significant digits, which are more than a screen shows."""
    if isinstance(value, dict):
        return {printable_lines(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return printable_lines(value) if isinstance(value, str) else value
