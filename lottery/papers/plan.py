"""Dry run of a paper: which trainings it needs, which of them studies share, and how long they take. Nothing is run."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lottery.config import settings
from lottery.config.data import Data
from lottery.data.tensors import Arrays
from lottery.papers.paper import Paper
from lottery.papers.planned import Ledger, PlannedLab, PlannedStage, row_identities
from lottery.papers.probe import Pace, kind_of, measured
from lottery.papers.running import chosen, workers_of
from lottery.papers.studies import PlannedStudy
from lottery.parts import locate
from lottery.record.status import duration
from lottery.stages.bench import Bench

# Training and test images of data sets that are downloaded on first use; a dry run downloads nothing.
SIZES = {
    "mnist": (60000, 10000),
    "fashion_mnist": (60000, 10000),
    "cifar10": (50000, 10000),
    "cifar100": (50000, 10000),
}
SHOWN = 60  # at most so many studies are listed


@dataclass
class Planned:
    """A study, and the stages that no study before it requests."""

    study: PlannedStudy
    stages: list[PlannedStage] = field(default_factory=list)
    asked: int = 0  # number of stages that the study requests in all
    seconds: float = 0.0  # of the stages that are left
    pace: Pace | None = None

    @property
    def left(self) -> list[PlannedStage]:
        return [stage for stage in self.stages if not stage.done]


def plan(given: Sequence[PlannedStudy]) -> tuple[list[Planned], Ledger]:
    """Run every study in a lab where nothing is computed; return the studies with their stages, and all stages."""
    ledger, found, paces = Ledger(), [], dict[str, Pace]()
    for study in given:
        lab = PlannedLab(settings(source_known(study.config)), ledger)
        planned = Planned(study)
        run_through(study, lab, planned)
        kind = kind_of(lab.config)
        if kind not in paces and any(not stage.done for stage in planned.stages):
            paces[kind] = measured(lab)
        planned.pace = paces.get(kind)
        found.append(planned)
    for planned in found:
        planned.seconds = sum(seconds_of(stage, planned.pace) for stage in planned.left)
    return found, ledger


def run_through(study: PlannedStudy, lab: PlannedLab, planned: Planned) -> None:
    """Run a study's rounds, controls and trainings of probes in the lab; record their stages, and which are done."""
    from lottery.study import Study as Runner

    runner, ledger = Runner(study.config), lab.ledger
    recorded, all_done = row_identities(study.folder), study.done
    known, probes = set(ledger.stages), runner.probes.values()
    for round in runner.rounds(lab):
        asked = [probe.trainings(round, Bench(lab)) for probe in probes if hasattr(probe, "trainings")]
        beside = [ticket for tickets in asked for ticket in tickets if ticket != round.ticket]
        for number, ticket in enumerate(beside):
            if ticket not in beside[:number]:  # several probes may use the copies of a round
                lab.train(ticket)
        done = all_done or (round.index, round.control, round.copy) in recorded
        for key in ledger.last:
            ledger.stages[key].done |= done
            if key not in known:
                known.add(key)
                planned.stages.append(ledger.stages[key])
        planned.asked += len(dict.fromkeys(ledger.last))
        ledger.last.clear()


def seconds_of(stage: PlannedStage, pace: Pace | None) -> float:
    """Return the time of a stage at this pace: its steps, and the images evaluated on its curve and at its end."""
    return 0.0 if pace is None else stage.batches * pace.step + stage.images * pace.image


def wall(planned: Sequence[Planned], workers: int) -> float:
    """Return the seconds until the last study ends, if each study goes to the first of the `workers` that is free."""
    busy = [0.0] * workers
    for each in planned:
        busy[busy.index(min(busy))] += each.seconds
    return max(busy)


# -- data that may not be there yet -----------------------------------------------------------------------------------


def source_known(cfg: DictConfig) -> DictConfig:
    """Copy the configuration, with a data source that downloads nothing and reads every file once."""
    cfg = copy.deepcopy(cfg)
    if cfg.data.name in SIZES and cfg.data._target_ == f"lottery.data.sources.{cfg.data.name}":
        cfg.data._target_ = "lottery.papers.plan.source"
    return cfg


def source(options: Data, folder: Path) -> Arrays:
    """Return a data set in SIZES, from its file or, where this is missing, made up at the real size."""
    return _source(options.name, folder, tuple(options.shape), options.classes)


