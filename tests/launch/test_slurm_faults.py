"""What clusters do to jobs, on a real SLURM, with the SLURM launcher: nothing is lost, nothing comes out different."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import command
from slurm_tools import TRAININGS, SlowStudy, Slurm, record, table, undisturbed, wait_until

from lottery.launch.record import Sweep
from lottery.stages.attempts import RUNS

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

Launcher = tuple[str, ...]
SLURM: Launcher = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.nodelist=node1")
RATES = ("0.2", "0.5")


@dataclass
class End:
    """How a scenario ended."""

    found: dict[str, Any]
    job: dict[str, str]  # as SLURM describes it
    log: str

    @classmethod
    def of(cls, study: SlowStudy, job: str) -> End:
        return cls(study.end(job), study.slurm.job(job), study.slurm.log(job))

    @property
    def saved(self) -> list[tuple[str, str]]:
        """signal and step of each interruption in a training"""
        return re.findall(r"interrupted by (\w+) at step (\d+)", self.log)

    @property
    def continued(self) -> list[str]:
        """the steps at which trainings were continued"""
        return re.findall(r"continue training \w+ at step (\d+)", self.log)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return undisturbed(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def ends(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    """The scenarios, all at the same time; each test looks at the end of one."""
    folder = tmp_path_factory.mktemp("faults")
    scenarios: list[Callable[[Slurm, Path], Any]]
    scenarios = [time_limits, preemptions_and_node, requeue, cancel, shared, standstill]
    with ThreadPoolExecutor(len(scenarios)) as pool:
        yield {one.__name__: pool.submit(one, slurm, folder / one.__name__) for one in scenarios}


def submit(study: SlowStudy, *launcher: str) -> str:
    """`python -m lottery submit`; the SLURM job of the one study."""
    before = set(study.runs.glob(".sweeps/*"))
    study.slurm.lottery("submit", *study.overrides, *launcher, cwd=study.folder, **study.env)
    [sweep] = set(study.runs.glob(".sweeps/*")) - before
    [job] = json.loads((sweep / "sweep.json").read_text())["jobs"]
    return str(job["job"])


# -- the scenarios ----------------------------------------------------------------------------------------------------


def time_limits(slurm: Slurm, folder: Path) -> End:
    """The time is over three times. (Below ten minutes submitit counts whatever happens as a time-out.)"""
    study = SlowStudy(slurm, folder, "train.checkpoint_minutes=0.1", seconds=0.3)
    job = submit(study, *SLURM, "hydra.launcher.timeout_min=9", "hydra.launcher.signal_delay_s=300")
    for _ in range(3):
        study.struck(job, lambda: slurm.announce_time_limit(job))
        slurm.scontrol("update", f"JobId={job}", "TimeLimit=30")
    return End.of(study, job)


def preemptions_and_node(slurm: Slurm, folder: Path) -> dict[str, End]:
    """Of two jobs on node2 one is preempted with a signal, and once more without; later the node is set down under the
    other, which goes on on node1."""
    folder.mkdir()
    preempted = SlowStudy(slurm, folder / "preempted", "trainer.workers=auto")  # two, for a round and its control
    lost = SlowStudy(slurm, folder / "lost", seconds=0.5)
    low = ("hydra/launcher=slurm_preempt", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=4")
    preempted_job = submit(preempted, *low, "hydra.launcher.nodelist=node2")
    lost_job = submit(lost, *SLURM, "hydra.launcher.nodelist=node2")

    preempted.struck(preempted_job, lambda: slurm.preempt("node2", cpus=7, cwd=folder))
    slurm.signals_before_preemption(False)
    try:
        preempted.struck(preempted_job, lambda: slurm.preempt("node2", cpus=7, cwd=folder))
    finally:
        slurm.signals_before_preemption(True)
    ends = {"preempted": End.of(preempted, preempted_job)}

    def node_fails() -> None:
        slurm.set_down("node2")
        slurm.scontrol("update", f"JobId={lost_job}", "ReqNodeList=")  # it was there for this test only

    try:
        lost.struck(lost_job, node_fails)
        ends["lost"] = End.of(lost, lost_job)
    finally:
        slurm.set_up("node2")
    return ends


def requeue(slurm: Slurm, folder: Path) -> End:
    study = SlowStudy(slurm, folder)
    job = submit(study, *SLURM)
    study.struck(job, lambda: slurm.scontrol("requeue", job))
    return End.of(study, job)


def cancel(slurm: Slurm, folder: Path) -> dict[str, Any]:
    """scancel; later the same command again."""
    study = SlowStudy(slurm, folder)
    job = submit(study, *SLURM)
    slurm.wait_for(job, study.at_work, "a training at work")
    slurm.run("scancel", job)
    slurm.wait_for_state(job, "CANCELLED")
    again = submit(study, *SLURM)
    return {"end": End.of(study, again), "cancelled": slurm.job(job), "log": slurm.log(job)}


def standstill(slurm: Slurm, folder: Path) -> dict[str, Any]:
    """The first round's probe takes longer than the job ever runs at a time."""
    study = SlowStudy(slurm, folder, "+probes.slow={_target_: slow_network.probe, _partial_: true}")
    study.hurry()
    probing = folder / "slow.probing"
    probing.mkdir()
    job = submit(study, *SLURM)
    for run in range(1 + RUNS):  # the first gets on, by the dense training
        slurm.wait_for(job, lambda run=run: (probing / str(run)).exists(), "the probe")  # type: ignore[misc]
        slurm.scontrol("requeue", job)
        slurm.wait_for(job, lambda run=run: slurm.restarts(job) > run, "being queued again")  # type: ignore[misc]
    wait_until(lambda: slurm.job_state(job) == "FAILED", "the end of the job")
    [sweep] = study.runs.glob(".sweeps/*")
    return {"log": slurm.log(job), "outcome": Sweep.read(sweep).outcome(0), "restarts": slurm.restarts(job)}


