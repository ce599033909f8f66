"""The command line as a person meets it: help, saved runs, sweeps, signals; exit status and what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line_tools import QUICK, call, command, environment, listing, run_folder, spawn
from omegaconf import DictConfig, OmegaConf

from lottery import __version__
from lottery.__main__ import COMMANDS
from lottery.arguments import Arguments
from lottery.compose import groups
from lottery.data.tensors import TensorStream
from lottery.signals import HANDLED
from lottery.stages.lab import Lab
from lottery.study import Study


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOTTERY_DATA", raising=False)


def rounds(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


# -- words and options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["+exp=imp_rewind", "--help"]])
def test_the_help_fits_a_screen(args: list[str], tmp_path: Path) -> None:
    outcome = call(*args)
    assert (outcome.status, outcome.err) == (0, "")
    words = set(re.findall(r"[\w-]+", outcome.out))
    assert {"--config-dir", "--config", "--cfg", "--version", "--help", *groups(), *COMMANDS} <= words
    assert len(outcome.out.splitlines()) <= 24
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert not list(tmp_path.iterdir())


def test_the_help_on_groups_names_every_option() -> None:
    for group, options in groups().items():
        outcome = call("--help", group)
        assert set(options) <= set(re.findall(r"[\w-]+", outcome.out))
        assert max(map(len, outcome.out.splitlines())) <= 80
        assert outcome.out.strip() in call("--help", "all").out
    assert "(did you mean 'method'?)" in call("--help", "methd").line


def test_the_help_shows_ones_own_experiments(tmp_path: Path) -> None:
    (tmp_path / "own" / "exp").mkdir(parents=True)
    (tmp_path / "own" / "exp" / "mine.yaml").write_text("# @package _global_\n# Mine alone: more.\nname: mine\n")
    assert re.search(r"^  mine +Mine alone$", call("--config-dir", "own", "--help", "exp").out, re.MULTILINE)


def test_the_version() -> None:
    assert call("--version").out == f"lottery {__version__}\n"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("imp_rewind", "an experiment is run as +exp=imp_rewind"),
        ("imp_rewnd", "(did you mean '+exp=imp_rewind'?)"),
        ("staus", "expected a command (submit, status, "),
        ("xyzzy", "doctor, compare, report, export, paper) or key=value"),
    ],
)
def test_a_word_that_is_no_command(word: str, expected: str) -> None:
    outcome = call(word)
    assert outcome.status == 2
    assert outcome.line.startswith(f"lottery: {word}: ")
    assert expected in outcome.line


def test_a_command_gets_the_other_arguments_and_gives_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_command.py").write_text("def status(args):\n    print(args)\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "status", "a_command:status")
    outcome = call("status", "runs", "--all")
    assert (outcome.status, outcome.out) == (1, "['runs', '--all']\n")
    assert "(did you mean 'status'?)" in call("staus").line


def test_options_may_stand_anywhere() -> None:
    asked = Arguments.parse(["a=1", "-m", "--config-dir", "own", "~b", "-h"])
    assert asked == Arguments(["a=1", "~b"], config_dir="own", help=True, sweep=True)
    assert Arguments.parse(["--config-dir=own", "--multirun", "--help", "a=1", "~b"]) == asked


@pytest.mark.parametrize(
    "args", [("-m", "--config", "config.yaml"), ("--config", "config.yaml", "--config-dir", "own"), ("-m", "--cfg")]
)
def test_options_that_exclude_each_other(args: tuple[str, ...]) -> None:
    outcome = call(*args)
    assert outcome.status == 2
    assert outcome.line.startswith("lottery: --c")


# -- Hydra's own conventions -------------------------------------------------------------------------------------------


def test_overrides_as_sweep_agents_write_them() -> None:
    """W&B's `${args}`; the study is the same one."""
    plain = call("+exp=bip", "seed=3", "optim.lr=0.5", "method=imp", "--cfg")
    assert call("--+exp=bip", "--seed=3", "--optim.lr=0.5", "--method=imp", "--cfg").out == plain.out
    assert "(did you mean '--seed'?)" in call("--sed=3").line
    assert "(did you mean '--train.steps'?)" in call("--trian.steps=3").line


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--cfg", "job", "--package", "optim.lr", "+exp=bip"], r"0\.003\n"),
        (["-c", "all", "--resolve", "-p", "train.batch_size"], r"128\n"),
        (["--cfg=hydra", "-p", "hydra.sweep.subdir"], r"\.\n"),
        (["-cd", "own", "+exp=mine", "--cfg", "-p", "name"], "mine\n"),
    ],
)
def test_parts_of_the_configuration(args: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "own" / "exp").mkdir(parents=True)
    (tmp_path / "own" / "exp" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    outcome = call(*args)
    assert (outcome.status, outcome.err) == (0, "")
    assert re.fullmatch(expected, outcome.out)


def test_how_hydra_composes(tmp_path: Path) -> None:
    assert "| exp/bip" in call("--info", "defaults", "+exp=bip").out
    assert "file://" in call("--info", "searchpath").out
    assert not list(tmp_path.iterdir())


def test_a_shell_completes_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/lottery"])
    assert "hydra_bash_completion lottery" in call("--shell-completion", "install=bash").out
    monkeypatch.setenv("COMP_LINE", "lottery rewind=")
    assert {"rewind=init", "rewind=lr"} <= set(call("-sc", "query=bash").out.split())


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--config-name", "x"], "--config-name: not an option here: there is one configuration"),
        (["-cp", "x"], "-cp: not an option here: your own configs are added by --config-dir DIR"),
        (["--package", "optm", "--cfg"], "--package: the configuration has no 'optm' (did you mean 'optim'?)"),
        (["--info=defalts"], "--info: got 'defalts', expected one of all, config, defaults"),
        (["--info", "-m", "seed=0,1"], "--info: prints the configuration of one study, without -m"),
        (["-sc", "install=tcsh"], "--shell-completion: got 'install=tcsh', expected install=SHELL"),
        (
            ["-m", "hydra/sweeper=ax", "seed=0,1"],
            "hydra/sweeper=ax: only Hydra's own sweeper and optuna; list the values",
        ),
    ],
)
def test_what_hydra_has_and_this_command_line_has_not(args: list[str], expected: str) -> None:
    outcome = call(*args)
    assert outcome.status == 2
    assert outcome.line.startswith(f"lottery: {expected}")


