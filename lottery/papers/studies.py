"""The studies of a paper at one scale: their configurations, run folders, and which of them are done. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from lottery.combine import Composer, combinations
from lottery.compose import explained
from lottery.config import study_key
from lottery.errors import ConfigError, LotteryError
from lottery.papers.paper import Paper
from lottery.record.names import TABLE
from lottery.record.status import finished

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PlannedStudy:
    """One study of a paper, and the blocks that it belongs to."""

    blocks: tuple[str, ...]
    overrides: list[str]
    config: DictConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.paths.runs) / self.config.name / study_key(self.config)

    @property
    def done(self) -> bool:
        """Whether the study has run to its end, according to its run folder."""
        return self.begun and finished(self.folder, by_log=False)

    @property
    def begun(self) -> bool:
        return (self.folder / TABLE).exists()


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """Return every combination of the swept values. Raises ConfigError for an override that cannot be read or swept."""
    with explained(overrides, None):
        return combinations(OverridesParser.create().parse_overrides(list(overrides)))


def studies(paper: Paper, scale: str, extra: Sequence[str] = ()) -> list[PlannedStudy]:
    """Return every study of this scale once, block by block; `extra` overrides come after the paper's own.

    Raises ConfigError, which names the paper's file and block, if any study is wrong.
    """
    compose, found = Composer(), dict[Path, PlannedStudy]()
    for block, overrides in paper.sweeps(scale, extra).items():
        try:
            composed = [(job, compose(job)) for job in jobs_of(overrides)]
        except ConfigError as error:
            raise ConfigError(f"{paper.path}: {scale}, block {block.name}: {error}") from error
        for job, cfg in composed:
            study = PlannedStudy((block.name,), job, cfg)
            if (known := found.get(study.folder)) is not None:
                study = replace(known, blocks=(*known.blocks, block.name))
            found[study.folder] = study
    return list(found.values())


def jobs(paper: Paper, scale: str, extra: Sequence[str] = ()) -> list[list[str]]:
    """Return the overrides of every study, each study once. Raises ConfigError if one cannot be composed."""
    return [study.overrides for study in studies(paper, scale, extra)]


def table(paper: Paper, scale: str, extra: Sequence[str] = (), *, runs: str | Path | None = None) -> pd.DataFrame:
    """Return all rounds of this scale's studies, as `load_runs` does, with the columns `block` and `label` added.

    A study of several blocks has rows in each of them. `attrs["scale"]` is the scale. Raises LotteryError for no rows.
    """
    given = studies(paper, scale, [*extra, *([f"paths.runs={runs}"] if runs is not None else [])])
    return table_of(paper, given, scale)


def table_of(paper: Paper, given: Sequence[PlannedStudy], scale: str) -> pd.DataFrame:
    """Return the `table` of these studies of the scale."""
    from lottery.record.table import load_runs

    begun = [study for study in given if study.begun]
    if not begun:
        command = f"python -m lottery paper {paper.name} --scale {scale}"
        raise LotteryError(f"{paper.name}: no study of the scale {scale} has a round yet; `{command}` runs them")
    rows = load_runs([study.folder for study in begun])
    labels = {block.name: block.label for block in paper.blocks}
    blocks = {str(study.folder): study.blocks for study in begun}
    rows.insert(1, "block", rows["run"].map(lambda run: list(blocks[run])))
    rows = rows.explode("block", ignore_index=True)
    rows.insert(2, "label", rows["block"].map(labels))
    rows.attrs["scale"] = scale
    return rows
