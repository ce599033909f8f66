"""The commands `python -m lottery store ls` and `show`, which describe stages in a researcher's terms."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from time import time
from typing import Any

from lottery.errors import ConfigError, LotteryError, nearest
from lottery.inventory.contents import SHORT, Contents, StoredStage, read_contents
from lottery.inventory.needs import StoreUser, find_users
from lottery.lease import NAME as LEASE
from lottery.lease import STALE_SECONDS, Holder
from lottery.printing import Column, age_text, colored, count_text, say, size_text, table

COLUMNS = [
    Column("key"), Column("kind", rank=6), Column("state"), Column("model", rank=3), Column("data", rank=2),
    Column("density", right=True), Column("steps", right=True), Column("seed", right=True, rank=5),
    Column("size", right=True, rank=1), Column("age", right=True, rank=4),
]  # fmt: skip
COLORS = {"damaged": "red", "unfinished": "yellow", "running": "green", "silent": "yellow"}


class Description:
    """Descriptions of the stages of a store. Names come from the run folders that use a stage."""

    def __init__(self, contents: Contents, runs: Sequence[StoreUser], now: float) -> None:
        self.contents, self.runs, self.now = contents, runs, now
        self.me = Holder.this_process()
        self.densities = {digest: density for run in runs for digest, density in run.densities.items()}
        self.users: dict[str, list[tuple[StoreUser, list[str]]]] = {}  # stage key -> its users, with their rounds
        for run in runs:
            for key, rounds in run.uses.items():
                self.users.setdefault(key, []).append((run, rounds))

    @cached_property
    def data_names(self) -> dict[str, str]:
        """Digest of a data set -> its name in a study's configuration."""
        found: dict[str, str] = {}
        for entry in self.contents.entries:
            digest = entry.reads.get("data.digest", "")
            if digest and digest not in found and entry.key in self.users:
                try:
                    found[digest] = str(self.users[entry.key][0][0].config.get("data", {}).get("name", ""))
                except (LotteryError, AttributeError):
                    found[digest] = ""
        return found

    def model(self, entry: StoredStage) -> str:
        """Return the model as text, such as `mlp hidden=[30, 20]`."""
        options = {key: value for key, value in (entry.inputs.get("model") or {}).items() if key != "own code"}
        name = str(options.pop("_target_", "")).rpartition(".")[2]
        return " ".join([name, *(f"{key}={value}" for key, value in options.items())]).strip()

    def data(self, entry: StoredStage) -> str:
        """Return the data set as text, such as `mnist (1,000 images)`; its digest where no study here names it."""
        data = entry.inputs.get("data") or {}
        digest = str(data.get("digest", ""))
        limit = f" ({data['limit']:,} images)" if isinstance(data.get("limit"), int) else ""
        return (self.data_names.get(digest) or digest[:SHORT]) + limit

    def density(self, entry: StoredStage) -> float | None:
        """Return the density of the mask trained, or found by scoring; None where no run folder has it."""
        mask = entry.result.get("mask_digest") if entry.kind == "score" else entry.reads.get("mask")
        return self.densities.get(str(mask))

    def density_text(self, entry: StoredStage) -> str:
        return "" if (density := self.density(entry)) is None else f"{100 * density:.2f}%"

    def steps(self, entry: StoredStage) -> str:
        """Return the first (0, or the rewind step) and last step in the schedule, such as `500-20,000`."""
        step, steps, until = (entry.inputs.get(name) for name in ("step", "steps", "until"))
        if not isinstance(step, int) or not isinstance(steps, int):
            return ""
        return f"{step:,}-{until if isinstance(until, int) else step + steps:,}"

    def seed(self, entry: StoredStage) -> str:
        """Return the seed of the data order. (Stages refer to initial weights by digest, not by seed.)"""
        return str((entry.inputs.get("recipe") or {}).get("order_seed", ""))

    def state(self, entry: StoredStage) -> str:
        """Return done, running, silent (leased, but not touched for a while), unfinished or damaged."""
        if entry.defect or entry.done:
            return "damaged" if entry.defect else "done"
        if not entry.held(self.me, self.now):
            return "unfinished"
        return "running" if self.now - entry.times[LEASE] < STALE_SECONDS else "silent"

    def state_note(self, entry: StoredStage) -> str:
        """Return details of the state: the defect, the process at work, the saved step."""
        state = self.state(entry)
        if state in ("damaged", "done"):
            return entry.defect
        parts = [f"by {entry.holder or 'another process'}"] if state in ("running", "silent") else []
        if entry.step is not None:
            parts.append(f"saved at step {entry.step:,}")
        if state == "silent":
            parts.append(f"last heard of {age_text(self.now - entry.times[LEASE])} ago")
        return ", ".join(parts)

    def used_by(self, entry: StoredStage) -> str:
        """Return the users as text, such as `imp_rewind/0123456789ab round 1, and 2 run folders more`."""
        users = self.users.get(entry.key, [])
        if not users:
            return ""
        (run, rounds), more = users[0], len(users) - 1
        return f"{run.name} {', '.join(rounds)}" + (f", and {count_text(more, 'run folder')} more" if more else "")

    def order(self, entry: StoredStage) -> tuple[Any, ...]:
        """Return the sort key of the tables: by kind, study and round; unused stages last in a kind, newest first."""
        users = self.users.get(entry.key)
        if not users:
            return (entry.kind, 1, "", "", -entry.modified)
        run, rounds = users[0]
        padded = " ".join(word.zfill(6) if word.isdigit() else word for word in rounds[0].split())
        return (entry.kind, 0, run.name, padded, 0.0)

    def row(self, entry: StoredStage) -> list[str]:
        """Return the cells under COLUMNS."""
        return [
            entry.short, entry.kind, self.state(entry), self.model(entry), self.data(entry),
            self.density_text(entry), self.steps(entry), self.seed(entry), size_text(entry.size),
            age_text(self.now - entry.modified),
        ]  # fmt: skip

    def as_json(self, entry: StoredStage) -> dict[str, Any]:
        """Return the entry as a dictionary for scripts; the keys are stable."""
        return {
            "kind": entry.kind, "key": entry.key, "folder": str(entry.folder), "state": self.state(entry),
            "note": self.state_note(entry), "model": self.model(entry), "data": self.data(entry),
            "density": self.density(entry), **{name: entry.inputs.get(name) for name in ("step", "steps", "until")},
            "checkpoint_step": None if entry.done else entry.step, "bytes": entry.size, "modified": entry.modified,
            "used_by": [{"run": str(run.folder), "rounds": rounds} for run, rounds in self.users.get(entry.key, [])],
        }  # fmt: skip


