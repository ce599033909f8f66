"""What a study made and what it used, read from run folders: masks, and trainings that another study computed.

Which study computed a training, its row says (`cached` is false); which ones used it, theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lottery.analysis.read import read_config, read_rounds
from lottery.errors import LotteryError
from lottery.files import file_digest
from lottery.tracking.rows import artifact_name
from lottery.tracking.sink import MaskFile


@dataclass(frozen=True)
class Artifact:
    """A version of an artifact: a mask, or the record of trained weights (which stay in the store)."""

    name: str
    type: str  # mask, weights
    round: int
    digest: str  # of the mask, or of the state
    metadata: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    path: Path | None = field(default=None, compare=False, repr=False)  # None: the metadata are the content

    @property
    def alias(self) -> str:
        return f"round-{self.round:03d}"

    @property
    def id(self) -> str:
        """What it is known by on the server: made of what the server has of it."""
        return artifact_id(self.name, self.round, self.digest)


def artifact_id(name: str, round: int, digest: str) -> str:
    return f"{name} {round} {digest}"


@dataclass(frozen=True)
class Use:
    """A study's input: an artifact, and the run folder of the study that made it (None: a file of the user's)."""

    artifact: Artifact
    maker: Study | None


class Study:
    """A run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.key = self.folder.name
        self.name = f"{self.folder.parent.name}/{self.key}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Study) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.folder)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return read_rounds(self.folder)

    def details(self, row: dict[str, Any]) -> dict[str, Any]:
        """What rounds/*.json says of a row; nothing where the file is lost or damaged."""
        try:
            return json.loads((self.folder / "rounds" / f"{stem(row)}.json").read_text())
        except (OSError, ValueError):
            return {}

    @cached_property
    def trainings(self) -> dict[str, dict[str, Any]]:
        """The key of every training in the table, and its row."""
        found = {self.details(row).get("stages", {}).get("train"): row for row in self.rows}
        return {key: row for key, row in found.items() if key}

    @property
    def tickets(self) -> list[dict[str, Any]]:
        """The rows of the table that are no controls, each after its parent."""
        return sorted((row for row in self.rows if not row["control"]), key=lambda row: row["round"])

    def mask(self, row: dict[str, Any]) -> Artifact:
        """A ticket's mask, as the table has it; the file is not looked at."""
        name = artifact_name(self.config["name"], self.key)
        return Artifact(name, "mask", row["round"], row["mask_digest"])

    def checked_mask(self, row: dict[str, Any]) -> Artifact:
        """A ticket's mask with its file, every bit checked. LotteryError where it is damaged or not the table's."""
        from lottery.ticket import Mask  # torch, which takes seconds to import

        file = MaskFile.of(row, self.mask(row).name, self.folder / "masks" / f"{stem(row)}.safetensors")
        Mask.load(file.path)
        return Artifact(file.artifact, "mask", file.round, file.digest, file.metadata(), file.path)

    def weights(self, stage: str) -> Artifact:
        """The record of a training of this study."""
        row = self.trainings[stage]
        digests = self.details(row)["digests"]
        metadata = {"stage": stage, "digest": digests["trained"], "round": row["round"], "control": row["control"]}
        metadata |= {"study": self.key, "start": digests["start"], "mask": digests["mask"]}
        return Artifact(f"weights-{stage[:16]}", "weights", row["round"], digests["trained"], metadata)


def stem(row: dict[str, Any]) -> str:
    """What the files of a row are called, as `RunFolder` names them."""
    control = f".{row['control']}-{row['copy']}" if row["control"] else ""
    return f"round_{row['round']:03d}{control}"


Makers = dict[str, Study]  # which study computed a training


def makers_under(runs: Path) -> Makers:
    """Who computed each training, of all studies under a `paths.runs`. A study that cannot be read computed none."""
    found: Makers = {}
    for path in sorted(runs.glob("*/*/config.yaml")):
        study = Study(path.parent)
        with suppress(LotteryError, KeyError):
            found |= {stage: study for stage, row in study.trainings.items() if not row["cached"]}
    return found


def uses(study: Study, makers: Makers) -> list[Use]:
    """What a study took from others, and its file of start weights, in the order of the table.

    Of a ticket that another study trained: the mask, and the weights. A training is the study's own where no other
    run folder says that it computed it.
    """
    found: list[Use] = [*start_weights(study, makers), *allocated_by(study)]
    for stage, row in study.trainings.items():
        maker = makers.get(stage, study)
        if row["cached"] and maker != study:
            theirs = maker.trainings[stage]
            if theirs["round"] > 0 and not theirs["control"]:
                found.append(Use(maker.mask(theirs), maker))
            found.append(Use(maker.weights(stage), maker))
    return found


def start_weights(study: Study, makers: Makers) -> Iterator[Use]:
    """The file that `model.weights` names, where it is still there: of a stage if it lies in the store."""
    given = study.config["model"].get("weights")
    if not given or not Path(given).is_file():
        return
    path = Path(given).resolve()
    stage = path.parent.name
    if stage in makers:
        yield Use(makers[stage].weights(stage), makers[stage])
    else:
        digest = file_digest(path)
        yield Use(Artifact(f"weights-{digest[:16]}", "weights", 0, digest, {"file": path.name, "digest": digest}), None)


def allocated_by(study: Study) -> Iterator[Use]:
    """The saved mask that gave the layer densities, where it is still there: a study's ticket, or a file by itself."""
    given = (study.config["method"].get("allocation") or {}).get("path")
    if not given or not Path(given).is_file():
        return
    from lottery.ticket import read_metadata

    path = Path(given).resolve()
    digest, maker = read_metadata(path)["digest"], Study(path.parents[1])
    with suppress(LotteryError, KeyError):
        for row in maker.tickets:
            if row["mask_digest"] == digest:
                yield Use(maker.mask(row), maker)
                return
    yield Use(Artifact(f"mask-{digest[:16]}", "mask", 0, digest, {"file": path.name, "digest": digest}), None)
