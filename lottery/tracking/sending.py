"""Find the items of a study that have not been sent to W&B, and send them.

W&B cannot record inputs offline, so they are replayed from the run folders. Each item sent is recorded in the run
folder at once, so that a call after a failure sends only the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lottery.files import Missing, Unreadable, read_json, write_json
from lottery.lease import Lease, read_holder
from lottery.record.names import SENT, WANDB
from lottery.signals import StopFlag
from lottery.tracking.items import Artifact, publish
from lottery.tracking.lineage import Makers, TrackedRun, Use, uses
from lottery.tracking.remote import Kind, Remote, marked
from lottery.tracking.wandb_log import recorded
from lottery.values import fits

Say = Callable[[str], None]


@dataclass
class Sent:
    """The record of items sent for one study to one project: a file of the run folder, written at every addition."""

    path: Path
    place: str

    @classmethod
    def of(cls, run: TrackedRun, place: tuple[str, str | None]) -> Sent:
        return cls(run.path / SENT, f"{place[1] or ''}/{place[0]}")

    def read(self) -> dict[str, dict[str, list[str]]]:
        """Return project -> kind (segments, made, used) -> names of segments, or ids of artifacts.

        Raises LotteryError where the file is damaged, because everything would be sent again.
        """
        remedy = "remove it to send everything again"
        try:
            found = read_json(self.path, remedy)
        except Missing:
            return {}
        if not fits(found, dict[str, dict[str, list[str]]]):
            raise Unreadable.of(self.path, "not a record of what was sent", remedy)
        return found

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
class Upload:
    """The upload of one study to one project."""

    run: TrackedRun
    makers: Makers
    place: tuple[str, str | None]  # project, entity
    count: dict[str, int] = field(default_factory=lambda: {"segment": 0, "mask": 0, "input": 0})  # sent in this call

    @classmethod
    def of(cls, run: TrackedRun, makers: Makers, project: str | None, entity: str | None) -> Upload:
        tracker = run.config["tracker"]
        return cls(run, makers, (project or tracker["project"], entity or tracker["entity"]))

    @property
    def sent(self) -> Sent:
        return Sent.of(self.run, self.place)

    # -- items not sent yet -----------------------------------------------------------------------------------------

    def segments(self) -> list[Path]:
        """Return the offline logs not sent yet, oldest first. Logs that the user sent by `wandb sync` count as sent."""
        logs = sorted((self.run.path / WANDB).glob(f"offline-run-*-{self.run.key}/run-{self.run.key}.wandb"))
        return [path for path in logs if not self._is_sent(path)]

    def _is_sent(self, path: Path) -> bool:
        name = path.parent.name
        return self.sent.has("segments", name) or (marked(path) > 0 and not self.sent.has_elsewhere("segments", name))

    def masks(self) -> list[dict[str, Any]]:
        """Return the rows of the tickets whose masks were not sent yet."""
        if not self.tracked:
            return []
        return [row for row in self.run.tickets if not self.sent.has("made", self.run.mask_of(row).server_id)]

    def uses(self) -> list[Use]:
        """Return the inputs that were not sent yet."""
        return [use for use in self._uses if not self.sent.has("used", use.artifact.server_id)] if self.tracked else []

    @cached_property
    def _uses(self) -> list[Use]:
        return uses(self.run, self.makers)

    @property
    def tracked(self) -> bool:
        """Whether the study was ever recorded with W&B."""
        return any((self.run.path / WANDB).glob(f"*run-*-{self.run.key}"))

    def left(self) -> dict[str, int]:
        """Return the number of items to send of each kind, without zeros."""
        count = {"segment": len(self.segments()), "mask": len(self.masks()), "input": len(self.uses())}
        return {name: number for name, number in count.items() if number}

    def outcome(self, count: dict[str, int], what: str) -> str:
        """Format counts, such as "2 segments, 1 mask sent" or "nothing sent"."""
        if not self.tracked:
            return "nothing to send, it was not tracked with W&B"
        parts = [f"{number} {name}{'s' * (number > 1)}" for name, number in count.items() if number]
        return f"{', '.join(parts) or 'nothing'} {what}"

    # -- sending ----------------------------------------------------------------------------------------------------

    @contextmanager
    def study_free(self, say: Say) -> Iterator[bool]:
        """Hold the study's lease, so that the study does not start meanwhile. Yields False where it is running."""
        folder = self.run.path
        with Lease(folder, f"sync of {self.run.name}") as lease:
            beat = touched(lease.path)

            def told(_: str) -> None:
                say(f"{folder}: looking whether {read_holder(folder) or 'an unknown process'} still runs it")

            ours = lease.obtain(StopFlag(), told, "", needless=lambda: touched(lease.path) not in (None, beat))
            if not ours:  # the lease's holder has touched it in the meantime
                say(f"{folder}: not sent, it is run by {read_holder(folder)}")
            yield ours

    def send_made(self, remote: Remote) -> None:
        """Send the logs, which contain masks; then each mask that was not in them, parents first."""
        masks = [self.run.checked_mask(row) for row in self.masks()]
        if segments := self.segments():
            remote.upload(segments)
            self.sent.add("segments", *(path.parent.name for path in segments))
            self.count["segment"] += len(segments)
        new = publish(masks, OnServer(remote, self.run, self.sent, "made"))
        self.count["mask"] += len(masks) if segments else new  # without logs, the study itself has sent the other masks

    def send_used(self, remote: Remote, say: Say) -> None:
        """Send the study's inputs, except for those whose makers have not put them on the server yet."""
        missing: list[TrackedRun] = []

        def ready() -> Iterator[Artifact]:
            for use in self.uses():
                if use.maker is not None and not self._made(remote, use.maker, use.artifact):
                    missing.append(use.maker)
                else:
                    self.count["input"] += 1
                    yield use.artifact

        publish(ready(), OnServer(remote, self.run, self.sent, "used"))
        for maker in dict.fromkeys(missing):
            say(f"{self.run.path}: not sent: what it took from {maker.path}; sync that first, then this again")

    def _made(self, remote: Remote, maker: TrackedRun, artifact: Artifact) -> bool:
        """Whether the server has an input as made by its maker. Missing weights are added unless the maker runs."""
        sent = Sent.of(maker, self.place)
        if sent.has("made", artifact.server_id):
            return True
        if not remote.has_run(maker.key):
            return False
        made = OnServer(remote, maker, sent, "made")
        if not made.has(artifact) and (artifact.type != "weights" or read_holder(maker.path)):
            return False
        publish([artifact], made)
        return True


@dataclass
class OnServer:
    """The artifacts on the server that a study's run made, or used. Those found are recorded in the run folder."""

    remote: Remote
    run: TrackedRun
    sent: Sent
    kind: Kind

    @cached_property
    def ids(self) -> set[str]:
        return self.remote.ids(self.run.key, self.kind)

    def has(self, artifact: Artifact) -> bool:
        if found := artifact.server_id in self.ids:
            self.sent.add(self.kind, artifact.server_id)
        return found

    def take(self, artifact: Artifact) -> None:
        self.remote.add(self.run.key, self.kind, artifact, exit_code(self.run))
        self.ids.add(artifact.server_id)
        self.sent.add(self.kind, artifact.server_id)


def exit_code(run: TrackedRun) -> int:
    """Return the exit code of the study in W&B: 0 where it is done, else 1."""
    tracker = run.config["tracker"]
    return 0 if recorded(run.path / WANDB, run.key, tracker["project"], tracker["entity"]).finished else 1


def touched(path: Path) -> int | None:
    """Return when a file was last touched, in nanoseconds; None where it does not exist."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return None