# -- configurations ----------------------------------------------------------------------------------------------------


def test_the_printed_configuration_is_the_one_that_runs(tmp_path: Path) -> None:
    printed = call(*QUICK, "--cfg")
    assert (printed.status, printed.err) == (0, "")
    assert not list(tmp_path.iterdir())
    assert call(*QUICK).status == 0
    assert (run_folder(tmp_path) / "config.yaml").read_text() == printed.out


def test_a_study_run_from_its_own_folder_is_the_same_study(tmp_path: Path) -> None:
    assert call(*QUICK).status == 0
    before = {
        name: data for name, data in listing(tmp_path).items() if not name.endswith((".log", ".png", "status.json"))
    }
    again = call("--config", str(run_folder(tmp_path) / "config.yaml"))
    assert (again.status, again.err) == (0, "")
    assert {
        name: data for name, data in listing(tmp_path).items() if not name.endswith((".log", ".png", "status.json"))
    } == before


def test_a_study_leaves_only_its_own_folders(tmp_path: Path) -> None:
    assert call(*QUICK).status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".store", "study"]
    assert not [name for name in listing(tmp_path) if "hydra" in name or "multirun" in name]


# -- sweeps ------------------------------------------------------------------------------------------------------------


def configurations(runs: Path) -> list[DictConfig]:
    """Those of the studies that were run, in order of their seeds."""
    return sorted((read_config(path.parent) for path in runs.glob("*/*/config.yaml")), key=lambda cfg: cfg.seed)


def read_config(run: Path) -> DictConfig:
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