@lru_cache(maxsize=4)
def _source(name: str, folder: Path, shape: tuple[int, ...], classes: int) -> Arrays:
    target = f"lottery.data.sources.{name}"
    if (folder / f"{name}.safetensors").exists():
        return locate(target, "data._target_")(Data(target, name, classes, list(shape)), folder)
    arrays = {}
    for part, count in zip(("train", "test"), SIZES[name], strict=True):
        arrays[f"{part}_images"] = torch.zeros((count, *shape), dtype=torch.uint8)
        arrays[f"{part}_labels"] = torch.arange(count) % classes
    return Arrays.of(arrays, origin="made up for a dry run")


# -- the text ---------------------------------------------------------------------------------------------------------


def dry_run(
    paper: Paper, scale: str, given: Sequence[PlannedStudy], launcher: str | None = None, options: Sequence[str] = ()
) -> int:
    """Print the studies, the stages that they share, and the time that they take. Writes nothing."""
    from lottery.combine import labels

    missing = [study for study in given if not study.done]
    print(f"{paper.name}, scale {scale}: {len(given)} studies, {len(given) - len(missing)} of them done")
    names = dict(zip(map(id, given), labels([study.overrides for study in given]), strict=True))
    planned, ledger = plan(given)
    for each in planned[:SHOWN]:
        shared = each.asked - len(each.stages)
        note = "done" if each.study.done else f"{len(each.left)} stages left" + (f", {shared} shared" if shared else "")
        print(f"  {'+'.join(each.study.blocks)}: {names[id(each.study)] or each.study.folder.name}: {note}")
    if len(planned) > SHOWN:
        print(f"  ... and {len(planned) - SHOWN} more")
    for line in [*stages_lines(ledger), *time_lines(planned, launcher, options)]:
        print(line)
    return 0


def stages_lines(ledger: Ledger) -> list[str]:
    """Return lines that say how many stages are requested, shared and done."""
    stages = list(ledger.stages.values())
    kinds = Counter(stage.kind for stage in stages)
    asked = sum(stage.asked for stage in stages)
    left = [stage for stage in stages if not stage.done]
    what = " and ".join(f"{count} {'searches' if kind == 'search' else 'trainings'}" for kind, count in kinds.items())
    shared = [stage for stage in stages if stage.asked > 1]
    saved = sum(stage.batches * (stage.asked - 1) for stage in shared)
    return [
        f"stages: {what}, asked for {asked} times: {len(shared)} are shared, which saves {saved:,} steps",
        f"        {len(stages) - len(left)} are done, {len(left)} are left: {sum(s.batches for s in left):,} steps",
        "        (as far as keys tell before anything is trained: masks that turn out equal are shared too)",
    ]


def time_lines(planned: Sequence[Planned], launcher: str | None, options: Sequence[str]) -> list[str]:
    """Return lines that say how long the remaining stages take."""
    left = [each for each in planned if each.left]
    if not left:
        return ["time: nothing is left to run"]
    paces = {each.pace.step: each for each in left if each.pace is not None}
    lines = [
        f"measured here: {milliseconds(pace)} ms a step, {model_of(each.study.config)}, batches of "
        f"{each.study.config.train.batch_size}"
        for pace, each in paces.items()
    ]
    total = sum(each.seconds for each in left)
    launcher, options = chosen(launcher, options, [each.study for each in left])
    workers = workers_of(options) if launcher == "local" else 1
    if workers > 1:
        short = wall(left, workers)
        lines.append(
            f"time: {duration(short)} to {duration(total)} here, {workers} studies side by side: the less they slow "
            "each other down, the shorter"
        )
    else:
        lines.append(f"time: {duration(total)} one after the other on this machine")
        if launcher == "slurm":
            lines.append(f"      the longest study alone: {duration(max(each.seconds for each in left))}")
    lines.append("      without what probes measure, scoring, figures, and a few seconds of imports a process")
    return lines


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds with three digits, such as 2.24, 712 or 1,040."""
    return f"{float(f'{1000 * seconds:.3g}'):,g}"


def model_of(cfg: DictConfig) -> str:
    """Name network and data, such as LeNet-300-100 on MNIST."""
    from omegaconf import OmegaConf

    from lottery.figures.style import title

    with contextlib.suppress(Exception):
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        return title(config, seed=False).partition(", ")[0]
    return cfg.name