def ls(asked: Namespace, root: Path, roots: Sequence[Path]) -> int:
    """Print a table of the stages written last (--newest, --all), and totals of all."""
    contents = read_contents(root)
    says = Description(contents, find_users(roots), time())
    entries = sorted(contents.entries, key=says.order)
    if asked.json:
        print(json.dumps([says.as_json(entry) for entry in entries], indent=1))
        return 0
    newest = sorted(entries, key=lambda entry: -entry.modified)[: None if asked.all else asked.newest]
    print_table(sorted(newest, key=says.order), says)
    if older := len(entries) - len(newest):
        say(f"and {count_text(older, 'stage')} written before; --all lists them, --newest N the last N")
    say(*totals(contents, says))
    return 0


def print_table(entries: Sequence[StoredStage], says: Description) -> None:
    """Print one line a stage, below a header if there is any stage."""
    rows = [says.row(entry) for entry in entries]
    notes = ["; ".join(filter(None, (says.state_note(entry), says.used_by(entry)))) for entry in entries]
    for line in table(COLUMNS, rows, notes, [{2: COLORS.get(row[2], "")} for row in rows]) if rows else ():
        print(line)


def totals(contents: Contents, says: Description) -> list[str]:
    """Return lines of counts and bytes: one for each kind, one for unused stages, one for things that are no stages."""
    lines = [""] if contents.entries else []
    for kind in sorted({entry.kind for entry in contents.entries}):
        entries = [entry for entry in contents.entries if entry.kind == kind]
        states = [says.state(entry) for entry in entries]
        counts = ", ".join(f"{states.count(state):,} {state}" for state in sorted(set(states)))
        lines.append(f"{kind}: {count_text(len(entries), 'stage')} ({counts}), {size_of(entries)}")
    if unused := [entry for entry in contents.entries if entry.key not in says.users]:
        users = count_text(len(says.runs), "run folder")
        lines.append(f"{count_text(len(unused), 'stage')} ({size_of(unused)}) in no round of {users}")
    if contents.strange:
        lines.append(f"{len(contents.strange):,} other things, which are no stages, such as {contents.strange[0]}")
    return lines or [f"{contents.root}: no stages"]


