"""`lottery status`: what it makes of run folders, processes and SLURM, and how that looks."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import SLOW_IMPORTS, call, command, environment
from slurm_tools import SlowStudy, Slurm, wait_until

from lottery.launch import scheduler
from lottery.launch.record import Outcome, Process, Sweep, SweepStudy
from lottery.launch.scheduler import Answer, Job, ask, expanded, parse_accounting, parse_jobs, parse_queue, parse_time
from lottery.launch.studies import STATES, verdict
from lottery.lease import kernel, start_time
from lottery.record.names import STATUS
from lottery.record.status import Status

MINE = Status(pid=os.getpid(), kernel=kernel(), started=start_time(os.getpid()), host="here", updated=1e9)
DEAD = replace(MINE, started="long ago")
AWAY = replace(MINE, kernel="of another machine", host="node7")
SLURM_JOB = replace(AWAY, job="25_3")


# -- the verdict -------------------------------------------------------------------------------------------------------


def job(state: str, restarts: int = 0, reason: str = "") -> Job:
    return Job("25_3", state, reason, None, restarts)


@pytest.mark.parametrize(
    ("recorded", "known", "gone", "alive", "expected"),
    [
        # nothing written yet
        (None, job("PENDING", reason="Priority"), False, None, ("queued", "Priority")),
        (None, job("RUNNING"), False, None, ("starting", "")),
        (None, job("CANCELLED"), True, None, ("cancelled", "before it began")),
        (None, job("OUT_OF_MEMORY"), True, None, ("failed", "its job ended as OUT_OF_MEMORY before it began")),
        (None, None, True, None, ("gone", "its job has ended, and it never began")),
        (None, None, False, None, ("unknown", "")),
        # running
        (MINE, None, False, True, ("running", "")),
        (DEAD, None, False, False, ("killed", "its process is gone")),
        (AWAY, None, False, None, ("running", "")),
        (SLURM_JOB, job("RUNNING"), False, None, ("running", "")),
        (SLURM_JOB, None, True, None, ("killed", "its process is gone")),
        (SLURM_JOB, job("NODE_FAIL"), True, None, ("killed", "its job ended as NODE_FAIL")),
        (SLURM_JOB, job("CANCELLED"), True, None, ("cancelled", "")),
        (replace(SLURM_JOB, waiting="waiting for A"), job("RUNNING"), False, None, ("waiting", "waiting for A")),
        # a record of the run before: requeued, and requeued again
        (SLURM_JOB, job("PENDING", 1, "BeginTime"), False, None, ("queued", "BeginTime")),
        (SLURM_JOB, job("RUNNING", 1), False, None, ("starting", "")),
        (replace(SLURM_JOB, restarts=1), job("RUNNING", 1), False, None, ("running", "")),
        # by hand, after its sweep's job has ended
        (AWAY, job("COMPLETED"), True, None, ("running", "")),
        (MINE, job("FAILED"), True, True, ("running", "")),
        # over
        (replace(SLURM_JOB, state="done"), job("PENDING"), False, None, ("done", "")),
        (replace(SLURM_JOB, state="failed", cause="nan"), job("FAILED"), True, None, ("failed", "nan")),
        (replace(SLURM_JOB, state="failed", cause="nan"), job("COMPLETING"), False, None, ("failed", "nan")),
        (replace(SLURM_JOB, state="interrupted", cause="by X"), job("FAILED"), True, None, ("interrupted", "by X")),
        (replace(SLURM_JOB, state="interrupted", cause="by X"), job("CANCELLED"), True, None, ("cancelled", "by X")),
        (replace(SLURM_JOB, state="interrupted", cause="by X"), job("PENDING", 1), False, None, ("queued", "")),
    ],
)
def test_the_verdict(
    recorded: Status | None, known: Job | None, gone: bool, alive: bool | None, expected: tuple[str, str]
) -> None:
    found = verdict(recorded, "25_3", known, gone, alive)
    assert found == expected
    assert found[0] in STATES


@pytest.mark.parametrize(
    ("recorded", "alive", "outcome", "expected"),
    [
        (None, None, Outcome(2, "model.hidden: got 0"), ("failed", "model.hidden: got 0")),
        (None, None, Outcome(0), ("done", "")),
        (DEAD, False, Outcome(1, "out of memory?"), ("killed", "out of memory?")),
        (replace(DEAD, state="interrupted"), None, Outcome(2, "no data"), ("failed", "no data")),
        (replace(DEAD, state="failed", cause="nan"), None, Outcome(1, "nan"), ("failed", "nan")),
    ],
)
def test_the_verdict_with_what_the_sweep_says(
    recorded: Status | None, alive: bool | None, outcome: Outcome, expected: tuple[str, str]
) -> None:
    assert verdict(recorded, "", None, True, alive, outcome) == expected


# -- SLURM's text (as 22.05.8 printed it) ------------------------------------------------------------------------------


def test_the_queue() -> None:
    lines = [
        ("3", "PENDING", "Resources", "10:00", "0"),
        ("1_2", "PENDING", "JobArrayTaskLimit", "5:00", "2"),
        ("1_0", "RUNNING", "None", "1-04:57:01", "1"),
    ]
    widths = [width for _, width in scheduler.QUEUE]
    text = "".join("".join(f"{v:<{w}}" for v, w in zip(line, widths, strict=True)) + "\n" for line in lines)
    assert list(parse_queue(text)) == [
        Job("3", "PENDING", "Resources", 600, 0),
        Job("1_2", "PENDING", "JobArrayTaskLimit", 300, 2),
        Job("1_0", "RUNNING", "", 86400 + 4 * 3600 + 57 * 60 + 1, 1),
    ]


def test_accounting() -> None:
    text = (
        "JobID|State|NodeList\n25_0|COMPLETED|node1\n25_1|CANCELLED by 0|node2\n25_1.batch|CANCELLED|node2\n"
        "25_[2-3,7%2]|PENDING|None assigned\n31|PREEMPTED|node1\n31|FAILED|node1\n"
    )
    found = {job.id: job.state for job in parse_accounting(text)}
    pending = dict.fromkeys(["25_2", "25_3", "25_7"], "PENDING")
    assert found == {"25_0": "COMPLETED", "25_1": "CANCELLED", **pending, "31": "FAILED"}
    assert list(parse_accounting("")) == []


def test_jobs_that_scontrol_remembers() -> None:
    text = (
        "JobId=1 ArrayJobId=1 ArrayTaskId=2-4%2 ArrayTaskThrottle=2 JobName=j.sh JobState=PENDING "
        "Reason=JobArrayTaskLimit Dependency=(null) Requeue=1 Restarts=0 NodeList=(null)\n"
        "JobId=5 ArrayJobId=1 ArrayTaskId=1 JobState=RUNNING Reason=None Requeue=1 Restarts=3 NodeList=node1\n"
        "JobId=6 JobName=x JobState=NODE_FAIL Reason=NodeDown Restarts=0 NodeList=node2\n\n"
    )
    assert list(parse_jobs(text)) == [
        *(Job(f"1_{task}", "PENDING", "JobArrayTaskLimit") for task in (2, 3, 4)),
        Job("1_1", "RUNNING", "", None, 3),
        Job("6", "NODE_FAIL", "", None, 0),
    ]


@pytest.mark.parametrize(
    ("id", "ids"),
    [
        ("31", ["31"]),
        ("25_3", ["25_3"]),
        ("25_[0-2,7%4]", ["25_0", "25_1", "25_2", "25_7"]),
        ("25_[0-6:3]", ["25_0", "25_3", "25_6"]),
        ("25_[1,2,...]", ["25_1", "25_2"]),
        ("", []),
    ],
)
def test_tasks_of_an_array(id: str, ids: list[str]) -> None:
    assert expanded(id) == ids


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4:57", 297), ("1:00:00", 3600), ("2-00:00:10", 172810), ("UNLIMITED", None), ("INVALID", None), ("", None)],
)
def test_times(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


def programs(folder: Path, **scripts: str) -> str:
    """A PATH on which these programs come first."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_controller_that_hangs_costs_its_time_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", squeue="exec sleep 60"))
    started = time.monotonic()
    answer = ask(["25_0", "25_1"], seconds=0.5)
    assert time.monotonic() - started < 5
    assert answer == Answer({}, False, "SLURM does not answer (squeue took too long)")