def shared(slurm: Slurm, folder: Path) -> dict[str, Any]:
    """A sweep, waited for, of two studies that begin with the same dense training."""
    study = SlowStudy(slurm, folder, "train.steps=400it", f"method.rate={','.join(RATES)}")
    sweep = subprocess.Popen(
        command(["-m", *study.overrides, *SLURM]), cwd=folder, env=slurm.environment(**study.env),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def logs() -> str:
        return "".join(path.read_text() for path in study.runs.glob(".sweeps/*/.submitit/**/*.out"))

    try:
        wait_until(lambda: "waiting for" in logs() or sweep.poll() is not None, "one study waits for the other")
    finally:
        study.hurry()
    printed, _ = sweep.communicate(timeout=240)
    return {"found": record(study.runs), "logs": logs(), "printed": printed, "status": sweep.returncode}


# -- what they came to ------------------------------------------------------------------------------------------------


def test_requeue(ends: dict[str, Future[Any]], expected: dict[str, Any]) -> None:
    end: End = ends["requeue"].result()
    assert end.found == expected
    assert end.job["Restarts"] == "1"
    assert [signal for signal, _ in end.saved] == ["SIGTERM"]
    assert end.continued == [step for _, step in end.saved]


def test_scancel_ends_the_job_and_the_same_command_continues(
    ends: dict[str, Future[Any]], expected: dict[str, Any]
) -> None:
    result = ends["cancel"].result()
    assert result["cancelled"]["JobState"] == "CANCELLED"
    assert result["cancelled"]["Restarts"] == "0"
    assert result["end"].found == expected
    assert len(result["end"].continued) == 1  # from the state saved by SIGTERM, or else from the last checkpoint


def test_a_job_that_gets_nowhere_ends_and_says_so(ends: dict[str, Future[Any]]) -> None:
    result = ends["standstill"].result()
    assert result["restarts"] == 1 + RUNS
    assert (result["outcome"].status, result["outcome"].cause.partition(" (")[0].partition(" ran ")[2]) == (
        1, f"{RUNS} times without a new step, row or stage",
    )  # fmt: skip
    assert result["outcome"].cause in result["log"]


def test_two_tasks_that_need_the_same_dense_training_do_it_once(ends: dict[str, Future[Any]], tmp_path: Path) -> None:
    result = ends["shared"].result()
    assert result["status"] == 0, result["printed"]
    assert "2 of 2 studies done" in result["printed"]
    assert result["logs"].count("waiting for") == 1
    assert "the same train stage" in result["logs"]
    assert result["found"]["trainings"] == 2 * TRAININGS - 1
    assert result["found"]["left over"] == []
    for rate in RATES:
        undisturbed(tmp_path / rate, "train.steps=400it", f"method.rate={rate}")
        [alone] = (tmp_path / rate / "faults").iterdir()
        assert result["found"]["studies"][alone.name] == table(alone)


def test_preemption_with_and_without_a_signal_before_it(ends: dict[str, Future[Any]], expected: dict[str, Any]) -> None:
    end: End = ends["preemptions_and_node"].result()["preempted"]
    assert end.found == expected
    assert end.job["Restarts"] == "2"
    # its two workers save a training each, and continue them
    assert re.findall(r"interrupted by (\w+)", end.log) == ["SIGUSR2", "SIGTERM"]
    assert 2 <= len(end.continued) <= 4


def test_node_set_down(ends: dict[str, Future[Any]], expected: dict[str, Any]) -> None:
    end: End = ends["preemptions_and_node"].result()["lost"]
    assert end.found == expected
    assert end.job["Restarts"] == "1"
    assert end.job["NodeList"] == "node1"


def test_time_limit_three_times(ends: dict[str, Future[Any]], expected: dict[str, Any]) -> None:
    end: End = ends["time_limits"].result()
    assert end.found == expected
    assert end.job["Restarts"] == "3"
    assert [signal for signal, _ in end.saved] == ["SIGUSR2"] * 3
    assert end.continued == [step for _, step in end.saved]
