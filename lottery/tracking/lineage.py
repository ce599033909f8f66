"""Find the artifacts that a study made and used: masks, and weights of trainings that another study computed.

A training's row has `cached` false in the study that computed it, and true in the studies that used it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.files import file_digest
from lottery.record.config import read_config
from lottery.record.folders import keyed_folders
from lottery.record.names import mask_file
from lottery.record.rows import Row, identity
from lottery.record.run import Run
from lottery.tracking.items import Artifact
from lottery.values import fits

NEEDS = ("name", "model", "method", "tracker.project", "tracker.entity")  # keys that a configuration must have


@dataclass(frozen=True)
class Use:
    """A study's input: an artifact, and the run of the study that made it (None: a user's file)."""

    artifact: Artifact
    maker: TrackedRun | None


class TrackedRun(Run):
    """A run folder, with its study's artifacts for W&B. Objects for one folder are equal."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.resolve())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrackedRun) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.path, NEEDS)

    def origin(self, row: Row) -> dict[str, Any]:
        """Return the details of a row; {} where the file is missing, damaged or altered."""
        with suppress(LotteryError):
            found = self.details(*identity(row))
            stages, digests = found.get("stages"), found.get("digests")
            known = isinstance(stages, dict) and fits(stages.get("train"), str | None)
            if known and fits(digests, dict[str, str | None]):
                return found
        return {}

    @cached_property
    def trainings(self) -> dict[str, Row]:
        """Key of a training -> its row, for all trainings in the table."""
        found = {self.origin(row).get("stages", {}).get("train"): row for row in self.rows}
        return {key: row for key, row in found.items() if key}

    @property
    def tickets(self) -> list[Row]:
        """The rows of tickets, sorted by round, so that each comes after its parent."""
        return sorted((row for row in self.rows if not row["control"]), key=lambda row: row["round"])

    def mask_of(self, row: Row) -> Artifact:
        """Return a ticket's mask as recorded in the table, without reading the file."""
        return Artifact.mask(self.config["name"], self.key, row, self.path / mask_file(row["round"]))

    def checked_mask(self, row: Row) -> Artifact:
        """Like `mask_of`, but check the whole file. Raises LotteryError where it is damaged or holds another mask."""
        from lottery.ticket import Mask  # torch, which takes seconds to import

        mask = self.mask_of(row)
        assert mask.path is not None
        Mask.load(mask.path)
        mask.metadata()
        return mask

    def weights(self, stage: str) -> Artifact:
        """Return the record of the weights of a training of this study."""
        row = self.trainings[stage]
        digests = self.origin(row)["digests"]
        facts = {"control": row["control"], "study": self.key, "start": digests["start"], "mask": digests["mask"]}
        return Artifact.weights(stage, row["round"], digests["trained"], **facts)


Makers = dict[str, TrackedRun]  # key of a training -> the study that computed it


def makers_under(runs: Path) -> Makers:
    """Map each training to the study under `runs` (a `paths.runs`) that computed it, without unreadable studies."""
    found: Makers = {}
    for run in map(TrackedRun, sorted(keyed_folders(runs))):
        with suppress(LotteryError, KeyError):
            found |= {stage: run for stage, row in run.trainings.items() if not row["cached"]}
    return found


def uses(run: TrackedRun, makers: Makers) -> list[Use]:
    """List the inputs of a study: files that its configuration names, then inputs from other studies in table order.

    A training of another study gives its weights, and for a ticket after round 0 its mask. A training that no run
    folder records as computed there counts as the study's own.
    """
    found: list[Use] = [*start_weights(run, makers), *allocated_by(run)]
    for stage, row in run.trainings.items():
        maker = makers.get(stage, run)
        if row["cached"] and maker != run:
            theirs = maker.trainings[stage]
            if theirs["round"] > 0 and not theirs["control"]:
                found.append(Use(maker.mask_of(theirs), maker))
            found.append(Use(maker.weights(stage), maker))
    return found


def start_weights(run: TrackedRun, makers: Makers) -> Iterator[Use]:
    """Yield the file in `model.weights`, if it still exists; as a stage's weights if it lies in the store."""
    given = run.config["model"].get("weights")
    if not given or not Path(given).is_file():
        return
    path = Path(given).resolve()
    stage = path.parent.name
    if stage in makers:
        yield Use(makers[stage].weights(stage), makers[stage])
    else:
        yield Use(Artifact.file("weights", path, file_digest(path)), None)


def allocated_by(run: TrackedRun) -> Iterator[Use]:
    """Yield the saved mask that gave the layer densities, if it still exists: a study's ticket, or a user's file."""
    given = (run.config["method"].get("allocation") or {}).get("path")
    if not given or not Path(given).is_file():
        return
    from lottery.ticket import read_metadata

    path = Path(given).resolve()
    digest, maker = read_metadata(path)["digest"], TrackedRun(path.parent.parent)
    with suppress(LotteryError, KeyError):
        for row in maker.tickets:
            if row["mask_digest"] == digest:
                yield Use(maker.mask_of(row), maker)
                return
    yield Use(Artifact.file("mask", path, digest), None)
