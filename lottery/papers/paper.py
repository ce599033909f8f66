"""A paper as a sweep: blocks of studies, the scales at which they are run, and figures. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lottery.errors import ConfigError, nearest

SCALES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Block:
    """A block of a paper's studies: their common overrides, and the values that are swept."""

    name: str
    overrides: tuple[str, ...]
    label: str = ""  # in figures and tables; the name where there is none


@dataclass(frozen=True)
class Scale:
    """How much of a paper is run."""

    name: str
    cost: str
    overrides: tuple[str, ...] = ()
    runs: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)  # None: this block is left out


@dataclass(frozen=True)
class Figure:
    """One figure: a function of lottery.figures, and its arguments."""

    name: str
    plot: str
    runs: tuple[str, ...] = ()  # blocks; all where there are none
    scales: tuple[str, ...] = SCALES
    filters: Mapping[str, Any] = field(default_factory=dict)  # as load_runs takes them
    arguments: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Paper:
    """A paper: its studies, scales and figures."""

    name: str
    path: Path
    title: str
    source: Mapping[str, str]
    about: str
    blocks: tuple[Block, ...]
    scales: Mapping[str, Scale]
    figures: tuple[Figure, ...]

    @property
    def cited(self) -> str:
        """Authors, venue and sections."""
        return ", ".join(str(self.source[key]) for key in ("authors", "venue", "sections") if self.source.get(key))

    def scale(self, name: str) -> Scale:
        """Return the scale with this name. Raises ConfigError for an unknown one."""
        if name not in self.scales:
            raise ConfigError.of("--scale", name, f"one of {', '.join(self.scales)}{nearest(name, self.scales)}")
        return self.scales[name]

    def sweeps(self, scale: str, extra: Sequence[str] = ()) -> dict[Block, list[str]]:
        """Return each block of the scale, with its overrides as for `python -m lottery -m`; `extra` ones come last.

        Run folders are `<paths.runs>/<paper>/<study key>`, unless an override says otherwise.
        """
        asked = self.scale(scale)
        common = [f"name={self.name}", "tracker=none"]
        return {
            block: merged([*common, *block.overrides, *asked.overrides, *(asked.runs.get(block.name) or ()), *extra])
            for block in self.blocks
            if asked.runs.get(block.name, ()) is not None
        }

    def published(self, figure: str) -> list[dict[str, Any]]:
        """Return a figure's published points, with x, y, label and series. Raises ConfigError for an unknown figure."""
        figures = {each.name: each for each in self.figures}
        if figure not in figures:
            raise ConfigError.of("figure", figure, f"one of {', '.join(figures)}{nearest(figure, figures)}")
        return [{"series": None, **point} for point in figures[figure].published]


def key_of(override: str) -> str:
    """Return the key of an override: `exp` for `+exp=x` and `exp=x`. The key of a deletion, `~exp`, is another one."""
    key = override.partition("=")[0]
    return key if key.startswith("~") else key.lstrip("+")


def merged(overrides: Iterable[str]) -> list[str]:
    """Merge overrides: a later override of a key replaces the earlier one, in its place."""
    return list({key_of(override): override for override in overrides}.values())
