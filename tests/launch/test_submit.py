"""`submit`, which returns at once, and `cancel`, on this machine. Those on SLURM are in the tests marked slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line_tools import QUICK, call, command, spawn
from slurm_tools import Slurm
from test_launcher import SLOW, in_mid_training, the_sweep, wait_until

from lottery.launch.record import Outcome, Sweep, SweepStudy, new_folder
from lottery.lease import start_time


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_submit_returns_and_cancel_ends(tmp_path: Path) -> None:
    """The workers hold neither the terminal nor the pipes of who submitted them; what they were at is saved."""
    began = time.monotonic()
    outcome = spawn(
        "submit", "hydra/launcher=local", *SLOW, "train.steps=60000it", "seed=0,1", cwd=tmp_path
    )  # reads its pipes to their ends
    assert (outcome.status, outcome.err) == (0, ""), outcome
    sweep = the_sweep(tmp_path)
    assert f"sweep {sweep.name}: 2 studies submitted here, by process {sweep.jobs[0].job}" in outcome.out
    assert sweep.processes()
    assert not sweep.ended()
    submitted = time.monotonic() - began
    wait_until(lambda: in_mid_training(tmp_path / "runs") == 2, "both studies to run")
    assert submitted < time.monotonic() - began

    first = call("cancel", sweep.name)
    assert (first.status, first.out) == (0, f"sweep {sweep.name}: cancelled 2 of 2 studies\n")
    assert not sweep.processes()
    for job in sweep.jobs:
        status = json.loads((tmp_path / "runs" / job.folder / "status.json").read_text())
        assert (status["state"], status["signal"]) == ("interrupted", "SIGTERM")
    second = call("cancel", "latest")
    assert (second.status, second.out) == (0, f"sweep {sweep.name}: nothing to cancel, its jobs have ended\n")


@pytest.mark.slow
def test_workers_whose_starters_were_killed_are_seen_and_cancelled(tmp_path: Path) -> None:
    """First the process that starts the workers is killed, then submitit's that started this one."""
    submitted = spawn(
        "submit", "hydra/launcher=local", "hydra.launcher.workers=1", *SLOW, "train.steps=60000it", "seed=0,1",
        cwd=tmp_path,
    )  # fmt: skip
    assert submitted.status == 0, submitted
    wait_until(lambda: in_mid_training(tmp_path / "runs") == 1, "a study to run")
    sweep = the_sweep(tmp_path)
    [(submitit, worker)] = sweep.claims().values()
    for pid in (sweep.jobs[0].job, submitit.pid):
        os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda pid=pid: not start_time(int(pid)), "its end")  # type: ignore[misc]
        found = json.loads(call("status", sweep.name, "--json").out)
        assert [study["state"] for study in found["studies"]] == ["running", "queued"]
    assert sweep.processes() == [int(worker.pid)]
    assert call("cancel", sweep.name).out == f"sweep {sweep.name}: cancelled 2 of 2 studies\n"
    assert not sweep.processes()


