"""`lottery doctor`: it finds what is wrong, on this machine and on a real SLURM, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line_tools import call, environment, listing, spawn
from safetensors.numpy import save_file

from lottery.checkup import cluster, folders
from lottery.checkup.cluster import check_cluster
from lottery.checkup.findings import Finding, in_order, note, ok, problem, size
from lottery.checkup.folders import check_data, check_folders, file_system
from lottery.checkup.machine import check_libraries, required
from lottery.config.data import Data
from lottery.lease import Lease

CONFIG = """Configuration data as of 2026-08-01T12:00:00
ClusterName             = lottery
JobRequeue              = {requeue}
KillWait                = 30 sec
MaxArraySize            = 1001
MinJobAge               = 300 sec
PreemptMode             = {mode}
PreemptType             = preempt/partition_prio
SlurmctldParameters     = {parameters}
SLURM_VERSION           = 23.11.4
"""
PARTITION = "PartitionName={name} DefaultTime=00:10:00 GraceTime=120 MaxTime={limit} PreemptMode={mode} State={state}"
NO_SIGNAL = "no --signal in its script (one given to sbatch itself does not show): SIGTERM, and SIGKILL 30 sec later"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, on a machine without SLURM and outside of its jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.delenv("LOTTERY_DATA", raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def slurm_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A SLURM that answers these lines to `scontrol show config` and `scontrol show partition`."""

    def say(partitions: list[str], mode: str = "REQUEUE", parameters: str = "", requeue: int = 1) -> None:
        config = CONFIG.format(mode=mode, parameters=parameters, requeue=requeue)
        scripts = {
            "squeue": "exit 0",
            "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
            "scontrol": f"case $2 in\nconfig) echo '{config}';;\npartition) echo '{chr(10).join(partitions)}';;\nesac",
        }
        (here / "programs").mkdir(exist_ok=True)
        for name, script in scripts.items():
            (here / "programs" / name).write_text(f"#!/bin/sh\n{script}\n")
            (here / "programs" / name).chmod(0o755)

    return say


def partition(name: str, limit: str = "1-00:00:00", mode: str = "OFF", state: str = "UP") -> str:
    return PARTITION.format(name=name, limit=limit, mode=mode, state=state) + " TotalNodes=4"


def found(findings: list[Finding], topic: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in findings if finding.topic == topic]


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_machine_without_problems(here: Path) -> None:
    done = call("doctor", "tracker=none")
    assert (done.status, done.err) == (0, ""), done.out
    lines = done.out.splitlines()
    assert lines[-1] == "no problem found"
    assert not [line for line in lines if line.startswith("problem")]
    for wanted in ("no SLURM", "renames and leases work", "torch", "GPU", "tracker=none", "mnist1d and digits need"):
        assert wanted in done.out
    assert listing(here) == {}


def test_what_is_wrong_comes_first_and_names_itself_at_the_end(here: Path) -> None:
    (here / "runs").write_text("a file, where a folder should be")
    (here / "data").mkdir()
    (here / "data" / "mnist.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      garbage")
    done = call("doctor", "tracker=none")
    assert done.status == 1
    lines = done.out.splitlines()
    assert lines[0].startswith("problem  paths.runs    runs: ")
    assert "-> choose another folder: paths.runs=DIR" in lines[1]
    levels = [line.split()[0] for line in lines if line[:1].strip()]
    quick = levels[: levels.index("ok") + 1]
    assert quick == sorted(quick, key=["problem", "note", "ok"].index)
    assert lines[-1] == "3 problems: paths.runs, paths.store, data"


def test_overrides_that_are_wrong_are_one_line(here: Path) -> None:
    done = call("doctor", "paths.stor=x")
    assert done.status == 2
    assert done.line.startswith("lottery: paths.stor: no such key (did you mean 'paths.store'?)")


