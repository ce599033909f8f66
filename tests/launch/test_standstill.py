"""A SLURM job that comes back and gets nowhere ends, with a line that says so; one that gets on never does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line_tools import QUICK, call, run_folder

from lottery.compose import composed
from lottery.errors import ConfigError, Interrupted, LotteryError
from lottery.runner import run_composed
from lottery.signals import StopFlag
from lottery.stages.attempts import RUNS, Attempts, Standstill

STUDY = (
    *QUICK, "model._target_=interrupting_network.mlp", "controls=none",
    "+probes.look={_target_: interrupting_network.probe, _partial_: true}",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    yield
    KILLED.clear()


def statuses(runs: int, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[int]:
    """The exit statuses of a job that is started so often, a signal in each."""
    found = []
    for restarts in range(runs):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        found.append(call(*STUDY, *overrides).status)
    return found


@pytest.mark.slow
def test_a_probe_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run gets on, by the dense training."""
    monkeypatch.setenv("INTERRUPT", "probing")
    assert statuses(1 + RUNS, monkeypatch) == [143] * (1 + RUNS)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(1 + RUNS))
    ended = call(*STUDY)
    assert ended.status == 1
    assert ended.line.startswith(
        "lottery: job 7 ran 3 times without a new step, row or stage (interrupted by SIGTERM while a network was "
        "measured); "
        "what helps is a longer time limit (hydra.launcher.timeout_min or sbatch --time), "
    )
    status = json.loads((run_folder(tmp_path) / "status.json").read_text())
    assert (status["state"], status["cause"]) == ("failed", ended.line.removeprefix("lottery: "))
    assert not (tmp_path / "runs" / ".jobs").exists()
    # Submitted again it may try again; and when the reason is gone it comes to its end.
    assert statuses(2, monkeypatch) == [143, 143]
    monkeypatch.delenv("INTERRUPT")
    assert call(*STUDY).status == 0
    assert not (tmp_path / "runs" / ".jobs").exists()


@pytest.mark.slow
def test_a_step_a_run_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERRUPT", "training")
    assert statuses(RUNS + 3, monkeypatch, "train.steps=3it", "train.eval_every=1it") == [143] * (RUNS + 3)
    assert call(*STUDY, "train.steps=3it", "train.eval_every=1it").status == 0  # two trainings of three steps


@pytest.mark.slow
def test_a_measured_batch_a_run_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that takes longer than the job ever runs at a time: of 300 images, 100 at a time, three times."""
    monkeypatch.setenv("INTERRUPT", "measuring")
    small = ("train.eval_batch_size=100", "train.eval_every=20it", "method.rounds=0")
    assert statuses(2 * RUNS, monkeypatch, *small) == [143] * 2 * RUNS
    monkeypatch.delenv("INTERRUPT")
    assert call(*STUDY, *small).status == 0


def test_told_to_stop_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job whose signal is due earlier than it is over with its imports."""
    cfg, stop = composed(STUDY), StopFlag()
    stop.signum = 15
    for restarts in range(RUNS + 1):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        with pytest.raises(Standstill if restarts == RUNS else Interrupted):
            run_composed(cfg, stop)


KILLED: list[object] = []  # one that is collected as garbage would have ended by itself


def counted(*, restarts: int, monkeypatch: pytest.MonkeyPatch) -> Attempts:
    """A run that is killed: it is begun, and no more is heard of it."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    attempts = Attempts(Path("runs"), "key")
    run = attempts.counted("")
    run.__enter__()
    KILLED.append(run)
    return attempts


def test_runs_that_were_killed_count_and_those_that_waited_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for restarts in range(RUNS):
        counted(restarts=restarts, monkeypatch=monkeypatch)
    with pytest.raises(Standstill, match=r"\(it was killed\)"):
        counted(restarts=RUNS, monkeypatch=monkeypatch)
    for restarts in range(1, 9):
        counted(restarts=restarts, monkeypatch=monkeypatch).waits()
    for restarts in range(1, RUNS + 1):
        attempts = counted(restarts=restarts, monkeypatch=monkeypatch)
        attempts.waits()
        attempts.works()
    attempts.left()
    attempts.waits()
    counted(restarts=9, monkeypatch=monkeypatch)


@pytest.mark.parametrize("error", [ConfigError("x"), LotteryError("x"), None])
def test_a_study_that_ends_by_itself_leaves_no_count(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a folder, so that a wrong configuration has written nothing."""

    def end() -> None:
        with Attempts(tmp_path / "runs", "key").counted(""):
            assert (tmp_path / "runs" / ".jobs" / "7-key.json").exists()
            if error is not None:
                raise error

    if error is None:
        end()
    else:
        with pytest.raises(type(error)):
            end()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "SLURM_PROCID"])
def test_nothing_is_counted_outside_of_slurm_or_by_other_ranks(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1" if variable == "SLURM_PROCID" else "")
    for restarts in range(RUNS + 2):
        counted(restarts=restarts, monkeypatch=monkeypatch)
    assert not Path("runs").exists()
