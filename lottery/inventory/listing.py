"""`python -m lottery store ls` and `show`: what a store holds, and everything about one stage."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from time import time
from typing import Any

from lottery.errors import ConfigError, nearest
from lottery.inventory.contents import Contents, Entry, read_contents
from lottery.inventory.describe import COLORS, Description, age, number, size
from lottery.inventory.needs import find_runs
from lottery.inventory.places import places
from lottery.launch.table import Column, colored, table

COLUMNS = [
    Column("key"), Column("kind", rank=6), Column("state"), Column("model", rank=3), Column("data", rank=2),
    Column("density", right=True), Column("steps", right=True), Column("seed", right=True, rank=5),
    Column("size", right=True, rank=1), Column("age", right=True, rank=4),
]  # fmt: skip


def ls(asked: Namespace) -> int:
    """A table of all stages, and totals."""
    root, roots = places(asked)
    contents = read_contents(root)
    says = Description(contents, find_runs(roots), time())
    entries = sorted(contents.entries, key=says.order)
    if asked.json:
        print(json.dumps([says.as_json(entry) for entry in entries], indent=1))
        return 0
    for line in [*stage_table(entries, says), *totals(contents, says)]:
        print(line)
    return 0


def stage_table(entries: Sequence[Entry], says: Description) -> list[str]:
    if not entries:
        return []
    states = [says.state(entry) for entry in entries]
    rows = [
        [
            entry.short, entry.kind, state, says.model(entry), says.data(entry), says.density(entry), says.steps(entry),
            says.seed(entry), size(entry.size), age(says.now - entry.modified),
        ]
        for entry, state in zip(entries, states, strict=True)
    ]  # fmt: skip
    return table(COLUMNS, rows, [says.note(entry) for entry in entries], [{2: COLORS.get(s, "")} for s in states])


def totals(contents: Contents, says: Description) -> list[str]:
    lines = [""] if contents.entries else []
    for kind in sorted({entry.kind for entry in contents.entries}):
        entries = [entry for entry in contents.entries if entry.kind == kind]
        states = [says.state(entry) for entry in entries]
        counts = ", ".join(f"{states.count(state):,} {state}" for state in sorted(set(states)))
        lines.append(
            f"{kind}: {number(len(entries), 'stage')} ({counts}), {size(sum(entry.size for entry in entries))}"
        )
    if unused := [entry for entry in contents.entries if entry.key not in says.users]:
        total = size(sum(entry.size for entry in unused))
        lines.append(f"{number(len(unused), 'stage')} ({total}) in no round of {number(len(says.runs), 'run folder')}")
    if contents.strange:
        lines.append(f"{len(contents.strange):,} other things, which are no stages, such as {contents.strange[0]}")
    return lines or [f"{contents.root}: no stages"]


def show(asked: Namespace) -> int:
    """Everything about one stage."""
    root, roots = places(asked)
    contents = read_contents(root)
    entry = found(contents, asked.key)
    says = Description(contents, find_runs(roots), time())
    state = f"{says.state(entry)} {says.state_note(entry)}".rstrip()
    print(f"{entry.kind} {entry.key}\n{entry.folder}, {size(entry.size)}\n{state}")
    what = [says.model(entry), f"on {says.data(entry)}", f"density {says.density(entry) or 'unknown here'}"]
    print(", ".join([*what, f"steps {says.steps(entry)}", f"seed {says.seed(entry)}"]))
    sections = {
        "inputs": dict(_flat(entry.inputs)),
        "environment": dict(_flat(entry.about.get("environment", {}))),
        "result": _summary(entry.result),
        "files": {name: _file(entry, name) for name in sorted(entry.sizes)},
        "came from": {where: _origin(contents, entry, where) for where in ("state", "mask", "optimizer")},
        "used by stages": {other.short: says.used_by(other) for other in contents.consumers(entry)},
        "used by studies": {str(run.folder): ", ".join(rounds) for run, rounds in says.users.get(entry.key, [])},
    }
    for title, lines in sections.items():
        print(f"\n{colored(title, 'bold')}" + ("" if lines else ": none"))
        width = max(map(len, lines), default=0)
        for name, value in lines.items():
            print(f"  {name:<{width}}  {value}".rstrip())
    return 0


def found(contents: Contents, prefix: str) -> Entry:
    """The stage whose key begins so. Raises ConfigError if there is none, or more than one."""
    matching = [entry for entry in contents.entries if entry.key.startswith(prefix.lower())]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        known = [entry.key[: max(len(prefix), 4)] for entry in contents.entries]
        raise ConfigError(f"store show: no stage begins with {prefix!r}{nearest(prefix.lower(), known)}")
    some = ", ".join(entry.short for entry in matching[:4]) + (", ..." if len(matching) > 4 else "")
    raise ConfigError(f"store show: {number(len(matching), 'stage')} begin with {prefix!r}: {some}")


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Nested dictionaries as dotted names with their values."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{where}.{name}" if where else str(name))
    elif where:
        yield where, value if isinstance(value, str) else json.dumps(value)


def _summary(result: dict[str, Any]) -> dict[str, str]:
    """The results; of lists, such as the curve, how long they are and how they end."""
    lines = {}
    for name, value in result.items():
        if isinstance(value, list):
            lines[name] = f"{len(value):,} entries" + (f", at last {json.dumps(value[-1])}" if value else "")
        else:
            lines |= dict(_flat(value, name))
    return lines


def _file(entry: Entry, name: str) -> str:
    return f"{size(entry.sizes[name]):>9}  {entry.sealed.get(name, '')}".rstrip()


def _origin(contents: Contents, entry: Entry, where: str) -> str:
    """The stages that handed on one of the inputs, and the step at which they had it."""
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
    """kept.500.state -> at step 500"""
    if match := re.fullmatch(r"kept\.(\d+)\.\w+", where):
        return f"at step {int(match[1]):,}"
    return "at its end" if where == "state_digest" else where
