"""Read the configuration of a study from its run folder. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.files import Missing, Unreadable
from lottery.record.manifest import read_file
from lottery.record.names import CONFIG
from lottery.saved import parse_saved
from lottery.values import REFERENCE


def read_config(run: Path, needs: Iterable[str] = ("data", "model", "method", "paths")) -> dict[str, Any]:
    """Return the resolved configuration of a study, as plain dictionaries and lists.

    needs: groups that must not be empty, and options such as `tracker.entity`, which may be null.
    Raises LotteryError where `run` is no run folder, or where the configuration is unreadable, altered or incomplete.
    """
    check_folder(run)
    path = run / CONFIG
    try:
        config = parse_saved(read_file(run, CONFIG).decode("utf-8"), path)
    except Missing as error:
        raise LotteryError(f"{run}: no {CONFIG} in it, expected a run folder (runs/NAME/KEY)") from error
    except UnicodeDecodeError as error:
        raise Unreadable.of(path, f"not UTF-8 text (byte {error.start})") from error
    for name in needs:
        group, _, option = name.partition(".")
        if not config.get(group) or (option and option not in config[group]):
            raise Unreadable.of(path, f"it has no {name}, expected a whole configuration")
    return config


def check_folder(run: Path) -> None:
    """Raise LotteryError where a run folder does not exist."""
    if not run.is_dir():
        raise LotteryError(f"{run}: no such folder, expected a run folder (runs/NAME/KEY)")


def config_leaves(run: Path) -> dict[str, Any]:
    """Return the configuration of a study as dotted key -> value, lists as tuples; an empty group has no leaf.

    Raises LotteryError where `read_config` does, and where the folder has a newer format.
    """
    try:
        return _fast_leaves(read_file(run, CONFIG).decode("utf-8"))
    except (LotteryError, ValueError):  # not in the form that a study writes: take the slow parser
        return flat(read_config(run, needs=()))


def _fast_leaves(text: str) -> dict[str, Any]:
    """Parse group by group: a sweep's studies share most groups. ValueError for interpolations and repeated keys."""
    groups = [_group_leaves(group) for group in re.split(r"^(?=\w)", text, flags=re.MULTILINE)]
    leaves = {key: value for group in groups for key, value in group.items()}
    if REFERENCE in text or len(leaves) < sum(map(len, groups)):
        raise ValueError
    return leaves


@lru_cache(maxsize=4096)
def _group_leaves(text: str) -> dict[str, Any]:
    """Return the leaves below one top-level key. The result is cached: do not change it."""
    return flat(parse_saved(text, CONFIG))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested groups: dotted key -> value, lists as tuples."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = _hashable(value)
    return leaves


def _hashable(value: Any) -> Any:
    return tuple(_hashable(each) for each in value) if isinstance(value, list) else value
