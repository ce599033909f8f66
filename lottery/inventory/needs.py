"""Find the stages of a store that run folders use, and those that they need. Reads only; torch-free."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.inventory.contents import Contents, StoredStage, digests
from lottery.record.folders import runs_below
from lottery.record.names import CONFIG
from lottery.record.run import Run
from lottery.record.status import finished
from lottery.saved import read_saved


@dataclass(frozen=True)
class StoreUser:
    """A run folder, and the stages that its rounds came from."""

    folder: Path
    uses: dict[str, list[str]]  # stage key -> rounds, such as "round 1 reinit 0"
    densities: dict[str, float]  # mask digest -> density
    finished: bool  # if so, it needs only the stages in `uses` and their sources

    @property
    def name(self) -> str:
        """Name and key of the study, such as imp_rewind/0123456789ab."""
        return Run(self.folder).name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration. Raises LotteryError where it cannot be read."""
        return read_saved(self.folder / CONFIG, "repair it, or remove the run folder")

    @cached_property
    def stated(self) -> dict[str, dict[str, Any]]:
        """The inputs of stages that the configuration fixes: part -> option -> value. Raises the errors of `config`.

        The seed of the data order is left out, since copies of a ticket have different ones.
        """
        found = {name: part for name, part in self.config.items() if isinstance(part, dict)}
        data, train, seeds, model = (found.get(name, {}) for name in ("data", "train", "seeds", "model"))
        recipe = {name: train[name] for name in ("batch_size", "precision", "drop_last") if name in train}
        return {"recipe": recipe, "model": model, "data": {**data, "split_seed": seeds.get("split")}}

    def may_need(self, inputs: dict[str, Any]) -> bool:
        """Whether a stage with these inputs may belong to the study: all values that both name are equal.

        Only options that both write in the same form are compared, so the answer errs towards True.
        """
        for part, values in self.stated.items():
            found = inputs.get(part)
            if isinstance(found, dict) and any(name in found and found[name] != values[name] for name in values):
                return False
        return True


def find_users(roots: Iterable[Path], strict: bool = False) -> list[StoreUser]:
    """Return the run folders under these folders, at any depth, except for hidden ones.

    strict: raise LotteryError for an unreadable folder instead of skipping it, since gc would remove the stages of a
    run folder that it overlooked.
    """
    found: dict[Path, StoreUser] = {}
    for root in roots:
        for folder in runs_below(root, strict, bare=True):
            if (real := folder.resolve()) not in found:
                found[real] = read_user(folder)
    return list(found.values())


def read_user(folder: Path) -> StoreUser:
    """Read a run folder. Its study counts as finished only if its status says so and all details can be read."""
    uses: dict[str, list[str]] = {}
    run, done = Run(folder), finished(folder, by_log=False)
    try:
        rows = run.rows
    except (LotteryError, OSError):
        rows, done = [], False
    for name in (details := run.details_files):
        try:
            stages = run.read_json(name)["stages"]
        except (LotteryError, KeyError):
            done = False
            continue
        number, _, control = Path(name).stem.removeprefix("round_").partition(".")  # round_001.reinit-0
        round = f"round {int(number) if number.isdigit() else number} {control.replace('-', ' ')}".rstrip()
        for _, key in digests(stages):
            uses.setdefault(key, []).append(round)
    densities = {str(row.get("mask_digest")): row["density"] for row in rows if "density" in row}
    return StoreUser(folder, uses, densities, done and len(details) >= len(rows))


def needed(contents: Contents, runs: Collection[StoreUser], busy: Iterable[StoredStage] = ()) -> dict[str, str]:
    """Return the stages that must stay: key -> reason.

    These are the stages that a round came from, the stages that an unfinished study could still need, and for each
    `busy` stage all trainings of its network on its data by its recipe. The stages that their inputs come from stay
    too, and so do the stretches of each training.
    """
    found: dict[str, str] = {}
    for run in runs:
        for key in run.uses:
            found.setdefault(key, run.name)
    unfinished = [run for run in runs if not run.finished]
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
    """Add the stages that the kept stages were computed from, and the stretches of kept trainings."""
    by_key = {entry.key: entry for entry in contents.entries}
    stretches: dict[str, list[StoredStage]] = {}
    for entry in contents.entries:
        stretches.setdefault(_training(entry), []).append(entry)
    waiting = [by_key[key] for key in found if key in by_key]
    while waiting:
        entry = waiting.pop()
        for source in chain(*contents.sources(entry).values(), stretches[_training(entry)]):
            if source.key not in found:
                found[source.key] = f"input of {entry.short}"
                waiting.append(source)


def _family(entry: StoredStage) -> str:
    """Return a key for all trainings of one network on one data set by one recipe. Other stages have unique keys."""
    parts = [entry.inputs.get(part) for part in ("model", "data", "recipe")]
    if isinstance(parts[2], dict):  # copies of a ticket differ only in the seed of the data order
        parts[2] = {name: value for name, value in parts[2].items() if name != "order_seed"}
    return json.dumps(parts if all(parts) else entry.key, sort_keys=True)


def _training(entry: StoredStage) -> str:
    """Return a key for a training and its stretches, which end earlier (`until`) and are named by no round."""
    inputs = {name: value for name, value in entry.inputs.items() if name != "until"}
    return json.dumps([entry.kind, inputs or entry.key], sort_keys=True)
