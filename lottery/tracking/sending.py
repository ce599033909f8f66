"""What of a study is still to be sent to W&B, and the sending, which a failure interrupts anywhere.

W&B cannot record inputs offline, so they are replayed from the run folders. What was sent is written down in the run
folder (`sync.json`) as soon as it is: whatever comes after is sent by the next call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import sleep
from typing import Any

from lottery.files import write_json
from lottery.stages.lease import POLL_SECONDS, Lease, read_holder
from lottery.tracking.lineage import Artifact, Makers, Study, Use, uses
from lottery.tracking.remote import Remote, marked
from lottery.tracking.wandb_log import recorded

MEMORY = "sync.json"

Say = Callable[[str], None]


@dataclass
class Sent:
    """What was sent of one study to one project: `sync.json` of the run folder, written at every addition."""

    path: Path
    place: str

    def read(self) -> dict[str, dict[str, list[str]]]:
        """Of every project: the names of segments, the ids of artifacts made and of those used."""
        with suppress(OSError, ValueError):
            return json.loads(self.path.read_text())
        return {}

    def has(self, kind: str, id: str) -> bool:
        return id in self.read().get(self.place, {}).get(kind, [])

    def has_elsewhere(self, kind: str, id: str) -> bool:
        return any(id in kinds.get(kind, []) for place, kinds in self.read().items() if place != self.place)

    def add(self, kind: str, *ids: str) -> None:
        places = self.read()
        known = places.setdefault(self.place, {}).setdefault(kind, [])
        known += [id for id in ids if id not in known]
        write_json(self.path, places)


@dataclass
class Job:
    """One study, to be sent to one project."""

    study: Study
    makers: Makers
    place: tuple[str, str | None]  # project, entity
    count: dict[str, int] = field(default_factory=lambda: {"segment": 0, "mask": 0, "input": 0})  # sent in this call

    @classmethod
    def of(cls, study: Study, makers: Makers, project: str | None, entity: str | None) -> Job:
        tracker = study.config["tracker"]
        return cls(study, makers, (project or tracker["project"], entity or tracker["entity"]))

    @property
    def sent(self) -> Sent:
        return sent_of(self.study, self.place)

    # -- what there is to send --------------------------------------------------------------------------------------

    def segments(self) -> list[Path]:
        """The offline logs that were not sent, oldest first. One that `wandb sync` sent is not sent again."""
        logs = sorted((self.study.folder / "wandb").glob(f"offline-run-*-{self.study.key}/run-{self.study.key}.wandb"))
        return [path for path in logs if not self._is_sent(path)]

    def _is_sent(self, path: Path) -> bool:
        name = path.parent.name
        return self.sent.has("segments", name) or (marked(path) > 0 and not self.sent.has_elsewhere("segments", name))

    def masks(self) -> list[dict[str, Any]]:
        """The rows of the tickets whose masks were not sent."""
        if not self.tracked:
            return []
        return [row for row in self.study.tickets if not self.sent.has("made", self.study.mask(row).id)]

    def uses(self) -> list[Use]:
        """The inputs that were not recorded."""
        return [use for use in self._uses if not self.sent.has("used", use.artifact.id)] if self.tracked else []

    @cached_property
    def _uses(self) -> list[Use]:
        return uses(self.study, self.makers)

    @property
    def tracked(self) -> bool:
        """Whether W&B ever had anything of the study."""
        return any((self.study.folder / "wandb").glob(f"*run-*-{self.study.key}"))

    def left(self) -> dict[str, int]:
        """How much is to be sent; empty if nothing."""
        count = {"segment": len(self.segments()), "mask": len(self.masks()), "input": len(self.uses())}
        return {name: number for name, number in count.items() if number}

    def outcome(self, count: dict[str, int], what: str) -> str:
        """ "2 segments, 1 mask sent", or "nothing sent"."""
        if not self.tracked:
            return "nothing to send, it was not tracked with W&B"
        parts = [f"{number} {name}{'s' * (number > 1)}" for name, number in count.items() if number]
        return f"{', '.join(parts) or 'nothing'} {what}"

    # -- sending ----------------------------------------------------------------------------------------------------

    @contextmanager
    def study_free(self, say: Say) -> Iterator[bool]:
        """Whether the study does not run, and does not begin to until we are done."""
        lease = Lease(self.study.folder, f"sync of {self.study.name}")
        beat, told = None, False
        while not (ours := lease.acquire()):
            last, beat = beat, touched(lease.path)
            if last is not None and beat not in (None, last):  # its holder is alive
                say(f"{self.study.folder}: not sent, it is run by {read_holder(self.study.folder)}")
                break
            if not told:
                say(f"{self.study.folder}: looking whether {read_holder(self.study.folder)} still runs it")
                told = True
            sleep(POLL_SECONDS)
        try:
            yield ours
        finally:
            if ours:
                lease.release()

    def send_made(self, remote: Remote) -> None:
        """The logs, which bring the masks along; then each mask that did not arrive with them, parents first."""
        masks = [self.study.checked_mask(row) for row in self.masks()]
        if segments := self.segments():
            remote.upload(segments)
            self.sent.add("segments", *(path.parent.name for path in segments))
            self.count["segment"] += len(segments)
        logged = remote.logged(self.study.key) if masks else set()
        for mask in masks:
            if mask.id not in logged:
                remote.log_artifact(self.study.key, mask, exit_code(self.study))
            self.count["mask"] += bool(segments) or mask.id not in logged  # else it was there, sent by the study
            self.sent.add("made", mask.id)

    def send_used(self, remote: Remote, say: Say) -> None:
        """What the study took from others, as soon as those who made it are on the server."""
        wanted = self.uses()
        used = remote.used(self.study.key) if wanted else set()
        missing = []
        for use in wanted:
            if use.maker is not None and not self._made(remote, use.maker, use.artifact):
                missing.append(use.maker)
                continue
            if use.artifact.id not in used:
                remote.use_artifact(self.study.key, use.artifact, exit_code(self.study))
            self.sent.add("used", use.artifact.id)
            self.count["input"] += 1
        for maker in dict.fromkeys(missing):
            say(f"{self.study.folder}: not sent: what it took from {maker.folder}; sync that first, then this again")

    def _made(self, remote: Remote, maker: Study, artifact: Artifact) -> bool:
        """Whether the server has an input as something that its maker made. Weights are added to the maker's run."""
        sent = sent_of(maker, self.place)
        if sent.has("made", artifact.id):
            return True
        if not remote.has_run(maker.key):
            return False
        if artifact.id not in remote.logged(maker.key):
            if artifact.type != "weights" or read_holder(maker.folder):
                return False
            remote.log_artifact(maker.key, artifact, exit_code(maker))
        sent.add("made", artifact.id)
        return True


def sent_of(study: Study, place: tuple[str, str | None]) -> Sent:
    return Sent(study.folder / MEMORY, f"{place[1] or ''}/{place[0]}")


def exit_code(study: Study) -> int:
    """How W&B was told that the study ended: 0 where it is done."""
    tracker = study.config["tracker"]
    return 0 if recorded(study.folder / "wandb", study.key, tracker["project"], tracker["entity"]).finished else 1


def touched(path: Path) -> int | None:
    """When a file was last touched; None where there is none."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return None
