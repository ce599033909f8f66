"""The studies of a paper at one scale: their configurations, run folders, and which of them are done. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from lottery.compose import explained, groups
from lottery.config import study_key
from lottery.errors import ConfigError, LotteryError
from lottery.papers.paper import Paper
from lottery.sweep import Composer, combinations
from lottery.tracking.status import Status

if TYPE_CHECKING:
    import pandas as pd


LIST = re.compile(r"(\w+)=\[[\w,]*\]")


@dataclass(frozen=True)
class Study:
    """One study of a paper, and the blocks that it belongs to."""

    blocks: tuple[str, ...]
    overrides: list[str]
    config: DictConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.paths.runs) / self.config.name / study_key(self.config)

    @property
    def done(self) -> bool:
        """Whether it has run to its end, by this folder's own word."""
        status = Status.read(self.folder)
        return status is not None and status.state == "done" and (self.folder / "rounds.jsonl").exists()

    @property
    def begun(self) -> bool:
        return (self.folder / "rounds.jsonl").exists()


class ListComposer(Composer):
    """As fast where what is chosen of a group is a list: probes=[light,copies]."""

    _lists: tuple[str, ...] = ()

    def _set(self, overrides: Sequence[str]) -> DictConfig | None:
        known = groups(self.config_dir)
        self._lists = tuple(o for o in overrides if (found := LIST.fullmatch(o)) and found[1] in known)
        return super()._set([override for override in overrides if override not in self._lists])

    def _base(self, choices: tuple[str, ...]) -> DictConfig:
        return super()._base((*choices, *self._lists))


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the swept values. Raises ConfigError for an override that cannot be read or swept."""
    with explained(overrides, None):
        return combinations(OverridesParser.create().parse_overrides(list(overrides)))


def studies(paper: Paper, scale: str, extra: Sequence[str] = ()) -> list[Study]:
    """Every study of this scale once, block by block. `extra` overrides come after the paper's own.

    Raises ConfigError, which names the paper's file and block, for one that is wrong: none is left out.
    """
    compose, found = ListComposer(), dict[Path, Study]()
    for block, overrides in paper.sweeps(scale, extra).items():
        try:
            composed = [(job, compose(job)) for job in jobs_of(overrides)]
        except ConfigError as error:
            raise ConfigError(f"{paper.path}: {scale}, block {block.name}: {error}") from error
        for job, cfg in composed:
            study = Study((block.name,), job, cfg)
            known = found.get(study.folder)
            found[study.folder] = study if known is None else Study((*known.blocks, block.name), known.overrides, cfg)
    return list(found.values())


def table(paper: Paper, scale: str, extra: Sequence[str] = (), *, runs: str | Path | None = None) -> pd.DataFrame:
    """The rounds of all studies of this scale that have any, as `load_runs` gives them, with two columns more: `block`
    and its `label`. A study of several blocks has its rows in each. `attrs["scale"]` says which scale it is.

    Raises LotteryError where no study has a round.
    """
    return table_of(
        paper, studies(paper, scale, [*extra, *([f"paths.runs={runs}"] if runs is not None else [])]), scale
    )


def table_of(paper: Paper, given: Sequence[Study], scale: str) -> pd.DataFrame:
    """The same of these studies."""
    from lottery.analysis.runs import load_runs

    begun = [study for study in given if study.begun]
    if not begun:
        raise LotteryError(
            f"{paper.name}: no study of the scale {scale} has a round yet; `python -m lottery paper {paper.name} "
            f"--scale {scale}` runs them"
        )
    rows = load_runs([study.folder for study in begun])
    labels = {block.name: block.label for block in paper.blocks}
    blocks = {str(study.folder): study.blocks for study in begun}
    rows = rows.assign(block=rows["run"].map(lambda run: list(blocks[run]))).explode("block", ignore_index=True)
    first = ["run", "block", "label"]
    rows = rows.assign(label=rows["block"].map(labels))
    rows.attrs["scale"] = scale
    return rows[[*first, *(name for name in rows if name not in first)]]
