"""A finished study is answered from its run folder, without torch; after any change it runs, and nothing is lost."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line_tools import QUICK, call, environment, run_folder
from safetensors.torch import save_file
from test_changed_data import write

from lottery.answer import answered
from lottery.compose import composed
from lottery.data import sources
from lottery.inputs import inputs_of
from lottery.inventory.folders import check_run
from lottery.record.table import load_runs
from lottery.trust import SOURCES

# Runs the command line, and then says on stderr which slow modules that took.
TOLD = """
import sys
from lottery.__main__ import main
status = main(sys.argv[1:])
slow = ("torch", "pytorch_lightning", "matplotlib", "pandas", "scipy", "numpy", "wandb")
print("imported:", *[name for name in slow if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""
LOG = "study.log"


def told(*args: str, cwd: Path) -> tuple[str, str]:
    """What a process of its own prints, and the slow modules that it imported."""
    command = [sys.executable, "-c", TOLD, *args]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, done.stderr.rpartition("imported:")[2].strip()


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def results(run: Path) -> dict[str, bytes | str]:
    """What must not be lost, masks by their digests, as safetensors writes a header in any order."""
    names = ("status.json", "manifest.json", "report.html", LOG)
    rows = load_runs(run).drop(columns=["cached", "seconds", "run"])
    return {
        **{name: data for name, data in files(run).items() if name not in names and Path(name).parent.name != "masks"},
        "rounds.jsonl": rows.to_json(),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a finished study, and what its run printed. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = call(*QUICK)
    assert done.status == 0
    return folder, done.out


@pytest.fixture
def study(finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder of a copy of the finished study, in the working directory."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return run_folder(tmp_path)


def answers(run: Path, *args: str) -> bool:
    """Run the study of a folder again; whether it was answered: a study that runs writes its status anew."""
    before = (run / "status.json").read_bytes()
    done = call(*args)
    assert (done.status, done.err) == (0, "")
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert check_run(run) == []
    return (run / "status.json").read_bytes() == before


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


# -- the answer --------------------------------------------------------------------------------------------------------


def test_a_finished_study_is_answered_without_torch(finished: tuple[Path, str], study: Path) -> None:
    before = files(study)
    out, imported = told(*QUICK, cwd=Path.cwd())
    assert (out, imported) == (finished[1], "")
    after = files(study)
    said = after.pop(LOG)[len(before[LOG]) :].decode()
    assert [line[25:] for line in said.splitlines()] == out.splitlines(), "the log has what the terminal showed"
    assert after.items() <= before.items(), "nothing else is written"
    assert len(after) == len(before) - 1


def test_a_finished_sweep_is_answered_without_torch(study: Path) -> None:
    sweep = ("-m", *QUICK, "seed=0,1")
    first = call(*sweep)
    assert first.status == 0
    assert told(*sweep, cwd=Path.cwd()) == (first.out, "")


def test_a_saved_configuration_is_answered(study: Path) -> None:
    assert answers(study, "--config", str(study / "config.yaml"))


def test_a_local_worker_answers_without_torch(study: Path) -> None:
    """A worker imports what studies need only once a study needs it."""
    worker = """
import sys
from lottery.combine import Composer
from lottery.launch import worker
from lottery.launch.job import study
from lottery.signals import StopFlag
assert study(sys.argv[1:], Composer(), "", StopFlag(), worker.preload).status == 0
worker.restore_threads()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", worker, *QUICK], env=environment(), check=True, timeout=60)


@pytest.mark.parametrize("changed", ["trainer.threads=2", "paths.store={}/runs/.store"])
def test_another_trainer_or_place_is_answered_and_put_on_record(changed: str, study: Path) -> None:
    option = changed.format(Path.cwd())
    assert answers(study, *QUICK, option)
    value = option.partition("=")[2]
    assert f": {value}\n" in (study / "config.yaml").read_text()


def test_warnings_that_each_run_repeats_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = (*QUICK, "method.rate=0.9999", "method.scope=layer")
    first = call(*args)
    assert "is pruned empty" in first.out
    run = run_folder(tmp_path)
    before = (run / "status.json").read_bytes()
    again = call(*args)
    assert (run / "status.json").read_bytes() == before
    assert sorted(again.out.splitlines()) == sorted(first.out.splitlines())


def test_a_warning_that_a_run_may_mend_is_not_taken_for_an_answer(study: Path) -> None:
    (study / "report.html").unlink()
    (study / "report.html").mkdir()
    (study / "report.html" / "in_the_way").touch()
    assert "report.html could not be written" in call(*QUICK).out
    shutil.rmtree(study / "report.html")
    assert not answers(study, *QUICK)
    assert (study / "report.html").is_file()
    assert answers(study, *QUICK)


# -- drawings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [Path.unlink, damage])
def test_only_a_spoilt_figure_is_drawn_again(
    spoil: Callable[[Path], None], finished: tuple[Path, str], study: Path
) -> None:
    before = files(study)
    kept = {path: path.stat().st_ino for path in (study / "figures").iterdir() if path.name != "layer_density.png"}
    spoil(study / "figures/layer_density.png")
    out, imported = told(*QUICK, cwd=Path.cwd())
    assert out == finished[1]
    assert "torch" not in imported
    assert (study / "figures/layer_density.png").read_bytes() == before["figures/layer_density.png"]
    assert {path: path.stat().st_ino for path in kept} == kept
    assert check_run(study) == []
    assert answers(study, *QUICK)


def test_a_missing_report_is_written_again(finished: tuple[Path, str], study: Path) -> None:
    figures = {path: path.stat().st_ino for path in (study / "figures").iterdir()}
    size = (study / "report.html").stat().st_size
    (study / "report.html").unlink()
    out, imported = told(*QUICK, cwd=Path.cwd())
    assert out == finished[1]
    assert "torch" not in imported
    assert abs((study / "report.html").stat().st_size - size) < 100
    assert {path: path.stat().st_ino for path in figures} == figures
    assert check_run(study) == []


# -- changes -----------------------------------------------------------------------------------------------------------


def cut_table(run: Path) -> None:
    lines = (run / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (run / "rounds.jsonl").write_bytes(b"".join(lines[:-1]))


def lose_stage(run: Path) -> None:
    [details] = [json.loads(path.read_text()) for path in (run / "rounds").glob("round_001.json")]
    shutil.rmtree(run.parent.parent / ".store/train" / details["stages"]["train"])


def lose_inputs(run: Path) -> None:
    """As another version of lottery, or of a library, would find it."""
    path = run / "manifest.json"
    path.write_text(path.read_text().replace('"inputs": "', '"inputs": "0'))


def fail(run: Path) -> None:
    path = run / "status.json"
    path.write_text(path.read_text().replace('"done"', '"failed"'))


SPOILT: dict[str, Callable[[Path], object]] = {
    "altered mask": lambda run: damage(run / "masks/round_001.safetensors"),
    "missing mask": lambda run: (run / "masks/round_001.safetensors").unlink(),
    "missing row": cut_table,
    "missing table": lambda run: (run / "rounds.jsonl").unlink(),
    "missing details": lambda run: (run / "rounds/round_001.json").unlink(),
    "altered curves": lambda run: damage(run / "curves.csv"),
    "altered configuration": lambda run: damage(run / "config.yaml"),
    "missing manifest": lambda run: (run / "manifest.json").unlink(),
    "damaged manifest": lambda run: (run / "manifest.json").write_text("{"),
    "other inputs": lose_inputs,
    "missing stage": lose_stage,
}
UNFINISHED: dict[str, Callable[[Path], object]] = {
    "failed": fail,
    "no status": lambda run: (run / "status.json").write_text("{}"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_record_is_no_answer(what: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = composed(list(QUICK))
    inputs = inputs_of(cfg)
    log = (study / LOG).read_bytes()
    SPOILT[what](study)
    assert not answered(cfg, study, inputs)
    assert capsys.readouterr().out == ""
    assert (study / LOG).read_bytes() == log


@pytest.mark.slow
@pytest.mark.parametrize("what", ["altered mask", "missing row", "missing stage", *UNFINISHED])
def test_a_spoilt_record_is_made_whole_by_a_run(what: str, study: Path) -> None:
    before = results(study)
    (SPOILT | UNFINISHED)[what](study)
    assert not answers(study, *QUICK)
    assert results(study) == before


def test_a_study_that_was_repaired_is_answered(study: Path) -> None:
    damage(study / "masks/round_001.safetensors")
    damage(study / "rounds.jsonl")
    assert [answers(study, *QUICK) for _ in range(2)] == [False, True]


def test_another_tracker_is_written_and_then_answered(study: Path) -> None:
    csv = study / "rounds.csv"
    assert not answers(study, *QUICK, "tracker=csv")
    written = csv.read_bytes()
    damage(csv)
    assert answers(study, *QUICK, "tracker=csv")
    assert csv.read_bytes() == written


@pytest.mark.slow
def test_wandb_is_asked_for_its_record(study: Path) -> None:
    args = (*QUICK[1:], "tracker=wandb", "tracker.mode=offline")
    assert not answers(study, *args)
    assert answers(study, *args)
    (study / "figures/layer_density.png").unlink()
    assert answers(study, *args)
    assert not answers(study, *args, "tracker.project=another")
    shutil.rmtree(study / "wandb")
    assert not answers(study, *args, "tracker.project=another")
    assert list((study / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_other_data_in_the_cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data/mnist.safetensors"
    path.parent.mkdir()
    args = ("data=mnist", "data.validation=20", "paths.data=data", *QUICK[:2], *QUICK[3:], "train.steps=6it",
            "train.eval_every=6it")  # fmt: skip

    def old(flipped: bool) -> None:
        write(path, flipped)
        os.utime(path, (then, then))

    then = time.time() - 100
    old(flipped=False)
    assert call(*args).status == 0
    run = run_folder(tmp_path)
    first = results(run)
    assert answers(run, *args)
    old(flipped=True)
    assert not answers(run, *args)
    assert results(run) != first
    old(flipped=False)
    assert not answers(run, *args)
    assert results(run) == first


@pytest.mark.slow
def test_edited_code_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's module, and one that it imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom my_widths import WIDTH\n\n\ndef net(*, shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(40, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))\n"
    )
    widths = tmp_path / "my_widths.py"
    widths.write_text("WIDTH = 8\n")
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text("_target_: mine.net\n")
    args = ("--config-dir=conf", "model=mine", *(option for option in QUICK if not option.startswith("model.")))

    def again() -> bool:
        for name in ("mine", "my_widths"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return answers(run, *args)

    assert call(*args).status == 0
    run = run_folder(tmp_path)
    assert again()
    assert "torch" not in told(*args, cwd=tmp_path)[1]
    widths.write_text("WIDTH = 9\n")
    assert not again()
    assert json.loads((run / "rounds.jsonl").read_text().splitlines()[0])["prunable"] == 9 * 50


@pytest.mark.slow
def test_code_that_is_edited_while_a_study_runs_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's module is edited when it is imported, after the study has begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text("_target_: edited.net\n")
    (tmp_path / "edited.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nwith Path(__file__).open('a') as file:\n    file.write('#')\n"
        "def net(*, shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(40, classes))\n"
    )
    args = ("--config-dir=conf", "model=mine", *(option for option in QUICK if not option.startswith("model.")))
    assert call(*args).status == 0
    assert '"inputs"' not in (run_folder(tmp_path) / "manifest.json").read_text()


@pytest.mark.slow
def test_a_failed_probe_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "conf/probes").mkdir(parents=True)
    (tmp_path / "conf/probes/ours.yaml").write_text("ours:\n  _target_: ready_probe.figure\n  _partial_: true\n")
    (tmp_path / "ready_probe.py").write_text(
        "from pathlib import Path\n"
        "def figure(round, previous, lab):\n    return {'ours': float(Path('ready').read_text())}\n"
    )
    args = ("--config-dir=conf", *(option for option in QUICK if option != "probes=none"), "probes=ours")
    assert "probes.ours failed" in call(*args).out
    run = run_folder(tmp_path)
    assert not answers(run, *args)
    (tmp_path / "ready").write_text("2.5")
    assert not answers(run, *args)
    rows = map(json.loads, (run / "rounds.jsonl").read_text().splitlines())
    assert [row["probe/ours"] for row in rows] == [2.5, 2.5]


# -- processes ---------------------------------------------------------------------------------------------------------


def test_several_processes_all_run(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the other ranks would wait for the first one."""
    cfg = composed([*QUICK, "trainer.devices=2"])
    inputs = inputs_of(cfg)
    assert inputs
    assert not answered(cfg, study, inputs)
    assert capsys.readouterr().out == ""
    cfg.trainer.devices = 1
    assert answered(cfg, study, inputs)


def test_a_job_that_answers_is_no_longer_counted(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    counted = study.parent.parent / f".jobs/7-{study.name}.json"
    counted.parent.mkdir()
    counted.write_text('{"runs": 2}')
    assert answers(study, *QUICK)
    assert not counted.exists()


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_cache_files_have_the_names_of_their_sources() -> None:
    room = "lottery.data.sources."
    names = {source.removeprefix(room) for source in SOURCES if source.startswith(room)} - {"mnist1d", "digits"}
    assert {name: getattr(sources, name).args[0] for name in names} == {name: name for name in names}


def test_what_cannot_be_told_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert inputs_of(composed(["data=digits"]))
    assert inputs_of(composed(["data=imagefolder"])) == ""
    assert inputs_of(composed(["data=digits", "data._target_=mine.source"])) == ""
    assert inputs_of(composed(["model=timm", "data=digits"])) != ""
    assert inputs_of(composed(["model=timm", "data=digits", "model.pretrained=true"])) == ""
    assert inputs_of(composed(["data=mnist", f"paths.data={tmp_path}"])) == "", "there is no file"


def test_files_that_options_name_are_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights, images = tmp_path / "weights.safetensors", tmp_path / "mnist.safetensors"
    cfg = composed([
        "data=digits", "probes=ood_mnist", f"model.weights={weights.name}", f"paths.data={tmp_path}",
    ])  # fmt: skip
    found = []
    for number, path in enumerate((weights, images, weights, images)):
        save_file({"x": torch.full((4,), float(number))}, path)
        assert inputs_of(cfg) == "", "the file is too young"
        os.utime(path, (1e9, 1e9))
        found.append(inputs_of(cfg))
    assert found[0] == "", "a probe's data are missing"
    assert len(set(found[1:])) == 3