@pytest.mark.slurm
@pytest.mark.slow
def test_jobs_whose_submitter_was_killed_before_it_knew_their_ids(slurm: Slurm, tmp_path: Path) -> None:
    """SLURM has taken two arrays of two jobs; of the second one `submit` has not heard. Status and cancel find all."""
    programs = tmp_path / "programs"
    programs.mkdir()
    sbatch = f'#!/bin/sh\n{shutil.which("sbatch")} "$@"\ngrep -q ntasks-per-node=2 "$1" && kill -9 $PPID\nexit 0\n'
    (programs / "sbatch").write_text(sbatch)
    (programs / "sbatch").chmod(0o755)
    env = slurm.environment()
    env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"
    words = ("submit", *QUICK, "seed=0,1", "trainer.devices=1,2", "hydra.launcher.cpus_per_task=1")
    held = "hydra.launcher.additional_parameters.hold=true"
    done = subprocess.run(command((*words, f"+{held}")), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    known = [job.job for job in the_sweep(tmp_path).jobs]
    assert known[1::2] == ["_0", "_1"]
    first, second = sorted(set(slurm.run("squeue", "-h", "-t", "PD", "-o", "%F").split()), key=int)[-2:]
    ids = [f"{first}_0", f"{second}_0", f"{first}_1", f"{second}_1"]
    assert known[::2] == ids[::2]

    found = json.loads(slurm.lottery("status", "latest", "--json", cwd=tmp_path))["studies"]
    assert [(study["state"], study["job"]) for study in found] == [("queued", id) for id in ids]
    cancelled = slurm.lottery("cancel", "latest", cwd=tmp_path)
    assert f"cancelled 4 of 4 jobs: {', '.join(ids)}" in cancelled
    wait_until(lambda: not slurm.run("squeue", "-h", "-j", ids[1].partition("_")[0]), "their end")


WRONG = {
    "submit +exp=imp_rewind seed=x": (2, "seed: got 'x', expected a whole number"),
    "submit hydra/launcher=submitit_local": (2, "submit: this launcher does not return before its jobs end"),
    "submit --config runs/study/0/config.yaml": (2, "submit: takes --config-dir and overrides"),
    "submit --cfg": (2, "submit: takes --config-dir and overrides"),
    "submit imp_rewind": (2, "an experiment is run as +exp=imp_rewind"),
    "cancel": (2, "cancel: the following arguments are required: SWEEP"),
    "cancel nothing": (2, "no sweep in runs/.sweeps"),
    "cancel latest --runs elsewhere": (2, "no sweep in elsewhere/.sweeps"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong(wrong: str, tmp_path: Path) -> None:
    outcome = call(*wrong.split(" "))
    status, expected = WRONG[wrong]
    assert outcome.status == status
    assert expected in outcome.line
    assert not list(tmp_path.iterdir())


def test_submit_means_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = call("submit", *QUICK)
    assert outcome.status == 2
    assert outcome.line.startswith("lottery: hydra/launcher=slurm: no sbatch on this machine; use hydra/launcher=local")


def test_help() -> None:
    for words in (["submit"], ["submit", "--help"]):
        outcome = call(*words)
        assert outcome.status == 0
        assert "hydra/launcher=slurm_preempt" in outcome.out or "slurm_preempt" in outcome.out


def swept(tmp_path: Path, executor: str, job: str = "", started: str = "") -> Sweep:
    sweep = Sweep(new_folder(tmp_path / "runs", "now"), executor, [], [SweepStudy("a", [], "study/a", job, started)])
    sweep.write()
    return sweep


def test_cancel_on_another_machine(tmp_path: Path) -> None:
    sweep = swept(tmp_path, "local", "1", "1")
    sweep.host, sweep.kernel = "elsewhere", "another boot"
    sweep.write()
    outcome = call("cancel", "now")
    assert outcome.status == 1
    assert outcome.line == "lottery: cancel: sweep now runs on elsewhere; cancel it there"


def test_cancel_never_ends_a_process_that_only_has_the_number(tmp_path: Path) -> None:
    """This very process has it."""
    swept(tmp_path, "local", str(os.getpid()), f"{start_time(os.getpid())}0")
    outcome = call("cancel", "now")
    assert (outcome.status, outcome.out) == (0, "sweep now: nothing to cancel, its jobs have ended\n")


def test_cancel_where_there_is_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(tmp_path, "slurm", "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = call("cancel", "now")
    assert outcome.status == 1
    assert outcome.line == "lottery: cancel: no SLURM on this machine; run it where the sweep was submitted"


def test_cancel_leaves_alone_what_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job may still be seen for a moment. Programs that stand for SLURM's: job 7 runs, nothing may be cancelled."""
    sweep = swept(tmp_path, "slurm", "7")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "squeue").write_text('#!/bin/sh\nprintf "%-40s%-20s\\n" 7 RUNNING\n')
    (programs / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    assert call("cancel", "now").out == "sweep now: cancelled 1 of 1 jobs: 7\n"
    assert (tmp_path / "cancelled").read_text() == "7\n"
    sweep.end(0, Outcome(0))
    assert call("cancel", "now").out == "sweep now: nothing to cancel, its jobs have ended\n"
    assert (tmp_path / "cancelled").read_text() == "7\n"
