"""Our launchers: what they hand to SLURM and to the workers of a local sweep, and real sweeps on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

import pytest
from command_line_tools import QUICK, ROOT, call, command, environment, spawn
from omegaconf import OmegaConf

from lottery.combine import Composer
from lottery.compose import composed
from lottery.config import study_key
from lottery.errors import ConfigError
from lottery.launch import scheduler, slurm
from lottery.launch.blocked import BLOCKED
from lottery.launch.job import StudyJob, comes_back
from lottery.launch.launcher import id_text
from lottery.launch.local import KILLED, TRIES, Crew, worker_environment
from lottery.launch.record import Outcome, Process, Sweep, SweepStudy, new_folder
from lottery.launch.settings import Local
from lottery.launch.slurm import Watch, last_word
from lottery.launch.snapshot import described, snapshot
from lottery.lease import start_time
from lottery.signals import HANDLED
from lottery.sweep import planned

PATIENCE = 240.0  # seconds, on a machine with many other things to do
# Two trainings of some seconds, each with a checkpoint after a fifth of a second or so.
SLOW = (*QUICK, "train.steps=6000it", "train.eval_every=3000it", "train.checkpoint_steps=500")


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain: {what}"
        time.sleep(0.1)


def the_sweep(cwd: Path) -> Sweep:
    """The latest sweep launched in this folder."""
    return Sweep.read(sorted((cwd / "runs" / ".sweeps").iterdir())[-1])


# -- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3"],
        ["+exp=imp_rewind", "seed=1", "rewind=init", "seeds.mask=7"],
        ["seed=1", "rewind=weights", "rewind.to=1ep", "train.steps=5ep", "optim=adam", "optim.lr=0.002"],
        ["model.hidden=[8,9]", "seeds.init=${seed}", "data=digits", "data.limit=10", "tracker.tags=[a,b]"],
        ["+probes.mine={_target_: lottery.probes.masks.overlap}", "seed=2"],
        ["~probes", "seed=2"],
        ["method={rounds: 4}", "name='a b'"],
        ["train={batch_size: 7}", "train.drop_last=true", "train.checkpoint_steps=null"],
    ],
)
def test_composing_many_gives_what_composing_one_gives(overrides: list[str]) -> None:
    """A property of the shortcut: it changes nothing, not even in the second study that uses it."""
    composer = Composer()

    def outcome(compose: Callable[[list[str]], object], given: list[str]) -> str:
        try:
            return OmegaConf.to_yaml(compose(given))
        except ConfigError as error:
            return f"refused: {error}"

    for given in (overrides, [*overrides, "optim.momentum=0.5"], overrides):
        assert outcome(composer, given) == outcome(composed, given)


def test_composing_many_refuses_what_composing_one_refuses() -> None:
    composer = Composer()
    composer(["seed=1"])
    for wrong in ("sed=1", "seed=x", "optim.lr=-1", "optim=sdg", "seed=[1", "model.hiden=[3]"):
        with pytest.raises(ConfigError) as one:
            composed([wrong])
        with pytest.raises(ConfigError) as many:
            composer([wrong])
        assert str(many.value) == str(one.value)


# -- what SLURM is given ----------------------------------------------------------------------------------------------


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that stand for SLURM's: sbatch takes every job, as number 7, 8, ... Where its scripts lie.

    The real SLURM is in the tests marked so; this is about the text that is submitted, also without one.
    """
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("srun", "squeue", "scancel"):
        (programs / name).write_text("#!/bin/sh\n")
    taken = tmp_path / "scripts"
    taken.mkdir()
    (programs / "sbatch").write_text(
        f"#!/bin/sh\nn=$(($(ls {taken} | wc -l) + 7))\ncp $1 {taken}/$n\necho Submitted batch job $n\n"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return taken


def options(script: Path) -> dict[str, str]:
    """The #SBATCH lines."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), re.MULTILINE))


SUBMIT = ("-m", "hydra/launcher=slurm", "hydra.launcher.wait=false")


def test_what_is_submitted(sbatch: Path, tmp_path: Path) -> None:
    settings = (
        "partition=low", "account=me", "qos=q", "gpus_per_node=1", "mem_gb=1.5", "array_parallelism=1",
        "timeout_min=30", "setup=[module load cuda]",
    )  # fmt: skip
    outcome = call(*SUBMIT, *QUICK, "seed=0,1", "trainer.nodes=2", *(f"hydra.launcher.{each}" for each in settings))
    assert (outcome.status, outcome.err) == (0, "")
    sweep = the_sweep(tmp_path)
    assert [job.job for job in sweep.jobs] == ["7_0", "7_1"]
    assert f"sweep {sweep.name}: 2 studies submitted as SLURM job 7_[0-1]" in outcome.out
    assert f"python -m lottery status {sweep.name}" in outcome.out
    assert options(sbatch / "7") == {
        "account": "me", "array": "0-1%1", "cpus-per-task": "4", "gpus-per-node": "1", "job-name": "study",
        "mem": "1536MB", "nodes": "2", "ntasks-per-node": "1", "open-mode": "append",
        "output": f"{sweep.folder}/.submitit/%A_%a_0_log.out", "partition": "low", "qos": "q", "requeue": "",
        "signal": "USR2@120", "time": "30", "wckey": "submitit",
    }  # fmt: skip
    script = (sbatch / "7").read_text()
    assert re.search(rf"\nexport PYTHONPATH={sweep.folder}/code[:\n]", script)
    assert "\nexport PYTHONSAFEPATH=1\nexport SRUN_CPUS_PER_TASK=4\nmodule load cuda\n" in script
    assert re.search(r"\nsrun .*--kill-on-bad-exit=1 .*python\S* -IS \S+/code/lottery/launch/blocked.py -u -m ", script)


def test_what_is_pickled(sbatch: Path, tmp_path: Path) -> None:
    """A job knows its overrides and where its configs are, and nothing of Hydra."""
    from submitit import SlurmJob

    (tmp_path / "own" / "exp").mkdir(parents=True)
    (tmp_path / "own" / "exp" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    call(*SUBMIT, "--config-dir", "own", "+exp=mine", *QUICK, "seed=0,1")
    sweep = the_sweep(tmp_path)
    shutil.rmtree(tmp_path / "own")
    for number, job in enumerate(sweep.jobs):
        submission = SlurmJob(sweep.folder / ".submitit", job.job).submission()
        expected = ["+exp=mine", *QUICK, f"seed={number}"]
        configs = str(sweep.folder / "configs")
        assert submission.function == StudyJob(str(sweep.folder), number, expected, configs, f"seed={number}")
        assert submission._timeout_countdown > 1000  # time limits that it survives
        cfg = composed(submission.function.overrides, submission.function.config_dir)
        assert job.folder == f"mine/{study_key(cfg)}"


def test_studies_of_different_size_get_their_own_arrays(sbatch: Path, tmp_path: Path) -> None:
    outcome = call(
        *SUBMIT, *QUICK, "seed=0,1", "trainer.devices=1,2", "hydra.launcher.gpus_per_node=${trainer.devices}"
    )
    assert outcome.status == 0
    found = {script.name: options(script) for script in sbatch.iterdir()}
    assert {name: (o["ntasks-per-node"], o["gpus-per-node"], o["array"]) for name, o in found.items()} == {
        "7": ("1", "1", "0-1%2"), "8": ("2", "2", "0-1%2"),
    }  # fmt: skip
    assert [job.job for job in the_sweep(tmp_path).jobs] == ["7_0", "8_0", "7_1", "8_1"]


def test_ones_own_profile_of_a_cluster(sbatch: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "hydra" / "launcher").mkdir(parents=True)
    profile = "defaults: [slurm_preempt, _self_]\npartition: gpu\ntimeout_min: 45\n"
    (tmp_path / "own" / "hydra" / "launcher" / "mine.yaml").write_text(profile)
    assert call("submit", "--config-dir", "own", "hydra/launcher=mine", *QUICK).status == 0
    found = options(sbatch / "7")
    assert (found["partition"], found["time"], found["signal"]) == ("gpu", "45", "USR2@90")
    assert "array" not in found  # one study is a plain job


def test_what_slurm_refuses_leaves_nothing(sbatch: Path, tmp_path: Path) -> None:
    """Of two arrays the second one is refused: the first one is taken back."""
    fake = tmp_path / "programs"
    (fake / "sbatch").write_text(
        "#!/bin/sh\nif grep -q ntasks-per-node=2 $1; then echo 'sbatch: error: CPU count too high' >&2; exit 1; fi\n"
        "echo Submitted batch job 7\n"
    )
    (fake / "scancel").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/cancelled\n')
    outcome = call(*SUBMIT, *QUICK, "trainer.devices=1,2")
    assert outcome.status == 1
    assert outcome.line == "lottery: hydra/launcher=slurm: CPU count too high"
    assert (tmp_path / "cancelled").read_text() == "7\n"
    assert not list((tmp_path / "runs" / ".sweeps").iterdir())
    (fake / "scancel").write_text("#!/bin/sh\necho 'scancel: error: Access denied' >&2; exit 1\n")
    line = call(*SUBMIT, *QUICK, "trainer.devices=1,2").line
    said = "the jobs submitted before could not be cancelled (scancel: error: Access denied): `scancel 7`"
    assert line == f"lottery: hydra/launcher=slurm: CPU count too high; {said}"
    assert list((tmp_path / "runs" / ".sweeps").iterdir())  # it has the jobs on record


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("CANCELLED", Outcome(143, "cancelled")),
        ("NODE_FAIL", Outcome(1, "its job ended as NODE_FAIL")),
        ("COMPLETED", Outcome(0)),
        (None, Outcome(1, "its job is gone, and SLURM does not know how it ended")),
    ],
)
def test_a_job_that_ends_without_a_word(state: str | None, said: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is believed when SLURM says so twice; a job that is requeued in between, or a SLURM that is silent, is not."""
    sweep = Sweep(new_folder(Path("runs"), "now"), "slurm", [], [SweepStudy("a", [], "f", job="7")])
    watch, answers = Watch(sweep), scheduler.Answer

    def look(state: str | None, complete: bool = True) -> set[int]:
        found = {} if state is None else {"7": scheduler.Job("7", state)}
        monkeypatch.setattr(slurm.scheduler, "ask", lambda ids: answers(found, complete))
        watch.look()
        return sweep.ended()

    assert not look(state)
    assert not look("PENDING")
    assert not look(state)
    assert not look(None, complete=False)
    assert look(state) == {0}
    assert sweep.outcome(0) == said == last_word(state)


USR2, TERM, INT = signal.SIGUSR2, signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("received", "state", "expected"),
    [
        ({USR2}, "RUNNING", True),  # the end of the time, or a preemption that is announced
        ({TERM}, "RUNNING", True),  # a preemption with a time of grace
        ({TERM, USR2}, "RUNNING", True),
        ({TERM}, "COMPLETING", False),  # scancel, or scontrol requeue, which needs no help
        ({TERM, USR2}, "COMPLETING", False),  # scancel after the announcement
        ({USR2}, "PENDING", False),
        ({USR2}, None, True),  # SLURM does not answer: only what is sure
        ({TERM}, None, False),
        ({INT}, "RUNNING", False),  # scancel --signal=INT: an end without a return
    ],
)
def test_when_a_job_sees_to_its_own_return(received: set[int], state: str | None, expected: bool) -> None:
    assert comes_back(received, USR2, state) is expected