@pytest.mark.slow
def test_the_quick_part_needs_no_torch_and_wandb_is_asked_without_network(here: Path) -> None:
    look = (
        "import sys; from lottery import doctor; from lottery.config import settings; "
        "from lottery.compose import composed; "
        "doctor.quick(settings(composed([]))); print([m for m in ('torch', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout == "[]\n", done.stderr
    whole = spawn("doctor", cwd=here, WANDB_API_KEY="", HOME=str(here), WANDB_BASE_URL="http://127.0.0.1:9")
    assert whole.status == 0
    assert "W&B           offline, not logged in" in whole.out


def test_findings_in_order_and_in_lines() -> None:
    findings = [ok("a", "fine"), note("b", "look"), problem("c", "broken " * 20, "mend it"), ok("d", "fine")]
    assert [finding.topic for finding in in_order(findings)] == ["c", "b", "a", "d"]
    lines = in_order(findings)[0].lines(80)
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == "problem c " + "broken " * 20 + "-> mend it"


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999 bytes"), (1500, "1.5 kB"), (184800336, "185 MB"), (7.2e10, "72 GB"), (2e13, "20.0 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to() -> None:
    """/proc is no place for files, for root either."""
    [finding] = check_folders({"paths.store": Path("/proc/store")}, slurm=False)
    assert finding.level == "problem"
    assert "/proc/store (not there yet; looked at /proc)" in finding.text


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm here")
def test_a_folder_in_memory_is_worth_a_note() -> None:
    assert file_system(Path("/dev/shm")) == "tmpfs"
    [finding] = [f for f in check_folders({"paths.store": Path("/dev/shm")}, slurm=False) if f.level == "note"][:1]
    assert "in memory" in finding.text


def test_on_a_cluster_a_local_disk_is_worth_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "file_system", lambda folder: "ext4")
    both = {"paths.runs": tmp_path, "paths.store": tmp_path / ".store"}
    told = check_folders(both, slurm=True)
    assert [f.topic for f in told if "other machines do not see" in f.text] == ["paths.runs"]
    assert ("ok", f"{tmp_path / '.store'}: not there yet, in the same place as paths.runs") in found(
        told, "paths.store"
    )
    monkeypatch.setattr(folders, "file_system", lambda folder: "nfs4")
    assert not [f for f in check_folders(both, slurm=True) if "other machines" in f.text]


