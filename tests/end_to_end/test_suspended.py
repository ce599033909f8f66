"""A process is suspended anywhere, another one does its work, and it wakes up: one table, the undisturbed one's bits.

SIGSTOP is what a debugger, a closed laptop, `scontrol suspend` and gang scheduling do. The lease of a suspended process
goes stale, so another process takes over; what the first one was about to do it would do when it wakes up.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import call
from omegaconf import DictConfig, OmegaConf
from real_processes import PATIENCE, forked, record, rows
from training_tools import draw_nothing

import lottery.study  # noqa: F401 - so that forked processes need not import it
from lottery import lease
from lottery.compose import checked, composed
from lottery.data.tensors import TensorStream
from lottery.errors import reported
from lottery.runner import run_composed
from lottery.signals import StopFlag

STUDY = (
    "+exp=imp_rewind", "data=digits", "data.limit=200", "model.hidden=[8]", "optim.momentum=0.9",
    "method.rounds=1", "train.steps=12it", "train.batch_size=20", "train.eval_every=4it", "rewind.to=3it",
    "train.checkpoint_steps=5", "controls.reinit=1", "controls.random=0", "probes=quality", "tracker=none",
    "trainer=cpu", "trainer.progress=false", "trainer.threads=1",
)  # fmt: skip
ROWS = 1 + 1 + 1

# Where: an event of Python's audit hooks (which come before the deed), what its last path matches, and which of them.
PLACES = {
    "before the run folder is leased": ("os.link", r"imp_rewind/\w+/\.lease", 1),
    "before a stage says what it is": ("os.rename", r"train/.*/stage\.json", 1),
    "in the middle of a training": ("step", "7", 1),
    "before a kept state": ("os.rename", r"train/.*/state_0*3\.safetensors", 1),
    "before a kept optimizer": ("os.rename", r"train/.*/optimizer_0*3\.safetensors", 1),
    "before a checkpoint": ("os.rename", r"train/.*/checkpoint\.safetensors", 1),
    "before a later checkpoint": ("os.rename", r"train/.*/checkpoint\.safetensors", 2),
    "before the trained state": ("os.rename", r"train/.*/state\.safetensors", 1),
    "before the result": ("os.rename", r"train/.*/result\.json", 1),
    "before DONE": ("os.rename", r"train/.*/DONE", 1),
    "before the checkpoint goes": ("os.remove", r"train/.*/checkpoint\.safetensors", 1),
    "before the lease of a stage is given back": ("os.rename", r"train/.*/\.lease-\w+\.tmp", 1),
    "before the figures of a probe": ("os.rename", r"evaluate/.*/result\.json", 1),
    "before a mask": ("os.rename", r"masks/round_001\.safetensors", 1),
    "before the details of a round": ("os.rename", r"rounds/round_001\.json", 1),
    "before the curves": ("os.rename", r"curves\.csv", 2),
    "before a row": ("open", r"rounds\.jsonl", 2),
    "before the status": ("os.rename", r"status\.json", 4),
    "before a figure": ("os.rename", r"figures/.*\.png", 1),
    "before the run folder is given back": ("os.rename", r"imp_rewind/\w+/\.lease-\w+\.tmp", 1),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Leases that are given up for lost after a moment, and no figures where they do not matter: forks inherit it."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    if "figure" not in place:
        draw_nothing(monkeypatch)


@cache
def configuration() -> DictConfig:
    """Composed once: that takes longer than the study."""
    return composed(STUDY)


def study(runs: Path, output: Path, first: Callable[[], object] = lambda: None) -> ForkProcess:
    cfg = OmegaConf.merge(configuration(), {"paths": {"runs": str(runs)}})
    return forked([], output, first, lambda: reported(lambda: run_composed(checked(cfg), StopFlag())))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("undisturbed")
    undisturbed = study(runs, runs.parent / "output")
    undisturbed.join(PATIENCE)
    assert undisturbed.exitcode == 0
    assert len(rows(runs)) == ROWS
    return record(runs)


def suspending(event: str, pattern: str, count: int) -> Callable[[], None]:
    """Makes the process suspend itself at this place, once."""
    left = [count]

    def pause() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGSTOP)

    def hook(name: str, args: tuple[Any, ...]) -> None:
        paths = [str(path) for path in args[:2] if isinstance(path, str | os.PathLike)]
        if name == "open" and "a" not in str(args[1]):
            return  # to read
        if name == event and paths and re.search(rf"{pattern}$", paths[0 if name == "open" else -1]):
            pause()

    def install() -> None:
        if event != "step":
            return sys.addaudithook(hook)
        batch = TensorStream.batch
        TensorStream.batch = lambda stream, step: (step == int(pattern) and pause(), batch(stream, step))[1]  # type: ignore[method-assign,func-returns-value]

    return install


def states(pid: int) -> str:
    """Waits until a child is suspended ("T") or has ended ("Z"), and leaves it to be waited for."""
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None
    return "T" if found.si_code == os.CLD_STOPPED else "Z"


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_suspended_while_another_finishes(place: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    runs = tmp_path / "runs"
    sleeper = study(runs, tmp_path / "sleeper", suspending(*PLACES[place]))
    assert sleeper.pid is not None
    try:
        assert states(sleeper.pid) == "T", (tmp_path / "sleeper").read_text()
        other = study(runs, tmp_path / "other")
        other.join(PATIENCE)
        assert other.exitcode == 0, (tmp_path / "other").read_text()
        assert record(runs)["rows"] == expected["rows"]
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(PATIENCE)
    said = (tmp_path / "sleeper").read_text()
    assert sleeper.exitcode == 0, said
    assert "Traceback" not in said
    assert record(runs) == expected
    assert not list(runs.rglob(".*.tmp"))
    assert not list(runs.rglob(".lease*"))
    verified = call("store", "verify", "--runs", str(runs))
    assert verified.status == 0, verified.out