def test_signals_are_held_back_until_somebody_handles_them() -> None:
    """While Python imports, and until StopFlag is installed."""
    assert set(BLOCKED) == set(HANDLED)
    code = (
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGUSR2); print('alive');"
        "from lottery.signals import StopFlag; stop = StopFlag(); stop.install(); print(sorted(stop.received))"
    )
    held = [sys.executable, "-IS", str(ROOT / "lottery" / "launch" / "blocked.py"), "-c", code]
    done = subprocess.run(held, env=environment(), capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["alive", f"[{int(USR2)}, {int(TERM)}]"]


# -- what is wrong ----------------------------------------------------------------------------------------------------

WRONG = {
    "hydra.launcher.partition=low": "hydra.launcher.partition=low: has no effect without a launcher: hydra/launcher=sl",
    "hydra/launcher=slrm": "(did you mean 'slurm'?)",
    "hydra/launcher=slurm hydra.launcher.partitoin=x": "no such key (did you mean 'hydra.launcher.partition'?)",
    "hydra/launcher=slurm hydra.launcher.timeout_min=x": "hydra.launcher.timeout_min: got 'x', expected a whole number",
    "hydra/launcher=slurm hydra.launcher.timeout_min=12":
        "hydra.launcher.timeout_min: got 12, expected more than 12 minutes: train.checkpoint_minutes=10 and "
        "hydra.launcher.signal_delay_s=120",
    "hydra/launcher=slurm hydra.launcher.cpus_per_task=0": "got 0, expected a whole number ≥ 1",
    "hydra/launcher=slurm hydra.launcher.mem_gb=${nothing}": "hydra.launcher: Interpolation key 'nothing' not found",
    "hydra/launcher=local sed=0,1": "sed: no such key (did you mean 'seed'?)",
    "hydra/launcher=local hydra.launcher.workers=0": "hydra.launcher.workers: got 0, expected a whole number ≥ 1",
    "hydra/launcher=local hydra.launcher.workers=1,2": "a launcher and its settings are the same for a whole sweep",
    "hydra/launcher=local hydra.launcher.partition=x": "hydra.launcher has wait, snapshot, workers",
    "hydra/launcher=local hydra.sweep.dir=x": "hydra.sweep.dir=x: has no effect with this launcher",
    "hydra/launcher=local paths.runs=a,b": "paths.runs: got 'a,b', expected one folder",
    "hydra/launcher=local trainer.nodes=2": "trainer.nodes: got 2, expected 1",
    "hydra/launcher=local seed=0,1,x": "seed: got 'x', expected a whole number",
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_launched(wrong: str, sbatch: Path, tmp_path: Path) -> None:
    outcome = call("-m", *QUICK, *wrong.split(" "))
    assert (outcome.status, outcome.out) == (2, "")
    assert WRONG[wrong] in outcome.line
    assert not (tmp_path / "runs").exists()
    assert not list(sbatch.iterdir())


def test_slurm_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = call("-m", *QUICK, "hydra/launcher=slurm", "seed=0,1")
    assert outcome.status == 2
    assert outcome.line.startswith("lottery: hydra/launcher=slurm: no sbatch on this machine; use hydra/launcher=local")
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_one_study_needs_no_values_to_sweep_over() -> None:
    jobs, hydra = planned(["hydra/launcher=local", "seed=3"], None)
    assert jobs == [["hydra/launcher=local", "seed=3"]]
    assert hydra.launcher._target_ == "lottery.launch.settings.Local"


# -- the sweep's folder -----------------------------------------------------------------------------------------------


def test_a_sweep_is_read_as_it_was_written() -> None:
    jobs = [SweepStudy("a", ["seed=0"], "study/1", "7_0", "", "log"), SweepStudy("b", ["seed=1"], "study/2", "7_1")]
    sweep = Sweep(
        new_folder(Path("runs"), "now"), "slurm", ["python"], jobs, None, described(), {"wait": True}, "today"
    )
    sweep.write()
    assert Sweep.read(sweep.folder) == sweep
    assert id_text(sweep) == "7_[0-1]"
    found = json.loads((sweep.folder / "sweep.json").read_text())
    assert (found["name"], found["executor"]) == ("now", "slurm")
    assert set(found["jobs"][0]) >= {"label", "overrides", "folder", "job", "log"}


def test_sweeps_of_the_same_second_have_folders_of_their_own() -> None:
    assert [new_folder(Path("runs"), "now").name for _ in range(3)] == ["now", "now-2", "now-3"]


def claim_all(task: tuple[str, str]) -> list[int]:
    folder, worker = task
    sweep = Sweep(Path(folder), "local", [], [])
    return [number for number in range(50) if sweep.claim(number, [Process(worker, "7")])]


def test_every_study_is_taken_by_one_worker() -> None:
    folder = new_folder(Path("runs"), "now")
    with Pool(4) as pool:
        taken = pool.map(claim_all, [(str(folder), str(n)) for n in range(4)], chunksize=1)
    assert sorted(number for own in taken for number in own) == list(range(50))
    claims = Sweep(folder, "local", [], []).claims()
    assert claims == {number: [Process(str(worker), "7")] for worker, own in enumerate(taken) for number in own}


def test_an_outcome_stands_until_the_study_is_run_again() -> None:
    sweep = Sweep(new_folder(Path("runs"), "now"), "slurm", [], [])
    assert sweep.outcome(3) is None
    assert sweep.ended() == set()
    sweep.end(3, Outcome(1, "the loss became nan"))
    assert (sweep.outcome(3), sweep.ended()) == (Outcome(1, "the loss became nan"), {3})
    sweep.reopen(3)
    assert (sweep.outcome(3), sweep.ended()) == (None, set())


def test_damaged_files_of_a_sweep_do_no_harm() -> None:
    """An outcome that cannot be read is an end, or its readers would wait for ever; a claim of nobody is given back."""
    sweep = Sweep(new_folder(Path("runs"), "now"), "local", [], [])
    for kind, name in [("outcomes", "0000.json"), ("outcomes", "x.json"), ("claims", "0001.txt"), ("claims", "x.txt")]:
        (sweep.folder / kind).mkdir(exist_ok=True)
        (sweep.folder / kind / name).write_bytes(b"")
    (sweep.folder / "claims" / "0002.txt").write_bytes(b"\xff\0")
    assert sweep.ended() == {0}
    assert (end := sweep.outcome(0)) is not None
    assert (end.status, "0000.json: not JSON" in end.cause) == (1, True)
    sweep.claim(3, [Process("1", "1")])
    assert sweep.claims() == {1: [], 2: [], 3: [Process("1", "1")]}
    sweep.free()
    assert set(sweep.claims()) == {3}


def test_a_process_number_that_is_used_again_is_not_the_launcher() -> None:
    here, started = str(os.getpid()), start_time(os.getpid())
    sweep = Sweep(new_folder(Path("runs"), "now"), "local", [], [SweepStudy("", [], "", here, "1")])
    assert sweep.processes() == []
    sweep.jobs[0].started = started
    assert sweep.processes() == [os.getpid()]
    sweep.jobs[0].job = ""
    sweep.claim(0, [Process("1", "1"), Process(here, started)])  # also a worker whose starter was killed
    assert sweep.processes() == [os.getpid()]


def test_the_copy_of_the_code_runs_and_is_the_one_that_is_imported(tmp_path: Path) -> None:
    """Also where a checkout lies in the working directory; and it composes the same study."""
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("defaults: [mlp, _self_]\nhidden: [3]\n")
    (tmp_path / "own" / "weights.pth").write_text("no config")
    configs = snapshot(tmp_path, "own")
    assert configs == str(tmp_path / "configs")
    assert [path.name for path in Path(configs).rglob("*.*")] == ["mine.yaml"]
    code = (
        f"import lottery; from lottery.compose import composed; from lottery.config import study_key;"
        f"print(lottery.__file__); print(study_key(composed(['model=mine', 'seed=4'], {configs!r})))"
    )
    env = {**environment(), "PYTHONPATH": str(tmp_path / "code"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    expected = study_key(composed(["model=mine", "seed=4"], "own"))
    assert done.stdout.split() == [str(tmp_path / "code" / "lottery" / "__init__.py"), expected]


def test_where_the_code_came_from() -> None:
    found = described()
    assert found["from"] == str(ROOT)
    if (ROOT / ".git").exists() and shutil.which("git"):
        assert re.fullmatch(r"[0-9a-f]{40}", found["commit"])
        assert isinstance(found["dirty"], bool)


# -- local workers ----------------------------------------------------------------------------------------------------


def test_workers_share_the_machine() -> None:
    def given(number: int, gpus: int = 0, wanted: int = 1, **environ: str) -> tuple[str, str | None]:
        settings = Local(workers=2, cpus_per_task=3, gpus_per_worker=wanted)
        found = worker_environment(settings, number, environ, gpus)
        return found["OMP_NUM_THREADS"], found.get("CUDA_VISIBLE_DEVICES")

    assert given(0) == ("3", None)
    assert [given(n, gpus=1)[1] for n in range(2)] == ["0", "0"]
    assert [given(n, gpus=3)[1] for n in range(4)] == ["0", "1", "2", "0"]
    assert [given(n, gpus=4, wanted=2)[1] for n in range(3)] == ["0,1", "2,3", "0,1"]
    assert [given(n, gpus=9, CUDA_VISIBLE_DEVICES="GPU-a,GPU-b")[1] for n in range(2)] == ["GPU-a", "GPU-b"]
    assert given(0, gpus=2, CUDA_VISIBLE_DEVICES="")[1] == ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = worker_environment(Local(workers=2, gpus_per_worker=1), 0, {}, 0)
    assert shared["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    asked = worker_environment(Local(workers=2, gpus_per_worker=1), 0, {"OMP_NUM_THREADS": "5"}, 0)
    assert asked["OMP_NUM_THREADS"] == "5"


def test_everything_that_a_study_prints_is_in_its_log(tmp_path: Path) -> None:
    """Whoever prints it: Python, a handler that kept its stream, a child process."""
    code = (
        "import logging, subprocess, sys; from pathlib import Path; from lottery.launch.worker import output_to\n"
        "logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "for name in 'ab':\n"
        "  with output_to(Path('logs') / name):\n"
        "    print(name); logging.warning('a record')\n"
        "    subprocess.run('echo a child; echo its complaint >&2', shell=True)\n"
        "print('after')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("after\n", "")
    for name in "ab":
        log = (tmp_path / "logs" / name).read_text().splitlines()
        assert sorted(log) == sorted([name, "a record", "a child", "its complaint"])


def test_workers_that_cannot_start_are_not_started_for_ever(tmp_path: Path) -> None:
    sweep = Sweep(new_folder(tmp_path, "now"), "local", [], [SweepStudy("a", [], "f")])
    sweep.settings = {"python": "false", "gpus_per_worker": 1}
    crew = Crew(sweep)
    wait_until(lambda: not crew.at_work(more=True), "the crew to give up")
    assert crew.started == TRIES
    assert not sweep.ended()


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_killed_worker_is_replaced_while_others_are_busy(tmp_path: Path) -> None:
    """Two workers, three studies: the third one does not wait for the worker that is left."""
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 600\n")  # a worker that never gets on
    (tmp_path / "python").chmod(0o755)
    sweep = Sweep(new_folder(tmp_path, "now"), "local", [], [SweepStudy(name, [], name) for name in "abc"])
    sweep.settings = {"python": str(tmp_path / "python"), "gpus_per_worker": 1}
    crew = Crew(sweep)
    try:
        assert crew.at_work(more=True)
        for number, worker in enumerate(crew.workers):
            assert sweep.claim(number, [Process.of(int(worker.job_id))])
        crew.at_work(more=True)
        assert crew.started == 2
        first = int(crew.workers[0].job_id)
        wait_until(lambda: children(first), "the worker's process")
        os.kill(children(first)[0], signal.SIGKILL)
        wait_until(lambda: crew.at_work(more=True) and crew.started == 3, "a third worker")
        assert [sweep.outcome(number) for number in range(3)] == [Outcome(1, KILLED), None, None]
    finally:
        while crew.at_work(more=False):
            sweep.terminate()
            time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_killed_while_importing_and_an_empty_claim_cost_nothing(tmp_path: Path) -> None:
    """The only worker of a sweep is killed before it has taken a study, and there is a claim that was cut short."""
    sweep = Sweep(new_folder(tmp_path / "runs", "now"), "local", [], [SweepStudy("", [*QUICK], "")])
    sweep.settings = {"workers": 1, "gpus_per_worker": 1}
    sweep.write()
    (sweep.folder / "claims").mkdir()
    (sweep.folder / "claims" / "0000.txt").touch()
    launcher = subprocess.Popen(
        [sys.executable, "-m", "lottery.launch.local", str(sweep.folder)], env=environment(), stderr=subprocess.PIPE
    )
    wait_until(lambda: (started := children(launcher.pid)) and children(started[0]), "the worker to be started")
    os.kill(children(children(launcher.pid)[0])[0], signal.SIGKILL)
    _, err = launcher.communicate(timeout=PATIENCE)
    assert (launcher.returncode, err) == (0, b"")
    assert sweep.outcome(0) == Outcome(0)


@pytest.mark.slow
def test_a_sweep_on_this_machine(tmp_path: Path) -> None:
    """Results as without a launcher; a study that fails stops no other and is told in one line, with its log."""
    studies = (*QUICK, "optim.lr=0.1,1e30,0.2")
    outcome = spawn("-m", "hydra/launcher=local", *studies, cwd=tmp_path)
    assert outcome.status == 1, outcome
    sweep = the_sweep(tmp_path)
    cause = "round 0: the loss became nan at step 1; a lower optim.lr or optim.clip_norm may help"
    assert outcome.line == f"lottery: optim.lr=1e+30: {cause}; see {sweep.log(1)}"
    assert "2 of 3 studies done" in outcome.out
    assert [sweep.outcome(number) for number in range(3)] == [Outcome(0), Outcome(1, cause), Outcome(0)]
    assert "done: 2 rows" in sweep.log(0).read_text()
    assert not sweep.processes()

    reference = tmp_path / "reference"
    assert call("-m", *studies, f"paths.runs={reference}").status == 1
    for number in (0, 2):
        launched, here = (runs / sweep.jobs[number].folder for runs in (tmp_path / "runs", reference))
        assert digests(launched) == digests(here)


def digests(run: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert rows
    return [(row["mask_digest"], row["weights_digest"]) for row in rows]


def in_mid_training(runs: Path) -> int:
    """How many trainings have come to their first checkpoint, and not to their end."""
    return len(list((runs / ".store" / "train").glob("*/checkpoint.safetensors")))


@pytest.mark.slow
def test_a_killed_worker_and_ctrl_c(tmp_path: Path) -> None:
    """The first costs one study, and another worker takes its place; after the second the same command continues."""
    sweep_of_three = ("-m", "hydra/launcher=local", *SLOW, "seed=0,1,2")
    process = subprocess.Popen(
        command(sweep_of_three),
        cwd=tmp_path,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    runs = tmp_path / "runs"
    wait_until(lambda: in_mid_training(runs) == 2, "two studies to run")
    victim = json.loads((runs / the_sweep(tmp_path).jobs[0].folder / "status.json").read_text())
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: the_sweep(tmp_path).outcome(0), "the loss to be noticed")
    wait_until(lambda: 2 in the_sweep(tmp_path).claims(), "another worker to take the third study")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, (out, err)
    killed, interrupted = err.splitlines()
    assert killed.startswith("lottery: seed=0: its process was killed")
    assert interrupted.startswith("lottery: interrupted by SIGINT with ")
    assert interrupted.endswith("the state is saved, the same command continues")
    sweep = the_sweep(tmp_path)
    assert not sweep.processes()
    notes = [runs / job.folder / "status.json" for job in sweep.jobs]
    states = [json.loads(note.read_text())["state"] for note in notes if note.exists()]  # the third has barely begun
    assert states[0] == "running"  # who is killed says nothing
    assert "running" not in states[1:]

    again = spawn(*sweep_of_three, cwd=tmp_path)
    assert (again.status, again.err) == (0, ""), again
    assert "continue training" in "".join(the_sweep(tmp_path).log(number).read_text() for number in range(3))
    assert [len(digests(runs / job.folder)) for job in sweep.jobs] == [2, 2, 2]
