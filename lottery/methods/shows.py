"""How a method's studies are named and drawn, as the method declares. Torch-free, like the methods' files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

OWN = re.compile(r"lottery\.methods\.\w+\.\w+")


@dataclass(frozen=True)
class Shows:
    """How studies of a method are named and drawn.

    name:     its name in a legend
    title:    words of a title; {rewind}, {criterion}, {allocation} and {searched} are replaced by the study's
    group:    words where several methods are compared; empty: those of the title
    ladder:   whether its rounds form one ladder of densities; if not, costs cannot be summed over the rounds
    figure:   the figure that it has instead of those of a ladder
    mask:     what its tickets are called in legends; empty: ticket
    needs:    which earlier trainings a round builds on: "all" before it, the "dense" one, or "none"
    """

    name: str = ""
    title: str = ""
    group: str = ""
    ladder: bool = True
    figure: str = ""
    mask: str = ""
    needs: str = "all"


@lru_cache(maxsize=64)
def shows(target: str) -> Shows:
    """Return what the method of this `_target_` declares; nothing for a user's own code, which is not run here."""
    if not OWN.fullmatch(target):
        return Shows()
    module, _, name = target.rpartition(".")
    try:
        found = getattr(getattr(import_module(module), name, None), "shows", None)
    except ImportError:  # a method of another version
        return Shows()
    return found if isinstance(found, Shows) else Shows()