def test_a_controller_that_is_down_is_told_from_a_job_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", squeue=f"echo '{down}' >&2; exit 1"))
    assert ask(["25"]) == Answer({}, False, f"squeue: {down}")
    gone, off = "slurm_load_jobs error: Invalid job id specified", "Slurm accounting storage is disabled"
    scripts = {"squeue": gone, "sacct": off, "scontrol": gone}
    path = programs(tmp_path / "more", **{name: f"echo '{line}' >&2; exit 1" for name, line in scripts.items()})
    monkeypatch.setenv("PATH", path)
    assert ask(["25"]) == Answer({}, True, "")


@pytest.mark.parametrize("line", ["Zero Bytes were transmitted or received", "Socket timed out on send/recv operation"])
def test_a_broken_connection_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """It is asked again, by the product and by the tests on a real SLURM alike: they share `output_of`."""
    broken = f"mkdir {tmp_path}/asked 2>/dev/null && {{ echo 'slurm_load_jobs error: {line}' >&2; exit 1; }}"
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", scontrol=f"{broken}; echo JobId=7 JobState=RUNNING"))
    assert Slurm(tmp_path / "slurm.conf").scontrol("show", "job", "7") == "JobId=7 JobState=RUNNING\n"
    assert (tmp_path / "asked").is_dir()


