"""Decide whose code may run when a run folder or an export is read: lottery's own, and the user's own.

A foreign file names functions in its `_target_`s, and calling one runs whatever the sender chose. Torch-free.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lottery.config import digest
from lottery.config.models import SCHEMAS
from lottery.errors import LotteryError
from lottery.files import Unreadable, read_json, write_json
from lottery.own_code import unrun_code
from lottery.values import fits

FACTORIES = frozenset(schema._target_ for schema in SCHEMAS.values())  # also the only way to timm and torchvision
SOURCES = frozenset(
    [
        *(f"lottery.data.sources.{name}" for name in ("mnist1d", "digits", "mnist", "fashion_mnist")),
        *(f"lottery.data.sources.{name}" for name in ("cifar10", "cifar100")),
        "lottery.data.imagefolder.imagefolder",
    ]
)
# Prefixes of the arguments by which timm and torchvision load a file or a URL, some of them pickles.
LOADING = ("pretrained", "checkpoint", "cache_dir", "weights", "state_dict", "file", "url", "hf_hub")


def check_model(model: Any, where: object, trust: bool = False) -> None:
    """Raise LotteryError unless the network described by `model`, which was read from `where`, may be built."""
    if not trust:
        _check(model, FACTORIES, "model", where)
        _check_options(model.get("options") or {}, where)


def check_data(data: Any, where: object, trust: bool = False) -> None:
    """Raise LotteryError unless the source named by `data`, which was read from `where`, may be called."""
    if not trust:
        _check(data, SOURCES, "data", where)


def _check(node: Any, known: frozenset[str], key: str, where: object) -> None:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or not (target in known or was_run(target)):
        raise LotteryError(
            f"{where}: {key}._target_: got {target!r}, code that is not lottery's and that you never ran as it stands; "
            "reading must not run it, but if you know it, --trust does (Python: trust=True)"
        )


def _check_options(options: Any, where: object) -> None:
    """Raise LotteryError for an option that is no plain value, or that would make a library load a file."""
    if not isinstance(options, Mapping):
        raise LotteryError(f"{where}: model.options: got {options!r}, expected a mapping")
    for name, value in options.items():
        if not isinstance(value, str | int | float | list | None) or str(name).startswith(LOADING):
            raise LotteryError(
                f"{where}: model.options.{name}: got {value!r}, which may load a file, and reading must not; "
                "if you know it, --trust allows it (Python: trust=True)"
            )


# -- the user's own code -----------------------------------------------------------------------------------------------


def remember(targets: Iterable[str]) -> None:
    """Record that this user runs these `_target_`s with their present code. Does nothing if the home is read-only."""
    path, known = memory()
    found = {target: digest(code) for target in targets if (code := unrun_code(target))}
    if any(each not in known.get(target, []) for target, each in found.items()):
        added = {target: [*known.get(target, []), each] for target, each in found.items()}
        with suppress(LotteryError, OSError):
            write_json(path, known | added)


def was_run(target: str) -> bool:
    """Whether this user has run a study with this `_target_` and its present code. Nothing is imported."""
    code = unrun_code(target)
    return bool(code) and digest(code) in memory()[1].get(target, [])


def memory() -> tuple[Path, dict[str, list[str]]]:
    """Return the file of `remember`, in the user's state folder, and its content: `_target_` -> digests."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    path = Path(os.path.expanduser(state)) / "lottery" / "own_code.json"
    with suppress(Unreadable):
        found = read_json(path)
        if fits(found, dict[str, list[str]]):
            return path, found
    return path, {}