@pytest.mark.slow
def test_a_sweep_over_seeds_and_a_group(tmp_path: Path) -> None:
    outcome = call("-m", *QUICK, "seed=0,1", "optim=sgd,adam")
    assert (outcome.status, outcome.err) == (0, "")
    found = [(cfg.seed, cfg.optim.name) for cfg in configurations(tmp_path / "runs")]
    assert sorted(found) == [(0, "adam"), (0, "sgd"), (1, "adam"), (1, "sgd")]
    assert re.findall(r"^\[.*", outcome.out, re.MULTILINE) == [
        "[1/4] seed=0 optim=sgd", "[2/4] seed=0 optim=adam", "[3/4] seed=1 optim=sgd", "[4/4] seed=1 optim=adam",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert not [name for name in listing(tmp_path) if "hydra" in name or "multirun" in name or ".sweeps" in name]


def test_a_sweep_over_ones_own_experiments(tmp_path: Path) -> None:
    """`--config-dir` by a relative path."""
    (tmp_path / "own" / "exp").mkdir(parents=True)
    for seed in (5, 6):
        (tmp_path / "own" / "exp" / f"e{seed}.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
    assert call("-m", "--config-dir", "own", *QUICK, "+exp=e5,e6").status == 0
    assert [cfg.seed for cfg in configurations(tmp_path / "runs")] == [5, 6]


def test_a_failed_study_stops_no_other(tmp_path: Path) -> None:
    outcome = call("-m", *QUICK, "optim.lr=1e30,0.1", "seed=3")
    assert outcome.status == 1
    assert outcome.line.startswith("lottery: optim.lr=1e+30: round 0: ")
    assert "1 of 2 studies done" in outcome.out
    assert len(list((tmp_path / "runs" / "study").glob("*/rounds.jsonl"))) == 1


def test_the_status_of_a_sweep_is_the_worst() -> None:
    """The second one's configuration proves wrong when its data are there, which stops no other either."""
    outcome = call("-m", *QUICK, "optim.lr=1e30,0.1", "data.limit=300,99999")
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 3
    assert "1 of 4 studies done" in outcome.out


@pytest.mark.parametrize("wrong", ["seed=0,1,x", "method.rounds=1,2.5", "model=mlp,lenett", "optim.lr=0.1,-1"])
def test_a_sweep_with_a_wrong_value_does_not_begin(wrong: str, tmp_path: Path) -> None:
    outcome = call("-m", *QUICK, wrong)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.line.startswith(f"lottery: {wrong.partition('=')[0]}: got ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("hydra.sweep.dir=x", "has no effect without a launcher"),
        ("hydra/launcher=nowhere", "hydra/launcher: got 'nowhere', expected one of basic"),
        ("seed=interval(0,1)", "a sweep needs values one by one"),
        ("seed=[0,1", "cannot be read"),
    ],
)
def test_a_sweep_that_cannot_be_planned(override: str, expected: str, tmp_path: Path) -> None:
    outcome = call("-m", *QUICK, override)
    assert outcome.status == 2
    assert expected in outcome.line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_launcher_of_hydra_runs_the_studies(tmp_path: Path) -> None:
    """Submitit's own, on this machine; its files lie under the runs, and what failed is told in one line."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "own" / "exp").mkdir(parents=True)
    (tmp_path / "own" / "exp" / "mine.yaml").write_text("# @package _global_\nname: mine\nrewind: {to: 5it}\n")
    chosen = ("+exp=mine", "rewind=init", *QUICK)  # what is chosen here wins over the experiment's rewind.to
    sweep = ("-m", "hydra/launcher=submitit_local", "--config-dir", "own", *chosen, "optim.lr=0.1,1e30")
    outcome = spawn(*sweep, cwd=tmp_path)
    assert outcome.status == 1, outcome
    assert "optim.lr=1e+30" in outcome.line
    assert f"exit status 1; see {tmp_path}/runs/.sweeps/" in outcome.line
    [done] = (tmp_path / "runs" / "mine").glob("*/rounds.jsonl")
    assert [row["step_rewind"] for row in rounds(done.parent)] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "runs"]


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_batch(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Callable[[], None]]]:
    """What is put here is done, once, when the process draws its n-th batch."""
    due: dict[int, Callable[[], None]] = {}
    drawn, original = [0], TensorStream.batch

    def batch(stream: TensorStream, step: int) -> object:
        drawn[0] += 1
        due.pop(drawn[0], lambda: None)()
        return original(stream, step)

    handlers = {signum: signal.getsignal(signum) for signum in HANDLED}
    monkeypatch.setattr(TensorStream, "batch", batch)
    yield due
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def kill(signum: int, times: int = 1) -> Callable[[], None]:
    def kill() -> None:
        for _ in range(times):
            os.kill(os.getpid(), signum)

    return kill


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_and_the_same_command_continues(
    signum: signal.Signals, at_batch: dict[int, Callable[[], None]], tmp_path: Path
) -> None:
    before = [signal.getsignal(handled) for handled in HANDLED]
    at_batch[27] = kill(signum)  # in round 1, at its 7th step
    outcome = call(*QUICK)
    assert outcome.status == 128 + signum
    assert outcome.line.endswith(
        f"interrupted by {signum.name} at step 7; the state is saved, the same command continues"
    )
    assert [signal.getsignal(handled) for handled in HANDLED] == before
    folder = run_folder(tmp_path)
    assert "interrupted by" in (folder / "study.log").read_text()
    assert "Traceback" not in (folder / "study.log").read_text()
    assert [row["round"] for row in rounds(folder)] == [0]
    again = call(*QUICK)
    assert (again.status, again.err) == (0, "")
    assert re.search(r"continue training \w+ at step 7", again.out)
    assert [row["round"] for row in rounds(folder)] == [0, 1]


def test_a_second_ctrl_c_does_not_wait(at_batch: dict[int, Callable[[], None]]) -> None:
    at_batch[5] = kill(signal.SIGINT, times=2)
    outcome = call(*QUICK)
    assert outcome.status == 130
    assert "the same command continues" in outcome.line
    assert call(*QUICK).status == 0


def test_a_study_s_memory_is_free_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep in one process keeps no data set, network or store of the studies before."""
    labs: list[weakref.ref[Lab]] = []
    prepared = Study.prepared

    def noted(study: Study) -> Lab:
        assert not [each for each in labs if each() is not None], "an earlier study is still in memory"
        lab = prepared(study)
        labs.append(weakref.ref(lab))
        return lab

    monkeypatch.setattr(Study, "prepared", noted)
    assert call("-m", "+exp=imp_rewind", *QUICK, "rewind.to=5it", "seed=0,1,2", f"paths.runs={tmp_path}").status == 0
    assert len(labs) == 3


@pytest.mark.slow
def test_a_signal_ends_a_sweep(at_batch: dict[int, Callable[[], None]], tmp_path: Path) -> None:
    """In the second of three studies of forty steps each."""
    at_batch[47] = kill(signal.SIGTERM)
    outcome = call("-m", *QUICK, "seed=0,1,2")
    assert outcome.status == 143
    assert outcome.line.startswith("lottery: seed=1: interrupted by SIGTERM at step 7")
    assert [cfg.seed for cfg in configurations(tmp_path / "runs")] == [0, 1]
    assert call("-m", *QUICK, "seed=0,1,2").status == 0


def started(*args: str, cwd: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(args), cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_a_signal_during_the_imports_is_not_lost(tmp_path: Path) -> None:
    """The imports take seconds, long enough to be preempted in: the handlers are there before them."""
    process = started(*QUICK, cwd=tmp_path)
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        process.kill()
        pytest.skip("no /proc here")
    deadline = time.monotonic() + 120
    while "libtorch" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert err.startswith("lottery: interrupted by SIGTERM")
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_signal_while_a_process_trains(tmp_path: Path) -> None:
    long = (*QUICK, "train.steps=3000000it", "train.eval_every=1000it")
    process = started(*long, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        if line.lstrip().startswith("round"):  # the table's header: the first training follows
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert re.fullmatch(r"lottery: interrupted by SIGTERM at step \d+; .* the same command continues\n", err)
    assert list((tmp_path / "runs" / ".store").rglob("checkpoint.safetensors"))


@pytest.mark.parametrize("args", [("--help",), pytest.param(QUICK, marks=pytest.mark.slow)])
def test_a_reader_that_leaves_is_no_error(args: tuple[str, ...], tmp_path: Path) -> None:
    """As in `python -m lottery ... | head -1`."""
    process = started(*args, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    process.stderr.close()