def test_without_slurm_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask(["25"]) == Answer()


# -- sweeps ------------------------------------------------------------------------------------------------------------


def run_folder(runs: Path, number: int, status: Status | None, rows: str = "") -> str:
    """A run folder as a study leaves it; its place in `runs`."""
    folder = runs / "lth" / f"{number:012x}"
    (folder / "rounds").mkdir(parents=True)
    if status is not None:
        (folder / STATUS).write_text(json.dumps(asdict(status)))
    (folder / "rounds.jsonl").write_text(rows)
    return str(folder.relative_to(runs))


def row(round: int, control: str | None, density: float, accuracy: float) -> str:
    rest = {"density_weights": density, "kept": 1, "layer_density": {}, "mask_digest": None}
    return (
        json.dumps({"round": round, "control": control, "density": density, "test_accuracy": accuracy, **rest}) + "\n"
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A local sweep of five studies, whose launcher is this process; only the sixth waits for a worker."""
    rows = row(2, None, 0.64, 0.9) + row(2, "reinit", 0.64, 0.5) + '{"round": 3, "cont'
    running = replace(MINE, round=3, control="reinit", step=1234, steps=9000, seconds_left=3725.0,
                      trainings_done=7, trainings=11)  # fmt: skip
    long_cause = "round 1: the loss is nan at step 1,233; a lower optim.lr, or a warm-up, may help"
    folders = [
        run_folder(tmp_path, 0, replace(DEAD, state="done", round=8), row(8, None, 0.1678, 0.97)),
        run_folder(tmp_path, 1, running, rows),
        run_folder(tmp_path, 2, DEAD, rows),
        run_folder(tmp_path, 3, replace(DEAD, state="failed", cause=long_cause)),
        run_folder(tmp_path, 4, replace(MINE, waiting="waiting for lth/000000000001, process 7 on here: train 9f86d0")),
        run_folder(tmp_path, 5, None),
    ]
    words = ["python", "-m", "lottery", "-m", "+exp=lth", "seed=0,1,2,3,4,5", "hydra/launcher=local"]
    jobs = [
        SweepStudy(f"seed={number}", [f"seed={number}"], folder, str(os.getpid()), start_time(os.getpid()))
        for number, folder in enumerate(folders)
    ]
    sweep = Sweep(tmp_path / ".sweeps" / "2026-08-01_12-00-00", "local", words, jobs)
    sweep.write()
    for number in range(5):
        assert sweep.claim(number, [Process("0", "a worker")])
        os.utime(sweep.folder / "claims" / f"{number:04d}.txt", (5e8, 5e8))  # before the studies wrote their status
    return sweep


def states(runs: Path, *args: str) -> dict[str, str]:
    found = call("status", *args, "--json", "--runs", str(runs))
    assert found.status == 0, found.err
    return {study["label"]: study["state"] for study in json.loads(found.out)["studies"]}


def test_a_local_sweep(sweep: Sweep, tmp_path: Path) -> None:
    expected = ["done", "running", "killed", "failed", "waiting", "queued"]
    assert list(states(tmp_path, "latest").values()) == expected
    assert states(tmp_path, sweep.name) == states(tmp_path, "latest")
    os.utime(sweep.folder / "claims" / "0003.txt")  # taken again, after it had failed
    assert sweep.claim(5, [Process("0", "a worker")])
    assert list(states(tmp_path, "latest").values()) == [*expected[:3], "starting", "waiting", "starting"]
    sweep.end(3, Outcome(1, "nan"))
    for job in sweep.jobs:
        job.started = "long ago"
    sweep.write()
    assert list(states(tmp_path, "latest").values()) == [*expected[:4], "waiting", "gone"]


def test_one_that_failed_before_it_began_says_where_to_look(sweep: Sweep, tmp_path: Path) -> None:
    sweep.jobs[5].log = "logs/0005.log"
    sweep.write()
    sweep.end(5, Outcome(2, "seed: got -1, expected a whole number ≥ 0"))
    lines = call("status", "latest", "--runs", str(tmp_path)).out.splitlines()
    assert " ".join(lines[-1].split()) == "seed=5 failed seed: got -1, expected a whole number ≥ 0; see logs/0005.log"


def test_as_json(sweep: Sweep, tmp_path: Path) -> None:
    found = json.loads(call("status", "latest", "--json", "--runs", str(tmp_path)).out)
    study = found["studies"][1]
    said = {"state": "running", "round": 3, "control": "reinit", "copy": 0, "step": 1234, "steps": 9000,
            "seconds_left": 3725.0, "trainings_done": 7, "trainings": 11, "density": 0.64, "test_accuracy": 0.9,
            "last_round": 2, "label": "seed=1", "overrides": ["seed=1"]}  # fmt: skip
    assert said.items() <= study.items()
    [told] = found["sweeps"]
    counts = {"failed": 1, "killed": 1, "running": 1, "waiting": 1, "queued": 1, "done": 1}
    assert (told["name"], told["executor"], told["states"]) == (sweep.name, "local", counts)


def test_everything_newest_first_and_a_line_for_each_sweep(sweep: Sweep, tmp_path: Path) -> None:
    status = replace(DEAD, state="done", updated=2e9)
    run_folder(tmp_path, 9, status)
    (tmp_path / ".store" / "train" / f"{1:012x}").mkdir(parents=True)  # no run folder
    damaged = tmp_path / ".sweeps" / "2026-08-02_12-00-00"
    damaged.mkdir()
    (damaged / "sweep.json").write_text('{"jobs": [')
    done = call("status", "--runs", str(tmp_path))
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0].startswith(f"lottery: {damaged / 'sweep.json'}: not JSON")
    assert lines[2].split()[:2] == [f"lth/{9:012x}", "done"]
    assert len([line for line in lines if line.startswith("lth/")]) == 7
    assert lines[-1].startswith("2026-08-01_12-00-00  local  6 studies: 1 failed, 1 killed, 1 running, 1 waiting")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("later",), "later: no such sweep"),
        (("2026-08-01_12-00-01",), "did you mean '2026-08-01_12-00-00'?"),
        (("--runs", "elsewhere"), "--runs DIR names the folder"),
        (("--wrong",), "--help says more"),
    ],
)
def test_what_is_not_there(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    tmp_path.rename(tmp_path.parent / "runs")
    try:
        done = call("status", *args)
    finally:
        (tmp_path.parent / "runs").rename(tmp_path)
    assert done.status == 2
    assert said in done.line


def on_a_terminal(columns: int, *args: str, cwd: Path, **env: str) -> list[str]:
    """What the command line prints where it has a terminal of this width."""
    ours, theirs = pty.openpty()
    environ = environment(COLUMNS=str(columns), LINES="50", TERM="xterm", **env)
    process = subprocess.Popen(command(args), cwd=cwd, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal's end
            break
        if not part:
            break
        text += part
    os.close(ours)
    assert process.wait(60) == 0
    return text.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("columns", [80, 140])
def test_how_it_looks_on_a_terminal(sweep: Sweep, tmp_path: Path, columns: int) -> None:
    """No line is longer than the terminal, and nothing that matters is lost on a narrow one."""
    lines = on_a_terminal(columns, "status", "latest", "--runs", str(tmp_path), cwd=tmp_path, NO_COLOR="1")
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    for wanted in ("seed=1  running  3 reinit 0  1,234/9,000", "1h02m", "64.00%", "90.00", "process 7 on here"):
        assert wanted in text
    assert "a lower optim.lr" in " ".join(text.split())
    colored = "\n".join(on_a_terminal(columns, "status", "latest", "--runs", str(tmp_path), cwd=tmp_path))
    assert "\033[31mfailed" in colored


def test_it_needs_no_torch(sweep: Sweep, tmp_path: Path) -> None:
    heavy = {*SLOW_IMPORTS, "numpy", "rich", "hydra"}
    look = f"import sys; from lottery.__main__ import main; main(); print({heavy} & set(sys.modules))"
    args = [sys.executable, "-c", look, "status", "--runs", str(tmp_path)]
    done = subprocess.run(args, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


# -- a real SLURM ------------------------------------------------------------------------------------------------------


@pytest.mark.slurm
@pytest.mark.slow
def test_on_slurm(slurm: Slurm, tmp_path: Path) -> None:
    """Held, running, requeued, killed and cancelled jobs, one beside the other."""
    study = SlowStudy(slurm, tmp_path / "study")
    cpu = ("--cpus-per-task=1", f"--output={tmp_path / 'output'}", "--open-mode=append", "--time=10", "--requeue")
    script = tmp_path / "job.sh"
    words = " ".join(f"'{word}'" for word in command(study.overrides))
    script.write_text(f"#!/bin/bash\n[ $SLURM_ARRAY_TASK_ID = 0 ] || exec sleep 600\nexec {words}\n")
    job = slurm.sbatch(*cpu, "--array=0-2", str(script), cwd=tmp_path, **study.env)
    slurm.scontrol("hold", f"{job}_1")
    held = slurm.sbatch(*cpu, "--hold", str(script), cwd=tmp_path)
    wait_until(study.at_work, "a checkpoint")
    [folder] = study.runs.glob("faults/*")
    places = [str(folder.relative_to(study.runs)), "faults/aaaaaaaaaaaa", "faults/bbbbbbbbbbbb", "faults/cccccccccccc"]
    ids = [f"{job}_0", f"{job}_2", held, "999999"]
    jobs = [SweepStudy(f"study {n}", [], places[n], ids[n]) for n in range(4)]
    Sweep(study.runs / ".sweeps" / "now", "slurm", [], jobs).write()

    def seen() -> list[dict[str, Any]]:
        found = json.loads(slurm.lottery("status", "now", "--json", "--runs", str(study.runs), cwd=tmp_path))
        assert found["problems"] == []
        return list(found["studies"])

    def state(number: int) -> str:
        return str(seen()[number]["state"])

    now = wait_until(lambda: (found := seen())[0]["step"] and found, "a status with a step")
    assert [one["state"] for one in now] == ["running", "starting", "queued", "gone"]
    assert now[0]["job"] == f"{job}_0"
    assert now[2]["detail"] == "JobHeldUser"
    assert now[3]["detail"] == "its job has ended, and it never began"

    slurm.scontrol("requeue", f"{job}_0")
    wait_until(lambda: state(0) == "queued", "the requeued job in the queue")
    assert seen()[0]["restarts"] == 1
    wait_until(lambda: state(0) == "running", "the requeued job at work")
    slurm.run("scancel", f"{job}_2")
    os.kill(seen()[0]["pid"], signal.SIGKILL)  # the cluster is this machine
    wait_until(lambda: (state(0), state(1)) == ("killed", "cancelled"), "ended jobs", 60)
    assert seen()[0]["detail"] in ("its process is gone", "its job ended as FAILED")
    slurm.run("scancel", held, job)
