"""Quote overrides so that Hydra keeps a text that looks like a number, or begins with ~, as a text. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import get_type_hints

from hydra.core.override_parser.types import Override

from lottery.config.models import SCHEMAS
from lottery.saved import kinds

# A value without quotes or brackets. Quotes around it change only its type.
BARE = re.compile(r"[\w.+\-~/ ]+")
# Texts that Hydra parses as a number or a truth value (1e3 becomes 1000.0), or cannot parse (~/runs).
MISREAD = re.compile(r"[+-]?[\d._]+(e[+-]?\d+)?|[+-]?(inf|nan)|true|false|~.*", re.IGNORECASE)


def as_written(overrides: Sequence[str]) -> list[str]:
    """Put quotes around each value of a text option that Hydra would otherwise parse as another type."""
    return [_quoted(override) for override in overrides]


def sets_key(override: Override) -> bool:
    """Whether an override is a plain `key=value`, with one value and neither + nor ~."""
    return override.type is not None and override.type.name == "CHANGE" and not override.is_sweep_override()


def _quoted(override: str) -> str:
    key, given, value = override.partition("=")
    kind = _text_options().get(key.lstrip("+"))
    if given and (kind is str or value.startswith("~")):
        return f"{key}={_parts(value)}"  # several values belong to a sweep
    inside = re.fullmatch(r"\[([^\[\]]*)\]", value) if given and kind is list else None
    return f"{key}=[{_parts(inside[1])}]" if inside else override


def _parts(value: str) -> str:
    """Quote comma-separated values as needed; leave all unchanged where one of them has quotes or brackets."""
    parts = value.split(",")
    if not all(BARE.fullmatch(part) for part in parts):
        return value
    return ",".join(f"'{part}'" if _misread(part.strip()) else part for part in parts)


def _misread(text: str) -> bool:
    """Whether Hydra would change or refuse this text without quotes. It refuses letters beyond ASCII."""
    return not text.isascii() or MISREAD.fullmatch(text) is not None


@cache
def _text_options() -> dict[str, type]:
    """Map every dotted key of a study that takes a text to `str`, and that takes a list of texts to `list`."""
    models = {f"model.{name}": kind for each in SCHEMAS.values() for name, kind in get_type_hints(each).items()}
    texts = {str: str, str | None: str, list[str]: list}
    return {key: texts[kind] for key, kind in (kinds() | models).items() if kind in texts}
