"""The test cluster, and the sbatch templates on it: what they announce, seen on a real SLURM."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line_tools import ROOT
from omegaconf import OmegaConf
from safetensors.numpy import save_file
from slurm_tools import TEST_CLUSTER, TRAININGS, SlowStudy, Slurm, record, undisturbed, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TEMPLATES = ROOT / "slurm"
SMALL = ("--cpus-per-task=1", "--mem=1G")


# -- the cluster itself -----------------------------------------------------------------------------------------------


def up(*args: str, **changes: str) -> subprocess.CompletedProcess[str]:
    env = {**{name: value for name, value in os.environ.items() if not name.startswith("SLURM")}, **changes}
    return subprocess.run([TEST_CLUSTER / "up", *args], env=env, capture_output=True, text=True, timeout=120)


def test_two_nodes_run_a_task_each(slurm: Slurm) -> None:
    nodes = slurm.run("srun", "--immediate=60", "-N2", "printenv", "SLURMD_NODENAME").split()
    assert sorted(nodes) == ["node1", "node2"]


def test_a_second_cluster_beside_it_comes_and_goes(slurm: Slurm, tmp_path: Path) -> None:
    """It finds ports of its own, runs a job, is left alone by a second `up`, and leaves nothing behind. One whose
    controller was killed is brought back by `up`, with its jobs.
    """
    home = tmp_path / "c"
    first, again = up("--no-install", SLURM_HOME=str(home)), up("--no-install", SLURM_HOME=str(home))
    try:
        assert first.returncode == 0, first.stderr
        assert again.stdout == first.stdout
        pids = {path.name: path.read_text() for path in (home / "run").glob("*.pid")}
        assert sorted(pids) == ["munged.pid", "slurmctld.pid", "slurmd-node1.pid", "slurmd-node2.pid"]
        sleeper = Slurm(home / "slurm.conf").sbatch("--output=/dev/null", "--wrap", "sleep 600", cwd=tmp_path)
        Slurm(home / "slurm.conf").wait_for_state(sleeper, "RUNNING")
        seen, state = time.time(), home / "state" / "job_state"
        Slurm(home / "slurm.conf").scontrol("update", f"JobId={sleeper}", "Comment=changed")  # so that it is saved
        wait_until(lambda: state.stat().st_mtime > seen, "the controller to save what it knows of the job")
        os.kill(int(pids["slurmctld.pid"]), signal.SIGKILL)
        assert up("--no-install", SLURM_HOME=str(home)).stdout == first.stdout
        assert Slurm(home / "slurm.conf").job_state(sleeper) == "RUNNING"
        pids["slurmctld.pid"] = (home / "run" / "slurmctld.pid").read_text()
        words = f"{first.stdout}\nexport PATH=$PATH:{os.environ['PATH']}; sacct -o JobID,State,NodeList -P -j {sleeper}"
        asked = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
        assert asked.stdout.splitlines() == ["JobID|State|NodeList", f"{sleeper}|RUNNING|node1"], asked.stderr
    finally:
        subprocess.run([TEST_CLUSTER / "down"], env={**os.environ, "SLURM_HOME": str(home)}, check=True, timeout=60)
    assert not home.exists()
    for pid in pids.values():
        stat = Path(f"/proc/{pid.strip()}/stat")
        assert not stat.exists() or " Z " in stat.read_text()
    assert slurm.run("sinfo", "-h", "-o", "%A").split() != []  # the other cluster still answers


def test_without_the_programs_one_line_says_what_is_missing(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "id", "paste"):
        (tools / name).symlink_to(shutil.which(name) or "")
    script = (TEST_CLUSTER / "common.sh").read_text()
    copy = shutil.copytree(TEST_CLUSTER, tmp_path / "test_cluster")
    (copy / "common.sh").write_text(script.replace("PATH=$PATH:/usr/sbin:/sbin", "PATH=$PATH"))
    env = {"PATH": str(tools), "SLURM_HOME": str(tmp_path / "home")}
    done = subprocess.run([tools / "bash", copy / "up", "--no-install"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "needs munge slurmctld slurmd slurm-client" in line
    assert "slurmctld" in line
    assert done.stdout == ""
    assert not (tmp_path / "home").exists()


# -- the templates ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return undisturbed(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def jobs(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """The scenarios, all at the same time; each test looks at the end of one."""
    folder = tmp_path_factory.mktemp("templates")
    scenarios = {"study": interrupted_study, "ddp": two_nodes, "seeds": array_over_seeds, "lines": array_over_lines}
    with ThreadPoolExecutor() as pool:
        yield {name: pool.submit(scenario, slurm, folder / name) for name, scenario in scenarios.items()}


def submitted(template: str, study: SlowStudy, *options: str, lines: str = "", **env: str) -> str:
    words = (*SMALL, *options, str(TEMPLATES / template), *filter(None, [lines]), *study.overrides)
    return study.slurm.sbatch(*words, cwd=study.folder, **study.env, **env)


def interrupted_study(slurm: Slurm, folder: Path) -> dict[str, Any]:
    """study.sbatch meets a time limit, `scontrol requeue`, and a preemption that sends SIGTERM alone."""
    study = SlowStudy(slurm, folder)
    job = submitted("study.sbatch", study, "--partition=low", "--nodelist=node2", "--cpus-per-task=4")
    study.struck(job, lambda: slurm.announce_time_limit(job))
    slurm.scontrol("update", f"JobId={job}", "TimeLimit=240")
    study.struck(job, lambda: slurm.scontrol("requeue", job))
    slurm.signals_before_preemption(False)
    try:
        study.struck(job, lambda: slurm.preempt("node2", cpus=7, cwd=folder))
    finally:
        slurm.signals_before_preemption(True)
    found = study.end(job)
    return {"found": found, "restarts": slurm.restarts(job), "log": slurm.log(job)}


def two_nodes(slurm: Slurm, folder: Path) -> dict[str, Any]:
    """ddp.sbatch with a process on each node, data copied to both, meets a time limit."""
    study = SlowStudy(slurm, folder)
    fake_mnist(folder / "data" / "mnist.safetensors")
    env = {"LOTTERY_DATA": str(folder / "data"), "SLURM_TMPDIR": str(folder / "node"), "MASTER_ADDR": "127.0.0.1"}
    job = submitted("ddp.sbatch", study, "--nodes=2", "--ntasks-per-node=1", **env)
    study.struck(job, lambda: slurm.announce_time_limit(job))
    slurm.scontrol("update", f"JobId={job}", "TimeLimit=240")
    found = study.end(job)
    copies = [path.name for path in (folder / "node" / "data").iterdir()]
    return {"found": found, "job": slurm.job(job), "log": slurm.log(job), "copies": copies}


def array_over_seeds(slurm: Slurm, folder: Path) -> dict[str, Any]:
    """sweep.sbatch with two seeds, one at a time."""
    study = SlowStudy(slurm, folder)
    study.hurry()
    job = submitted("sweep.sbatch", study, "--array=0-1%1", "--nodelist=node1")
    for task in ("0", "1"):
        slurm.wait_for_state(f"{job}_{task}", "COMPLETED")
    return {"found": record(study.runs), "tasks": [slurm.job(f"{job}_{task}") for task in ("0", "1")]}


def array_over_lines(slurm: Slurm, folder: Path) -> dict[str, Any]:
    """sweep.sbatch with the second line of a file, and the data copied to the node."""
    study = SlowStudy(slurm, folder, "data=mnist", "data.validation=100")
    study.hurry()
    fake_mnist(folder / "data" / "mnist.safetensors")
    (folder / "studies.txt").write_text("seed=7\nseed=3 'model.hidden=[6, 5]' method.rounds=1\n")
    env = {"LOTTERY_DATA": str(folder / "data"), "SLURM_TMPDIR": str(folder / "node")}
    job = submitted("sweep.sbatch", study, "--array=2", "--nodelist=node1", lines="studies.txt", **env)
    slurm.wait_for_state(f"{job}_2", "COMPLETED")
    [config] = study.runs.glob("faults/*/config.yaml")
    return {"config": OmegaConf.load(config), "copy": folder / "node" / "data"}


def fake_mnist(path: Path) -> None:
    """A data set of noise in the cache's format (design, 4.5)."""
    path.parent.mkdir()
    drawn = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, size in (("train", 400), ("test", 100)):
        arrays[f"{split}_images"] = drawn.integers(0, 256, (size, 1, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(size, dtype=np.int64) % 10
    save_file(arrays, path)


def test_study_survives_time_limit_requeue_and_preemption(
    jobs: dict[str, Future[dict[str, Any]]], expected: dict[str, Any]
) -> None:
    """Each time it continues at the step that was saved; in the end it is the undisturbed study, to the bit."""
    end = jobs["study"].result()
    assert end["found"] == expected
    assert end["restarts"] == 3
    saved = re.findall(r"interrupted by (\w+) at step (\d+)", end["log"])
    assert [signal for signal, _ in saved] == ["SIGUSR1", "SIGTERM", "SIGTERM"]
    assert re.findall(r"continue training \w+ at step (\d+)", end["log"]) == [step for _, step in saved]


def test_study_on_two_nodes_finds_what_one_process_finds(
    jobs: dict[str, Future[dict[str, Any]]], expected: dict[str, Any]
) -> None:
    """Up to rounding, also when it was interrupted."""
    end = jobs["ddp"].result()
    assert end["job"]["Restarts"] == "1"
    assert end["job"]["NodeList"] == "node[1-2]"
    assert set(re.findall(r"interrupted by (\w+)", end["log"])) == {"SIGUSR2"}
    assert "continue training" in end["log"]
    assert end["found"]["left over"] == []
    [here], [there] = expected["studies"].values(), end["found"]["studies"].values()
    assert len(there["rows"]) == len(here["rows"])
    for row, other in zip(here["rows"], there["rows"], strict=True):
        assert other["kept"] == row["kept"]
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-3)
        assert other["test_loss"] == pytest.approx(row["test_loss"], rel=1e-3)
    assert end["copies"] == ["mnist.safetensors"]


def test_array_over_seeds_runs_so_many_at_a_time(
    jobs: dict[str, Future[dict[str, Any]]], expected: dict[str, Any]
) -> None:
    end = jobs["seeds"].result()
    first, second = end["tasks"]
    assert second["StartTime"] >= first["EndTime"]
    [(seed_0, rows)] = expected["studies"].items()
    assert end["found"]["studies"].pop(seed_0) == rows
    assert len(end["found"]["studies"]) == 1
    assert end["found"]["trainings"] == 2 * TRAININGS


def test_array_over_the_lines_of_a_file(jobs: dict[str, Future[dict[str, Any]]]) -> None:
    """Words are quoted as in a shell; data are read from the node's copy."""
    end = jobs["lines"].result()
    assert end["config"].seed == 3
    assert end["config"].model.hidden == [6, 5]
    assert end["config"].method.rounds == 1
    assert Path(end["config"].paths.data) == end["copy"]
    assert (end["copy"] / "mnist.safetensors").exists()


def test_a_task_without_a_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "studies.txt").write_text("seed=1\n")
    done = subprocess.run(
        ["bash", TEMPLATES / "sweep.sbatch", "studies.txt"],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "studies.txt has no line 2: the first task is 1\n"
