"""A paper as a sweep: blocks of studies, the scales at which they are run, and figures. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pandas as pd

SCALES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Block:
    """Some of a paper's studies: what they have in common, and what is swept."""

    name: str
    overrides: tuple[str, ...]
    label: str = ""  # in figures and tables; the name where there is none


@dataclass(frozen=True)
class Scale:
    """How much of it is run."""

    name: str
    cost: str
    overrides: tuple[str, ...] = ()
    runs: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)  # None: this block is left out


@dataclass(frozen=True)
class Figure:
    """One figure: a function of lottery.analysis.plots, and what it is given."""

    name: str
    plot: str
    runs: tuple[str, ...] = ()  # blocks; all where there are none
    scales: tuple[str, ...] = SCALES
    filters: Mapping[str, Any] = field(default_factory=dict)  # as load_runs takes them
    arguments: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Paper:
    """A paper: which studies, at which scales, and its figures."""

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
        """Raises ConfigError for a scale that it does not have."""
        if name not in self.scales:
            raise ConfigError.of("--scale", name, f"one of {', '.join(self.scales)}{nearest(name, self.scales)}")
        return self.scales[name]

    def sweeps(self, scale: str, extra: Sequence[str] = ()) -> dict[Block, list[str]]:
        """Each block of the scale, with its overrides as they follow `python -m lottery -m`; `extra` ones come last.

        The run folders are those of the paper, `<paths.runs>/<paper>/<study key>`, unless an override says otherwise.
        """
        asked = self.scale(scale)
        common = [f"name={self.name}", "tracker=none"]
        return {
            block: merged([*common, *block.overrides, *asked.overrides, *(asked.runs.get(block.name) or ()), *extra])
            for block in self.blocks
            if asked.runs.get(block.name, ()) is not None
        }

    def jobs(self, scale: str, extra: Sequence[str] = ()) -> list[list[str]]:
        """The overrides of every study, each once. Raises ConfigError for what cannot be composed."""
        from lottery.papers.studies import studies

        return [study.overrides for study in studies(self, scale, extra)]

    def figure(self, name: str) -> Figure:
        """Raises ConfigError for a figure that it does not have."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        names = [figure.name for figure in self.figures]
        raise ConfigError.of("figure", name, f"one of {', '.join(names)}{nearest(name, names)}")

    def published(self, figure: str) -> list[dict[str, Any]]:
        """The published numbers of a figure: x, y, label and series, as the functions of lottery.analysis.plots take
        them.
        """
        return [{"series": None, **point} for point in self.figure(figure).published]

    def draw(self, frame: pd.DataFrame, folder: str | Path, scale: str | None = None) -> list[Path]:
        """The figures, from a table of `papers.table` or `load_runs`, and summary.csv, into `folder`; their paths.

        Those of one scale are drawn: of `scale`, or that of the table of `papers.table`; of all where it is not known.

        Raises LotteryError where a figure cannot be drawn, when the others are.
        """
        from lottery.papers.drawing import draw

        return draw(self, frame, Path(folder), scale)


def key_of(override: str) -> str:
    """What an override is about: `+exp`, `exp` and `exp@package` are one, `~key` (which deletes) another."""
    key = override.partition("=")[0]
    return key if key.startswith("~") else key.lstrip("+")


def merged(overrides: Iterable[str]) -> list[str]:
    """The overrides, of those with the same key the last one, where the first one stood."""
    found: dict[str, str] = {}
    for override in overrides:
        found[key_of(override)] = override
    return list(found.values())
