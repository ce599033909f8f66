"""HTML that is escaped by construction: what is not `Html` is text. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from html import escape
from typing import Any

VOID = ("meta", "img", "col")  # elements that have no end tag


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Children and attributes that are not `Html` are escaped; None and False leave them out, True gives an
    attribute without a value. `class_` is the attribute class, `data_key` data-key.
    """
    given = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()]
    words = [
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in given
        if value is not None and value is not False
    ]
    start = f"<{name}{''.join(words)}>"
    return Html(start) if name in VOID else Html(f"{start}{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """One after the other."""
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in children if child))


def embedded(value: Any) -> Html:
    """JSON for a script element: no character in it can end the element. What is not a finite number is null."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return Html(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _plain(value: Any) -> Any:
    """Six significant digits are more than a screen shows."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
