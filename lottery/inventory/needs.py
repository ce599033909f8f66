"""Which run folders use which stages of a store, and what they need of it. Reads only, torch-free."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from lottery.analysis.read import read_rounds
from lottery.errors import LotteryError
from lottery.inventory.contents import Contents, Entry, digests
from lottery.tracking.status import Status

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C, where PyYAML has it


@dataclass(frozen=True)
class Run:
    """A run folder, and the stages that its rounds came from."""

    folder: Path
    uses: dict[str, list[str]]  # stage key: rounds, such as "round 1 reinit 0"
    densities: dict[str, float]  # mask digest: density
    finished: bool  # it needs nothing but what its rounds name

    @property
    def name(self) -> str:
        """Such as imp_rewind/0123456789ab."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration. Raises LotteryError where it cannot be read."""
        path = self.folder / "config.yaml"
        try:
            found = yaml.load(path.read_text(), LOADER)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not YAML"
            raise LotteryError(f"{path}: cannot be read: {reason}; repair it, or remove the run folder") from error
        if not isinstance(found, dict):
            raise LotteryError(f"{path}: not a configuration; repair it, or remove the run folder")
        return found

    @cached_property
    def stated(self) -> dict[str, dict[str, Any]]:
        """What the configuration says of a stage's inputs, part by part; raises LotteryError as `config` does."""
        found = {name: part for name, part in self.config.items() if isinstance(part, dict)}
        data, train, seeds, model = (found.get(name, {}) for name in ("data", "train", "seeds", "model"))
        recipe = {name: train[name] for name in ("batch_size", "precision", "drop_last") if name in train}
        return {  # not the order's seed: copies of a ticket have their own
            "recipe": recipe,
            "model": model,
            "data": {**data, "split_seed": seeds.get("split")},
        }

    def may_need(self, inputs: dict[str, Any]) -> bool:
        """Whether a stage of these inputs could be the study's: whatever both name is equal.

        Only plain options are compared, which a configuration states as a stage does: the answer errs towards yes.
        """
        for part, values in self.stated.items():
            found = inputs.get(part)
            if isinstance(found, dict) and any(name in found and found[name] != values[name] for name in values):
                return False
        return True


def find_runs(roots: Iterable[Path], strict: bool = False) -> list[Run]:
    """Every run folder under these folders, however deep; what is hidden is not looked at.

    Folders that cannot be read are left out; if `strict`, they are a LotteryError: a run folder that gc overlooked
    would lose its stages.
    """
    found: dict[Path, Run] = {}
    for root in roots:
        for folder in _run_folders(root, strict, set()):
            if (real := folder.resolve()) not in found:
                found[real] = read_run(folder)
    return list(found.values())


def _run_folders(folder: Path, strict: bool, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Links are followed; `seen` is what keeps them from leading in circles."""
    try:
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            return
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as listing:
            inside = {entry.name: entry for entry in listing}
    except FileNotFoundError:
        return
    except OSError as error:
        if not strict:
            return
        raise LotteryError(f"{folder}: cannot be searched for run folders: {error.strerror}") from error
    if {"rounds", "masks"} <= inside.keys() or "rounds.jsonl" in inside:
        yield folder
        return
    for name in sorted(inside):
        if name[0] != "." and inside[name].is_dir():
            yield from _run_folders(folder / name, strict, seen)


def read_run(folder: Path) -> Run:
    """What a run folder says. A study counts as finished only if that, and all its rounds' details, can be read."""
    uses: dict[str, list[str]] = {}
    status = Status.read(folder)
    finished = status is not None and status.state == "done"
    try:
        rows = read_rounds(folder)
    except (LotteryError, OSError):
        rows, finished = [], False
    details = sorted((folder / "rounds").glob("round_*.json"))
    for path in details:
        try:
            stages = json.loads(path.read_bytes())["stages"]
        except (OSError, ValueError, KeyError, TypeError):
            finished = False
            continue
        for _, key in digests(stages):
            uses.setdefault(key, []).append(_round(path.stem))
    densities = {str(row.get("mask_digest")): row["density"] for row in rows if "density" in row}
    return Run(folder, uses, densities, finished and len(details) >= len(rows))


def _round(stem: str) -> str:
    """round_001.reinit-0 -> round 1 reinit 0"""
    number, _, control = stem.removeprefix("round_").partition(".")
    return f"round {int(number) if number.isdigit() else number} {control.replace('-', ' ')}".rstrip()


def needed(contents: Contents, runs: Iterable[Run], busy: Iterable[Entry] = ()) -> dict[str, str]:
    """The stages that must stay: key -> why.

    Those that a round came from; what a study that is not finished could still need; and, for the sake of whoever is at
    work on a stage of `busy`, all trainings of the same network on the same data by the same recipe. With each of them
    the stages that its inputs come from, and the stretches of the same training.
    """
    found: dict[str, str] = {}
    unfinished = []
    for run in runs:
        for key in run.uses:
            found.setdefault(key, run.name)
        if not run.finished:
            unfinished.append(run)
    families: dict[str, str] = {}
    for entry in busy:
        found.setdefault(entry.key, "in the making")
        families.setdefault(_family(entry), f"{entry.short}, which is in the making")
    for entry in contents.entries:
        if entry.key in found:
            continue
        family = _family(entry)
        if family not in families:
            by = next((run.name for run in unfinished if run.may_need(entry.inputs)), "")
            families[family] = by and f"{by}, which is not finished"
        if families[family]:
            found[entry.key] = families[family]
    _add_sources(contents, found)
    return found


def _add_sources(contents: Contents, found: dict[str, str]) -> None:
    """Add, to the stages that must stay, those that they come from."""
    by_key = {entry.key: entry for entry in contents.entries}
    stretches: dict[str, list[Entry]] = {}
    for entry in contents.entries:
        stretches.setdefault(_training(entry), []).append(entry)
    waiting = [by_key[key] for key in found if key in by_key]
    while waiting:
        entry = waiting.pop()
        for source in chain(*contents.sources(entry).values(), stretches[_training(entry)]):
            if source.key not in found:
                found[source.key] = f"input of {entry.short}"
                waiting.append(source)


def _family(entry: Entry) -> str:
    """What trainings of one network on one data set by one recipe have in common; a stage of another kind is alone."""
    parts = [entry.inputs.get(part) for part in ("model", "data", "recipe")]
    if isinstance(parts[2], dict):  # copies of a ticket differ in the order's seed alone
        parts[2] = {name: value for name, value in parts[2].items() if name != "order_seed"}
    return json.dumps(parts if all(parts) else entry.key, sort_keys=True)


def _training(entry: Entry) -> str:
    """What a training has in common with its stretches, which end earlier (`until`) and are named by no round."""
    inputs = {name: value for name, value in entry.inputs.items() if name != "until"}
    return json.dumps([entry.kind, inputs or entry.key], sort_keys=True)
