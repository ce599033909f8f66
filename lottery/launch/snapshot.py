"""Copy the code of a sweep when it is submitted, and record the origin of the code. Torch-free.

A job may wait in the queue for days, and may run several times; edits in the meantime must not change it.
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
from lottery.imports import OWN_FOLDERS

PACKAGE = Path(__file__).resolve().parents[1]
CODE = "code"  # the folder of the copy, in the sweep's folder
GIT_SECONDS = 10.0


def snapshot(folder: Path, config_dir: str | None) -> str | None:
    """Copy the package with its configs to `<folder>/code/lottery`, and the user's own configs to `<folder>/configs`.

    Returns the folder of the user's copied configs, or None without any. Raises LotteryError where copying fails.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "conf")
    try:
        shutil.copytree(PACKAGE, folder / CODE / "lottery", ignore=ignored)
        shutil.copytree(config_folder(), folder / CODE / "lottery" / "conf")
        if config_dir is None:
            return None
        for depth in ("*", "*/*", "*/*/*"):  # top level, groups, and groups of groups
            for path in sorted(Path(config_dir).glob(f"{depth}.yaml")):
                copy = folder / "configs" / path.relative_to(config_dir)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
    except OSError as error:
        raise LotteryError(f"{folder}: cannot copy the code there: {error}") from error
    return str(folder / "configs")


def described() -> dict[str, Any]:
    """Return the code's folder, and in a git checkout the commit and whether files differ (None where git fails)."""
    root = PACKAGE.parent
    facts: dict[str, Any] = {"from": str(root)}
    if (root / ".git").exists():
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "lottery", "conf")
        facts |= {"commit": commit, "dirty": None if changes is None else bool(changes)}
    return facts


def git(*command: str) -> str | None:
    """Return the output of a git command in the checkout; None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE.parent), *command],
            capture_output=True, encoding="utf-8", errors="replace", timeout=GIT_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def environment(folder: Path) -> dict[str, str]:
    """Return variables with which jobs find the modules of this process, and lottery in the copy if there is one.

    folder: the sweep's. PYTHONSAFEPATH keeps `python -m` from putting the working directory first on the path, where a
    checkout would hide the copy. Jobs search the folders of a user's modules after the copy.
    """
    copied = [str(folder / CODE)] if (folder / CODE).exists() else []
    here = [os.getcwd()] if {"", os.getcwd()} & set(sys.path) else []
    own = filter(os.path.isdir, OWN_FOLDERS)
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = dict.fromkeys([*copied, *here, *map(os.path.abspath, given), *own])
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def python_blocked(python: str | None, folder: Path) -> str:
    """Return the shell command that starts a job's Python with signals blocked. folder: the sweep's."""
    copied = folder / CODE / "lottery"
    script = (copied if copied.exists() else PACKAGE) / "launch" / "blocked.py"
    return f"{python or shlex.quote(sys.executable)} -IS {shlex.quote(str(script))}"
