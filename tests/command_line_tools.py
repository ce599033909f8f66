"""What the tests of the command line share: a study that is over in a second, and calls whose output is looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from lottery.__main__ import main

ROOT = Path(__file__).resolve().parents[1]

# One round of 20 steps on the embedded data set; everything it writes goes to the current folder.
QUICK = (
    "tracker=none", "model.hidden=[8]", "data.limit=300", "train.batch_size=30", "train.steps=20it",
    "train.eval_every=10it", "method.rounds=1", "probes=none", "trainer=cpu", "trainer.threads=1",
)  # fmt: skip


# What takes longer to import than an answer may take, and longer than a training may take to begin.
SLOW_IMPORTS = (
    "torch", "torchvision", "pytorch_lightning", "timm", "matplotlib", "wandb", "pandas", "scipy", "sklearn",
    "tensorboard",
)  # fmt: skip


@dataclass
class Outcome:
    """What a command line came to."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"expected one line on stderr, got:\n{self.err}"
        assert lines[0].startswith("lottery: ")
        return lines[0]


def call(*args: str) -> Outcome:
    """The command line, in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(args)
    return Outcome(status, out.getvalue(), err.getvalue())


def command(args: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "lottery", *args]


def environment(**changes: str) -> dict[str, str]:
    """For a process: this checkout on its path, one thread."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **changes}


def spawn(*args: str, cwd: Path, before: Callable[[], None] | None = None, **env: str) -> Outcome:
    """The command line, in a process of its own. `before` is called in it first (to set limits)."""
    done = subprocess.run(
        command(args), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=300, preexec_fn=before
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every file under a folder with its content; None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run_folder(cwd: Path, name: str = "study") -> Path:
    """The one run folder of a study."""
    [folder] = (cwd / "runs" / name).iterdir()
    return folder