def test_a_file_system_without_atomic_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that writes the new content into the old file, which a reader then sees half."""

    def copying(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        source.unlink()

    monkeypatch.setattr(os, "replace", copying)
    [finding] = check_folders({"paths.store": tmp_path}, slurm=False)
    assert (finding.level, finding.text) == ("problem", f"{tmp_path}: renaming a file over another is not atomic here")
    assert listing(tmp_path) == {}


def test_a_file_system_without_exclusive_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Lease._create

    def create(lease: Lease) -> bool:
        lease.path.unlink(missing_ok=True)
        return real(lease)

    monkeypatch.setattr(Lease, "_create", create)
    [finding] = check_folders({"paths.store": tmp_path}, slurm=False)
    assert "leases are not safe" in finding.text
    assert listing(tmp_path) == {}


def test_little_room_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    for limits, level in (((free * 2.0, 0.0), "problem"), ((0.0, 1e30), "problem"), ((0.0, 0.0), "ok")):
        monkeypatch.setattr(folders, "LITTLE", limits)
        monkeypatch.setattr(folders, "TIGHT", limits)
        assert next(f.level for f in check_folders({"paths.runs": tmp_path}, slurm=False) if " free" in f.text) == level


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    arrays: dict[str, Any] = {}
    for part, count in (("train", 30), ("test", 10)):
        arrays[f"{part}_images"] = np.zeros((count, 1, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = np.zeros(count, np.int64)
    save_file(arrays, tmp_path / "mnist.safetensors")
    return tmp_path / "mnist.safetensors"


def test_a_whole_data_file(data_file: Path) -> None:
    told = found(check_data(data_file.parent, Data(_target_="lottery.data.sources.mnist1d")), "data")
    assert told[0] == ("ok", f"{data_file}: 30 + 10 images of 1x28x28, 32 kB")
    assert told[1][0] == "ok"
    assert "cifar10, cifar100" in told[1][1]


def test_a_data_file_cut_anywhere_is_not_whole(data_file: Path) -> None:
    whole = data_file.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        data_file.write_bytes(whole[:length])
        [first, *_] = check_data(data_file.parent, Data())
        assert (first.level, first.topic) == ("problem", "data"), length
        assert "not whole" in first.text
    data_file.write_bytes(whole + b"x")
    assert check_data(data_file.parent, Data())[0].level == "problem"


def test_a_safetensors_file_of_another_kind(data_file: Path) -> None:
    save_file({"weight": np.zeros(3)}, data_file)
    assert "it lacks train_images" in check_data(data_file.parent, Data())[0].text


def test_the_data_set_that_was_chosen(data_file: Path) -> None:
    folder = data_file.parent
    for name, expected in (
        ("mnist", []),
        ("cifar10", [("note", f"{folder / 'cifar10.safetensors'}: not there; made on")]),
    ):
        told = check_data(folder, Data(_target_=f"lottery.data.sources.{name}"))
        notes = [(f.level, f.text) for f in told if f.level != "ok"]
        assert len(notes) == len(expected)
        assert all(text.startswith(begin) for (_, text), (_, begin) in zip(notes, expected, strict=True))
    tree = Data(_target_="lottery.data.imagefolder.imagefolder", folder="images")
    assert check_data(folder, tree)[1].level == "problem"
    for part in ("train", "val"):
        (folder / "images" / part / "cat").mkdir(parents=True)
    assert check_data(folder, tree)[1] == ok("data", f"{folder / 'images'}: 1 classes")


# -- libraries ---------------------------------------------------------------------------------------------------------


def test_libraries_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"torch", "hydra-core", "submitit"} <= {requirement.name for requirement in required()}
    assert [finding.level for finding in check_libraries()] == ["ok"]
    from packaging.requirements import Requirement

    from lottery.checkup import machine

    wanted = [Requirement("torch>=99"), Requirement("a-library-that-nobody-has>=1")]
    monkeypatch.setattr(machine, "required", lambda: wanted)
    texts = [finding.text for finding in check_libraries() if finding.level == "problem"]
    assert texts[0].endswith("needed is >=99")
    assert texts[1] == "a-library-that-nobody-has is not installed"


# -- SLURM -------------------------------------------------------------------------------------------------------------


def test_a_cluster_without_the_signal_at_preemption(slurm_says: Callable[..., None]) -> None:
    slurm_says([partition("gpu", mode="REQUEUE"), partition("long", limit="UNLIMITED")])
    told = check_cluster(checkpoint_minutes=10)
    assert found(told, "scheduler") == [("ok", "SLURM 23.11.4, cluster lottery")]
    assert found(told, "limits") == [("ok", "an array may have 1,000 jobs (MaxArraySize), so a sweep too")]
    [(level, text)] = found(told, "preemption")
    assert level == "note"
    assert "SIGTERM alone" in text
    expected = (
        "gpu: 4 nodes, up, up to 24h (where a job does not say, 10m); its jobs may be preempted (requeue, grace 120 s)"
    )
    assert found(told, "partition")[0] == ("ok", expected)
    assert found(told, "accounting")[0][0] == "note"


@pytest.mark.parametrize(
    ("mode", "parameters", "requeue", "level", "text"),
    [
        ("REQUEUE", "enable_configless,preempt_send_user_signal", 1, "ok", "announced by the job's own signal"),
        ("OFF", "", 1, "ok", "off"),
        ("CANCEL", "", 1, "note", "cancelled, not requeued"),
        ("GANG,SUSPEND", "preempt_send_user_signal", 0, "note", "JobRequeue=0"),
    ],
)
def test_preemption(
    slurm_says: Callable[..., None], mode: str, parameters: str, requeue: int, level: str, text: str
) -> None:
    slurm_says([partition("main")], mode, parameters, requeue)
    last = found(check_cluster(10), "preemption")[-1]
    assert last[0] == level
    assert text in last[1]


def test_time_limits_shorter_than_a_checkpoint_interval(slurm_says: Callable[..., None]) -> None:
    slurm_says([partition("debug", limit="00:05:00"), partition("main"), partition("old", state="DRAIN")])
    told = check_cluster(checkpoint_minutes=10)
    assert [level for level, _ in found(told, "partition")] == ["note", "ok", "note"]
    assert "problem" not in {finding.level for finding in told}
    slurm_says([partition("debug", limit="00:05:00")])
    assert [f.topic for f in check_cluster(10) if f.level == "problem"] == ["limits"]
    assert "problem" not in {finding.level for finding in check_cluster(checkpoint_minutes=2)}


def test_many_partitions_are_cut_but_not_those_with_a_note(slurm_says: Callable[..., None]) -> None:
    slurm_says([partition(f"p{n}") for n in range(30)] + [partition("short", limit="00:01:00")])
    told = found(check_cluster(10), "partition")
    assert len(told) == cluster.MANY + 2
    assert told[0][1].startswith("short")
    assert told[-1] == ("ok", "and 18 more")


def test_a_controller_that_hangs(slurm_says: Callable[..., None], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_says([])
    (here / "programs" / "scontrol").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setattr(cluster, "SECONDS", 0.3)
    started = time.monotonic()
    [finding] = check_cluster(10)
    assert time.monotonic() - started < 5
    assert (finding.level, finding.topic) == ("problem", "scheduler")
    assert "does not answer" in finding.text


@pytest.mark.parametrize(
    ("script", "level", "text"),
    [
        ("#SBATCH --signal=USR2@300", "ok", "gets SIGUSR2 300 s before its end"),
        ("#SBATCH --signal=B:SIGUSR1@30", "note", "gets SIGUSR1 30 s before its end"),
        ("#SBATCH --signal TERM", "ok", "gets SIGTERM 60 s before its end"),
        (
            "#SBATCH --time=10",
            "note",
            NO_SIGNAL,
        ),
    ],
)
def test_inside_a_job(
    slurm_says: Callable[..., None], here: Path, monkeypatch: pytest.MonkeyPatch, script: str, level: str, text: str
) -> None:
    slurm_says([partition("main")])
    scontrol = here / "programs" / "scontrol"
    case = f"batch_script) echo '#!/bin/bash'; echo '{script}';;\nesac"
    scontrol.write_text(scontrol.read_text().replace("esac", case))
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    assert found(check_cluster(10), "this job") == [(level, text)]
