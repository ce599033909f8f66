"""A stage in words that a researcher knows: model, data, density, steps, what has become of it, who uses it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lottery.errors import LotteryError
from lottery.inventory.contents import SHORT, Contents, Entry
from lottery.inventory.needs import Run
from lottery.stages.lease import NAME as LEASE
from lottery.stages.lease import STALE_SECONDS, Holder

COLORS = {"damaged": "red", "unfinished": "yellow", "running": "green", "silent": "yellow"}


class Description:
    """Says of any stage of a store what it is; the names come from the run folders that use it."""

    def __init__(self, contents: Contents, runs: Sequence[Run], now: float) -> None:
        self.contents, self.runs, self.now = contents, runs, now
        self.me = Holder.this_process()
        self.densities = {digest: density for run in runs for digest, density in run.densities.items()}

    @cached_property
    def users(self) -> dict[str, list[tuple[Run, list[str]]]]:
        """Stage key -> the run folders that name it, and the rounds in which."""
        found: dict[str, list[tuple[Run, list[str]]]] = {}
        for run in self.runs:
            for key, rounds in run.uses.items():
                found.setdefault(key, []).append((run, rounds))
        return found

    @cached_property
    def data_names(self) -> dict[str, str]:
        """Digest of the data -> the name that a study calls them by."""
        found: dict[str, str] = {}
        for entry in self.contents.entries:
            digest = entry.reads.get("data.digest", "")
            if digest and digest not in found and entry.key in self.users:
                found[digest] = _data_name(self.users[entry.key][0][0])
        return found

    # -- what it is -------------------------------------------------------------------------------------------------

    def model(self, entry: Entry) -> str:
        """Such as `mlp hidden=[30, 20]`."""
        options = dict(entry.inputs.get("model") or {})
        name = str(options.pop("_target_", "")).rpartition(".")[2]
        return " ".join([name, *(f"{key}={value}" for key, value in options.items())]).strip()

    def data(self, entry: Entry) -> str:
        """Such as `mnist (1,000 images)`; a data set that no study names here, by its digest."""
        data = entry.inputs.get("data") or {}
        digest = str(data.get("digest", ""))
        limit = f" ({data['limit']:,} images)" if isinstance(data.get("limit"), int) else ""
        return (self.data_names.get(digest) or digest[:SHORT]) + limit

    def density(self, entry: Entry) -> str:
        """Of the mask that was trained, or found by scoring, where a run folder knows it."""
        density = self._density(entry)
        return "" if density is None else f"{100 * density:.2f}%"

    def _density(self, entry: Entry) -> float | None:
        mask = entry.result.get("mask_digest") if entry.kind == "score" else entry.reads.get("mask")
        return self.densities.get(str(mask))

    def steps(self, entry: Entry) -> str:
        """Where it starts in the schedule (0, or the rewind step) and where it ends, such as `500-20,000`."""
        step, steps, until = (entry.inputs.get(name) for name in ("step", "steps", "until"))
        if not isinstance(step, int) or not isinstance(steps, int):
            return ""
        return f"{step:,}-{until if isinstance(until, int) else step + steps:,}"

    def seed(self, entry: Entry) -> str:
        """Of the data order; that of the initial weights is not told, only their digest."""
        return str((entry.inputs.get("recipe") or {}).get("order_seed", ""))

    # -- what has become of it --------------------------------------------------------------------------------------

    def state(self, entry: Entry) -> str:
        """done, running, silent (leased, but its holder gives no sign), unfinished or damaged."""
        if entry.defect:
            return "damaged"
        if entry.done:
            return "done"
        if not entry.held(self.me, self.now):
            return "unfinished"
        return "running" if self.now - entry.times[LEASE] < STALE_SECONDS else "silent"

    def note(self, entry: Entry) -> str:
        """What there is to say of the state, and who uses the stage."""
        return "; ".join(part for part in (self.state_note(entry), self.used_by(entry)) if part)

    def state_note(self, entry: Entry) -> str:
        state = self.state(entry)
        if state in ("damaged", "done"):
            return entry.defect
        parts = [] if entry.step is None else [f"saved at step {entry.step:,}"]
        if state in ("running", "silent"):
            parts.insert(0, f"by {entry.holder or 'another process'}")
        if state == "silent":
            parts.append(f"last heard of {age(self.now - entry.times[LEASE])} ago")
        return ", ".join(parts)

    def used_by(self, entry: Entry) -> str:
        """Such as `imp_rewind/0123456789ab round 1, and 2 run folders more`."""
        users = self.users.get(entry.key, [])
        if not users:
            return ""
        (run, rounds), more = users[0], len(users) - 1
        further = f", and {number(more, 'run folder')} more" if more else ""
        return f"{run.name} {', '.join(rounds)}{further}"

    def order(self, entry: Entry) -> tuple[Any, ...]:
        """As a reader looks for them: by study, as its rounds follow on one another; at last those that none uses."""
        users = self.users.get(entry.key)
        if not users:
            return (entry.kind, 1, "", "", -entry.modified)
        run, rounds = users[0]
        return (entry.kind, 0, run.name, _padded(rounds[0]), 0.0)

    def as_json(self, entry: Entry) -> dict[str, Any]:
        """For scripts; the names of these keys stay."""
        return {
            "kind": entry.kind,
            "key": entry.key,
            "folder": str(entry.folder),
            "state": self.state(entry),
            "note": self.state_note(entry),
            "model": self.model(entry),
            "data": self.data(entry),
            "density": self._density(entry),
            "step": entry.inputs.get("step"),
            "steps": entry.inputs.get("steps"),
            "until": entry.inputs.get("until"),
            "checkpoint_step": None if entry.done else entry.step,
            "bytes": entry.size,
            "modified": entry.modified,
            "used_by": [{"run": str(run.folder), "rounds": rounds} for run, rounds in self.users.get(entry.key, [])],
        }


def _padded(round: str) -> str:
    """With its number at a fixed width: text that sorts as the rounds do."""
    return " ".join(word.zfill(6) if word.isdigit() else word for word in round.split())


def _data_name(run: Run) -> str:
    try:
        return str(run.config.get("data", {}).get("name", ""))
    except (LotteryError, AttributeError):
        return ""


def number(count: int, noun: str) -> str:
    """Such as `1 stage`, `5,000 stages`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def age(seconds: float) -> str:
    """In its largest unit, such as 3d, 5h, 12m, 40s."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def size(count: int) -> str:
    """Bytes, such as 1.2 MB."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"