def show(asked: Namespace, root: Path, roots: Sequence[Path]) -> int:
    """Print everything about one stage."""
    contents = read_contents(root)
    entry = found(contents, asked.key)
    says = Description(contents, find_users(roots), time())
    state = f"{says.state(entry)} {says.state_note(entry)}".rstrip()
    say(f"{entry.kind} {entry.key}", f"{entry.folder}, {size_text(entry.size)}", state)
    density = says.density_text(entry) or "unknown here"
    what = f"{says.model(entry)}, on {says.data(entry)}, density {density}"
    say(f"{what}, steps {says.steps(entry)}, seed {says.seed(entry)}")
    files = sorted(entry.sizes)
    sections = {
        "inputs": dict(_flat(entry.inputs)),
        "environment": dict(_flat(entry.about.get("environment", {}))),
        "result": _summary(entry.result),
        "files": {name: f"{size_text(entry.sizes[name]):>9}  {entry.sealed.get(name, '')}" for name in files},
        "came from": {where: _origin(contents, entry, where) for where in ("state", "mask", "optimizer")},
        "used by stages": {other.short: says.used_by(other) for other in contents.consumers(entry)},
        "used by studies": {str(run.folder): ", ".join(rounds) for run, rounds in says.users.get(entry.key, [])},
    }
    for title, lines in sections.items():
        print(f"\n{colored(title, 'bold')}" + ("" if lines else ": none"))
        width = max(map(len, lines), default=0)
        for name, value in lines.items():
            say(f"  {name:<{width}}  {value}".rstrip())
    return 0


def found(contents: Contents, prefix: str) -> StoredStage:
    """Return the stage whose key begins with `prefix`. Raises ConfigError if there is none, or more than one."""
    matching = [entry for entry in contents.entries if entry.key.startswith(prefix.lower())]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        known = [entry.key[: max(len(prefix), 4)] for entry in contents.entries]
        raise ConfigError(f"store show: no stage begins with {prefix!r}{nearest(prefix.lower(), known)}")
    some = ", ".join(entry.short for entry in matching[:4]) + (", ..." if len(matching) > 4 else "")
    raise ConfigError(f"store show: {count_text(len(matching), 'stage')} begin with {prefix!r}: {some}")


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested dictionaries as pairs of dotted name and text."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{where}.{name}" if where else str(name))
    elif where:
        yield where, value if isinstance(value, str) else json.dumps(value)


def _summary(result: dict[str, Any]) -> dict[str, str]:
    """Return the results as name -> text; lists, such as the curve, as their length and last entry."""
    lines = {}
    for name, value in result.items():
        if isinstance(value, list):
            lines[name] = f"{len(value):,} entries" + (f", at last {json.dumps(value[-1])}" if value else "")
        else:
            lines |= dict(_flat(value, name))
    return lines


def _origin(contents: Contents, entry: StoredStage, where: str) -> str:
    """Return a text on the stages that computed one of the inputs, and at which step."""
    digest = entry.reads.get(where)
    if digest is None:
        return "none"
    sources = contents.producers.get(digest, [])
    if not sources and where == "mask":
        return "the study itself: full, pruned after the round before, or drawn"
    if not sources:
        return "no stage here: drawn, read from a file, or put together of what several stages handed on"
    return ", ".join(f"{source.kind} {source.short} {_place(source.outputs[digest])}" for source in sources)


def _place(where: str) -> str:
    """Translate a place in result.json into words, such as `kept.500.state` into `at step 500`."""
    if match := re.fullmatch(r"kept\.(\d+)\.\w+", where):
        return f"at step {int(match[1]):,}"
    return "at its end" if where == "state_digest" else where


def size_of(entries: Sequence[StoredStage]) -> str:
    return size_text(sum(entry.size for entry in entries))
