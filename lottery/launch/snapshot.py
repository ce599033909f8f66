"""The code that a sweep runs: a copy of it, made when the sweep is submitted, and where it came from. Torch-free.

A job may wait in the queue for days, and runs several times; whatever is edited meanwhile must not change it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lottery.compose import config_folder
from lottery.errors import LotteryError

PACKAGE = Path(__file__).resolve().parents[1]
GIT_SECONDS = 10.0


def snapshot(folder: Path, config_dir: str | None) -> str | None:
    """Copy the package with its configs to `<folder>/code/lottery`, and the user's own configs to `<folder>/configs`.

    Returns the folder in which the user's own configs are found. Raises LotteryError where that fails.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "conf")
    try:
        shutil.copytree(PACKAGE, folder / "code" / "lottery", ignore=ignored)
        shutil.copytree(config_folder(), folder / "code" / "lottery" / "conf")
        if config_dir is None:
            return None
        for path in own_configs(Path(config_dir)):
            copy = folder / "configs" / path.relative_to(config_dir)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    except OSError as error:
        raise LotteryError(f"{folder}: cannot copy the code there: {error}") from error
    return str(folder / "configs")


def own_configs(folder: Path) -> list[Path]:
    """The YAML files of a user's config folder: groups, groups of groups, and no deeper."""
    return [path for depth in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(f"{depth}.yaml"))]


def described() -> dict[str, Any]:
    """Where the code is from: its folder, and the git commit with whether files differ from it, if there is one."""
    root = PACKAGE.parent
    facts: dict[str, Any] = {"from": str(root)}
    if (root / ".git").exists():
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "lottery", "conf")
        facts |= {"commit": commit, "dirty": None if changes is None else bool(changes)}
    return facts


def git(*command: str) -> str | None:
    """What git says of the checkout; None where it does not answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE.parent), *command],
            capture_output=True, text=True, timeout=GIT_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def environment(code: Path | None) -> dict[str, str]:
    """Variables with which a job finds the modules that this process finds, and lottery in the copy.

    Python must not put the working directory first on its path, as it does for `python -m`: a checkout that lies there
    would win over the copy. Where this process looks there, for a user's own modules, jobs do so too, after the copy.
    """
    here = [os.getcwd()] if {"", os.getcwd()} & set(sys.path) else []
    given = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    path = dict.fromkeys([*([str(code)] if code else []), *here, *map(os.path.abspath, given)])
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def python_held(python: str | None, folder: Path) -> str:
    """The words, for a shell, that start a job's Python with the signals held back; `folder` is the sweep's."""
    copied = folder / "code" / "lottery"
    script = (copied if copied.exists() else PACKAGE) / "launch" / "held.py"
    return f"{python or shlex.quote(sys.executable)} -IS {shlex.quote(str(script))}"
