"""Whatever is wrong: the exact exit status, one line that names it, nothing written where the configuration is wrong,
finished rounds kept where the run failed, and no traceback on the terminal.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command_line_tools import QUICK, Outcome, call, listing, run_folder, spawn
from safetensors.torch import save_file
from training_tools import draw_nothing

from lottery.compose import composed
from lottery.methods.imp import IMP
from lottery.record.table import load_runs
from lottery.runner import check_device
from lottery.ticket import Mask, read_metadata

HAS_CHECK = pytest.mark.skipif(not hasattr(IMP, "check"), reason="IMP does not check its patterns beforehand")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOTTERY_DATA", raising=False)


def refused(*args: str) -> str:
    """The one line of a wrong configuration; nothing was written, nothing printed."""
    before = listing(Path.cwd())
    outcome = call(*args)
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    assert listing(Path.cwd()) == before
    return outcome.line.removeprefix("lottery: ")


# -- the configuration is wrong, and neither torch nor data are needed to know it --------------------------------------

BY_ITSELF = {
    # a name that does not exist
    "optim.lrr=1": "optim.lrr: no such key (did you mean 'optim.lr'?)",
    "trian.steps=500it": "trian.steps: no such key (did you mean 'train.steps'?)",
    "+exp=imp_rewnd": "exp: got 'imp_rewnd', expected one of ",
    "modle=mlp": "modle: no such key (did you mean 'model'?)",
    "model=lenett": "(did you mean 'lenet_300_100'?)",
    "method.round=3": "method.round: no such key (did you mean 'method.rounds'?)",
    "lr=0.1": "lr: no such key (did you mean 'optim.lr'?)",
    "+optim.foo=1": "optim.foo: no such key",
    "+method.foo=1": "method.foo: no such key",
    "+foo=1": "foo: no such key",
    "foo/bar=x": "foo/bar: no such key",
    "exp=imp_rewind": "exp: an experiment is added with a plus: +exp=NAME",
    "imp_rewind": "imp_rewind: an experiment is run as +exp=imp_rewind",
    "method.rates={output:0.1}": "to add it write +method.rates={output:0.1}",
    "--confg=x": "--confg: no such option (did you mean '--config'?)",
    # a value of another type
    "optim.lr=abc": "optim.lr: got 'abc', expected a number",
    "optim.lr={a:1}": "optim.lr: got {'a': 1}, expected a number",
    "method.rounds=2.5": "method.rounds: got 2.5, expected a whole number",
    "seeds.init=x": "seeds.init: got 'x', expected a whole number",
    "train.drop_last=maybe": "train.drop_last: got 'maybe', expected true or false",
    "optim.betas=0.9": "optim.betas: got 0.9, expected a list",
    "optim.betas=[0.9,x]": "optim.betas[1]: got 'x', expected a number",
    "model.hidden=5": "model.hidden: got 5, expected a list",
    "prunable.exclude=output": "prunable.exclude: got 'output', expected a list",
    "data.limit=all": "data.limit: got 'all', expected a whole number or null",
    "model=null": "model: got null, expected one of ",
    "train=5": "train: got 5, expected one of default",
    "probes.mask_overlap=1": "probes.mask_overlap: got 1, expected {_target_: ",
    "seeds=5": "seeds: got 5, expected its keys one by one: init, order, mask, split",
    # out of its range
    "method.rate=0": "method.rate: got 0.0, expected a fraction",
    "method.rate=1.2": "method.rate: got 1.2, expected a fraction",
    "method.rate=nan": "method.rate: got nan, expected a fraction",
    "+method.rates={output:2}": "method.rates.output: got 2.0, expected a fraction",
    "method.rounds=-1": "method.rounds: got -1, expected a number ≥ 0",
    "train.batch_size=0": "train.batch_size: got 0, expected a whole number ≥ 1",
    "optim.lr=0": "optim.lr: got 0.0, expected a number > 0",
    "optim.lr=inf": "optim.lr: got inf, expected a number > 0",
    "optim.lr=nan": "optim.lr: got nan, expected a number > 0",
    "optim.momentum=1.5": "optim.momentum: got 1.5, expected a number ≥ 0 and ≤ 1",
    "optim.betas=[0.9]": "optim.betas: got [0.9], expected two numbers",
    "optim.nesterov=true": "optim.nesterov: got True, expected false, or optim.momentum > 0",
    "optim.name=sdg": "optim.name: got 'sdg', expected one of sgd, adam, adamw (did you mean 'sgd'?)",
    "controls.reinit=-1": "controls.reinit: got -1, expected a whole number ≥ 0",
    "data.validation=-1": "data.validation: got -1, expected a whole number ≥ 0",
    "data.limit=0": "data.limit: got 0, expected a number of training images ≥ 1",
    "seed=-1": "seed: got -1, expected a whole number ≥ 0",
    "seed=99999999999999999999": "seed: got 99999999999999999999, expected a whole number",
    "tracker=trackio": "tracker: got 'trackio', expected one of csv, none, wandb",
    "trainer.accelerator=gpuu": "trainer.accelerator: got 'gpuu', expected one of auto, cpu, gpu",
    "name=../x": "name: got '../x', expected the name of a folder",
    "name=.store": "name: got '.store', expected the name of a folder",
    # times
    "train.steps=500": "train.steps: got '500', expected a time such as \"500it\"",
    "train.steps=0it": "train.steps: got '0it', expected a time longer than zero",
    "train.eval_every=0it": "train.eval_every: got '0it', expected a time longer than zero",
    "train.eval_every=-5it": "train.eval_every: got '-5it', expected a time",
    "rewind.to=11ep": "rewind.to: got '11ep', expected at most train.steps=10ep",
    "rewind.to=10ep1it": "rewind.to: got '10ep1it', expected at most train.steps=10ep",
    "schedule.name=one_cycle": "schedule.warmup: got '0it', expected the time of one_cycle's highest rate, above 0",
    "schedule.start=1.5": "schedule.start: got 1.5, expected a number ≥ 0 and ≤ 1",
    "schedule.end=-0.1": "schedule.end: got -0.1, expected a number ≥ 0 and ≤ 1",
    "train.label_smoothing=1": "train.label_smoothing: got 1.0, expected a number ≥ 0 and < 1",
    "train.compile=fast": "train.compile",
    "schedule.warmup=11ep": "schedule.warmup: got '11ep', expected at most train.steps=10ep",
    "schedule=multistep": "schedule.milestones: got [], expected at least one time",
    "schedule.milestones=[80]": "schedule.milestones: got '80', expected a time",
    # no value, or no sense
    "optim.lr=": "optim.lr: got '', expected a number",
    "optim.lr=null": "optim.lr: got null, expected a number",
    "optim.lr=???": "optim.lr: has no value",
    "optim.lr": "or key=value",
    f"name={'é' * 128}": "name: got 'éééééééééééééééééééé…', expected the name of a folder: at most 255 bytes",
    "name=": "name: got '', expected the name of a folder",
    "paths.runs=": "paths.runs: got '', expected a folder",
    "model=": "model: got '', expected one of ",
    "+exp=": "exp: got '', expected one of ",
    "~method": "method: nothing chosen; choose one with method=NAME",
    "~data": "choose one with data=NAME",
    "~optim.lr": "optim.lr: cannot be left out",
    "=3": "an override without a key",
    "optim.betas=[1,2": "optim.betas=[1,2: cannot be read",
    "name='a": "name='a: cannot be read",
    "name=a b=c": "name=a b=c: cannot be read",
    "a==3": "a==3: cannot be read",
    "name=a\nb": "name=a b: cannot be read",
    "seed=0,1": "seed: got several values, 0,1: add -m",
    "seed=range(3)": "seed: got several values, range(3): add -m",
    "optim.lr=${nothing}": "optim.lr: Interpolation key 'nothing' not found",
    "seed=${seed}": "seed: ",
    "+model=conv2": "model: given twice; to choose another option leave out the plus",
    "+seed=1": "seed: is there already: leave out the plus",
    "hydra/launcher=submitit_slurm": "hydra/launcher=submitit_slurm: launchers and their options are for sweeps",
    "hydra.run.dir=x": "hydra.run.dir=x: launchers and their options are for sweeps",
    "--config": "--config: expected a file after it",
    "--config-dir=nowhere": "--config-dir: got 'nowhere', expected a folder with configs",
    "--config=nowhere.yaml": "--config: nowhere.yaml: no such file",
    # what Hydra leaves to Python, or to nobody
    "optim=[null]": "optim: got [null], expected one of adam, ",
    "probes=[null]": "probes: got [null], expected one of ",
    "+tracker=[null]": "tracker: got [null], expected one of csv, none, ",
    "paths=[[1]]": "paths: got [[1]], expected one of default",
    "++criterion={1: 2}": "criterion: got the key 1, expected a text as a key",
    "+model.x={1:2}": "model.x: no such key",
    "data.mean=[nan]": "data.mean[0]: got nan, expected a finite number",
    "optim.clip_norm=inf": "optim.clip_norm: got inf, expected a number > 0",
    "train.eval_batch_size=100000000000000000000000": "expected a whole number ≥ 1 and ≤ 2147483647",
    "tracker.group='a\x1b[2J'": "tracker.group: got 'a\\x1b[2J', expected a text of printable characters",
    "name='\\${seed}'": "name: got '${seed}', expected a text without ${",
    "paths.runs=~nobody_of_that_name/x": "paths.runs: got '~nobody_of_that_name/x', expected a folder; ~ names no home",
    # a method that is not there
    "method._target_=Foo": "method._target_: got 'Foo', expected a dotted path",
    "method._target_=foo.Bar": "method._target_: cannot import 'foo.Bar'",
    "method._target_=lottery.methods.imp.IPM": "lottery.methods.imp has no 'IPM' (did you mean 'IMP'?)",
    "method._target_=os.path.join": "method._target_: got 'os.path.join', expected a dataclass",
}


@pytest.mark.parametrize("override", BY_ITSELF)
def test_wrong_by_itself(override: str) -> None:
    assert BY_ITSELF[override] in refused(override)


def test_an_experiment_twice() -> None:
    assert refused("+exp=imp_rewind", "+exp=imp_rewind").startswith("exp: given twice")
    assert refused("+exp=imp_rewind", "+exp=lth_lenet").startswith("exp: given twice")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("class Mine(:\n", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("Mine = print\n", "expected a dataclass"),
        ("from dataclasses import dataclass\n@dataclass\nclass Mine:\n    a: int\n", "method.a: has no value"),
    ],
)
def test_a_broken_method_of_ones_own(
    source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    line = refused("~method", "+method._target_=broken.Mine")
    assert line.startswith("method")
    assert expected in line


# -- the configuration is wrong, and the network or the data are needed to know it -------------------------------------

TOGETHER = {
    "model=resnet20": "model: ResNet-20 takes images",
    "model=conv2": "model: ",
    "prunable.exclude=[nothing]": "prunable.exclude: got 'nothing', expected a pattern that fits a layer, such as ",
    "prunable.exclude=['*']": "prunable.exclude: got ['*'], expected at least one",
    "data.limit=99999": "data.limit: got 99999, expected at most 3500",
    "data.validation=4000": "data.validation: got 4000, expected fewer than the 4000 images",
    "train.batch_size=301": "train.batch_size: got 301, expected at most the 300 training images",
    "rewind.to=3ep": "rewind.to: got '3ep', expected a step of the dense training, at most its 20 steps",
    "schedule.warmup=3ep": "schedule.warmup: got '3ep', expected at most the 20 steps",
    "data._target_=lottery.data.sources.mnist2d": (
        "data._target_: lottery.data.sources has no 'mnist2d' (did you mean 'mnist1d'?)"
    ),
    "criterion._target_=lottery.pruning.criteria.magnitud": "(did you mean 'magnitude'?)",
    "+criterion.foo=1": "criterion: lottery.pruning.criteria.magnitude: ",
    "+probes.mine={_target_:no.such,_partial_:true}": "probes.mine._target_: cannot import 'no.such'",
    "model.init=glorot": "model.init: got 'glorot', expected one of ",
    "model.weights=nowhere.safetensors": "nowhere.safetensors",
}


@pytest.mark.parametrize("override", TOGETHER)
def test_wrong_together_with_the_rest(override: str) -> None:
    quick = [known for known in QUICK if not (override.startswith("model=") and known.startswith("model."))]
    assert TOGETHER[override] in refused(*quick, override)


@HAS_CHECK
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("method.scope=layer", "+method.rates={nothing:0.1}"), "method.rates: got 'nothing', expected a pattern"),
        (("+method.rates={output:0.1}",), "method.rates: got {'output': 0.1}, expected nothing in scope 'global'"),
        (("method.scope=layer", "method.count=openlth"), "method.scope: got 'layer', expected 'global'"),
        (("method.count=exakt",), "method.count: got 'exakt', expected one of exact"),
    ],
)
def test_a_pruning_that_cannot_be_done_is_known_before_training(overrides: tuple[str, ...], expected: str) -> None:
    assert expected in refused(*QUICK, *overrides)


@pytest.mark.parametrize("key", ["paths.runs", "paths.store"])
@pytest.mark.parametrize("place", ["file/below", "/proc/lottery"])
def test_a_folder_that_cannot_be_written_to(key: str, place: str, tmp_path: Path) -> None:
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    (tmp_path / "file").touch()
    assert refused(*QUICK, f"{key}={place}").startswith(f"{key}: cannot write to {place}")


# -- the data are wrong ------------------------------------------------------------------------------------------------

FROM_FILE = (*QUICK, "data=mnist", "paths.data=data", "data.validation=5", "data.limit=null", "train.batch_size=5")


def small_mnist(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Twenty images that have MNIST's shape."""
    images, labels = torch.zeros(20, 1, 28, 28, dtype=torch.uint8), torch.arange(20) % 10
    parts = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images.clone(),
        "test_labels": labels.clone(),
    }
    return parts | changes


def write_mnist(**changes: torch.Tensor) -> Path:
    path = Path("data/mnist.safetensors")
    path.parent.mkdir(exist_ok=True)
    save_file(small_mnist(**changes), path)
    return path


def failed(*args: str) -> str:
    """The one line of a run that failed."""
    outcome = call(*args)
    assert outcome.status == 1, outcome
    assert "Traceback" not in outcome.out
    return outcome.line.removeprefix("lottery: ")


def test_the_small_file_itself_is_fine() -> None:
    write_mnist()
    assert call(*FROM_FILE).status == 0


def test_a_missing_file_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is refused at once by a port that nobody listens at."""
    monkeypatch.setattr("urllib.request._opener", None)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    line = failed(*FROM_FILE)
    assert line.startswith("data/mnist.safetensors: not there")
    assert "paths.data" in line


def test_a_truncated_file() -> None:
    path = write_mnist()
    path.write_bytes(path.read_bytes()[:-100])
    assert failed(*FROM_FILE).startswith("data/mnist.safetensors: cannot be read")


def test_a_file_of_another_type() -> None:
    write_mnist(test_images=torch.zeros(20, 1, 28, 28))
    assert "data/mnist.safetensors: test_images: got torch.float32, expected torch.uint8" in failed(*FROM_FILE)


def test_an_error_that_nobody_foresaw_has_its_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here in a source of the user's own, before there is a table."""
    (tmp_path / "source.py").write_text(
        "def mine(options, folder):\n    raise IndexError('first line\\nsecond line')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    line = failed(*QUICK, "data._target_=source.mine")
    assert line.startswith("IndexError: first line (the traceback is in runs/study/")
    log = (run_folder(tmp_path) / "study.log").read_text()
    assert "source.py" in log
    assert "second line" in log


# -- the run fails on its way ------------------------------------------------------------------------------------------

EXPLODING = '''
from dataclasses import dataclass, replace

from lottery.stages.round import Round


@dataclass
class Exploding:
    """The dense network, then a ticket whose weights are far too large."""

    def __call__(self, lab):
        from lottery.state import StateRef

        yield Round(0, lab.initial, lab.train(lab.initial))
        huge = StateRef.of({name: 1e38 * tensor for name, tensor in lab.initial.state.tensors().items()})
        ticket = replace(lab.initial, state=huge)
        yield Round(1, ticket, lab.train(ticket))
'''


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    line = failed(*QUICK, "optim.lr=1e30")
    assert line.startswith("round 0: ")
    assert " at step " in line
    log = (run_folder(tmp_path) / "study.log").read_text()
    assert line in log
    assert "Traceback" in log


def test_a_loss_that_is_no_number_leaves_the_rounds_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exploding.py").write_text(EXPLODING)
    monkeypatch.syspath_prepend(tmp_path)
    quick = [override for override in QUICK if not override.startswith("method.")]
    line = failed(*quick, "~method", "+method._target_=exploding.Exploding")
    assert line.startswith("round 1: ")
    folder = run_folder(tmp_path)
    assert [row["round"] for row in rows(folder)] == [0]
    assert (folder / "masks" / "round_000.safetensors").exists()


# curves.csv grows by 21 lines a round and is the first to pass the limit, in the third or fourth one.
LIMITED = (*QUICK, "train.eval_every=1it", "method.rounds=6")
LIMIT = 6000


@pytest.mark.slow
def test_a_full_disk_keeps_the_finished_rounds_and_the_same_command_goes_on(tmp_path: Path) -> None:
    outcome = spawn(*LIMITED, cwd=tmp_path, before=limit_files)
    assert outcome.status == 1, outcome
    assert "File too large" in outcome.line
    assert "Traceback" not in outcome.out
    folder = run_folder(tmp_path)
    kept = rows(folder)
    assert 0 < len(kept) < 7
    assert call(*LIMITED).status == 0
    assert rows(folder)[: len(kept)] == kept
    assert [row["round"] for row in rows(folder)] == list(range(7))
    assert not [path for path in tmp_path.rglob("*.tmp")]


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


# -- the run folder was damaged ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study of three rounds and its stages."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LOTTERY_DATA", raising=False)
        draw_nothing(patch)
        assert call(*THREE).status == 0
    return folder


THREE = (*QUICK, "method.rounds=2")


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """The run folder of a copy of it."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return run_folder(tmp_path)


MARKS = ("damaged", "on record", "written again")


def again(*warnings: str) -> Outcome:
    """The same command again: done, and one warning each in the table's output."""
    outcome = call(*THREE)
    assert (outcome.status, outcome.err) == (0, ""), outcome
    said = [line for line in outcome.out.splitlines() if any(mark in line for mark in MARKS)]
    assert len(said) == len(warnings)
    assert all(part in line for part, line in zip(warnings, said, strict=True))
    return outcome


def flip(path: Path, at: int | bytes) -> None:
    """Flip one bit of one byte: at a position, or of the first letter of a piece of the content."""
    data = bytearray(path.read_bytes())
    data[at if isinstance(at, int) else data.index(at)] ^= 4
    path.write_bytes(data)


def facts(folder: Path) -> dict[str, bytes | None]:
    """All that must be as it was: everything but the log, the status and the figures."""
    new = ("study.log", "status.json")
    return {name: data for name, data in listing(folder).items() if name not in new and ".png" not in name}


def test_an_unharmed_study_is_replayed_without_a_word(study: Path) -> None:
    before = facts(study)
    again()
    assert facts(study) == before


@pytest.mark.parametrize("at", [-1, 12, b"lottery-mask/", b"shapes", b"round", b"checksum"])
def test_a_flipped_bit_in_a_mask_is_noticed_and_repaired(study: Path, at: int | bytes) -> None:
    """In the bits, and in the header, whose strings safetensors writes in any order."""
    path, others = study / "masks" / "round_001.safetensors", facts(study)
    mask, metadata = Mask.load(path), read_metadata(path)
    flip(path, at)
    again("masks/round_001.safetensors")
    assert (Mask.load(path), read_metadata(path)) == (mask, metadata)
    rewritten = {name: others[name] for name in ("masks/round_001.safetensors", "manifest.json")}  # has its digest
    assert {**facts(study), **rewritten} == others


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_line_of_the_table_is_written_again_in_its_place(study: Path, number: int) -> None:
    table, before = study / "rounds.jsonl", rows(study)
    lines = table.read_text().splitlines(keepends=True)
    lines[number] = lines[number].replace(":", ";", 1)
    table.write_text("".join(lines))
    again(f"rounds.jsonl: line {number + 1} was damaged")
    untimed = [{k: v for k, v in row.items() if k not in ("seconds", "cached")} for row in rows(study)]
    assert untimed == [{k: v for k, v in row.items() if k not in ("seconds", "cached")} for row in before]
    again()


def test_a_figure_that_changed_in_the_table_is_noticed_and_put_right(study: Path) -> None:
    """A flipped bit may leave a number that reads well; the stage's own result is sealed by a digest."""
    table, before = study / "rounds.jsonl", rows(study)
    changed = [{**row, "test_accuracy": 0.99} if row["round"] == 1 else row for row in before]
    table.write_text("".join(json.dumps(row) + "\n" for row in changed))
    again("round_001 on record had other figures")
    assert [row["test_accuracy"] for row in rows(study)] == [row["test_accuracy"] for row in before]


def test_a_line_torn_by_a_kill_is_completed(study: Path) -> None:
    table, before = study / "rounds.jsonl", len(rows(study))
    table.write_bytes(table.read_bytes()[:-40])
    again()
    assert len(rows(study)) == before


@pytest.mark.parametrize("content", [b"", b"seed: [", b"\x00\xff", b"name: caf\xe9\n", b"name: study\n"])
def test_a_damaged_config_of_the_run_folder(study: Path, content: bytes) -> None:
    """The command that made the study repairs it; run from the file itself, it is refused and nothing touched."""
    before = facts(study)
    (study / "config.yaml").write_bytes(content)
    damaged = listing(Path.cwd())
    outcome = call("--config", str(study / "config.yaml"))
    assert outcome.status == 2
    assert "config.yaml" in outcome.line
    assert listing(Path.cwd()) == damaged
    again()
    assert facts(study) == before


def test_a_saved_config_with_a_tracker_that_is_gone(study: Path) -> None:
    """`tracker=trackio` of older versions: running the study is refused, reading its folder goes on."""
    other = study.parents[1] / "other" / study.name
    shutil.copytree(study, other)
    config = study / "config.yaml"
    config.write_text(config.read_text().replace("tracker:\n  name: none", "tracker:\n  name: trackio"))
    assert "trackio" in config.read_text()
    before = listing(Path.cwd())
    outcome = call("--config", str(config))
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.line == "lottery: tracker.name: got 'trackio', expected one of none, csv, wandb"
    assert listing(Path.cwd()) == before
    assert set(load_runs(study)["config.tracker.name"]) == {"trackio"}
    for reading in (
        ("report", str(study), "-o", "page.html"),
        ("compare", str(study), str(other), "--out", "compared"),
    ):
        outcome = call(*reading)
        assert (outcome.status, outcome.err) == (0, ""), outcome
    again()  # by another tracker


# -- in a process of its own -------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "torch-free": (("optim.lrr=1",), 2, "optim.lrr"),
    "with torch": ((*QUICK, "prunable.exclude=[nothing]"), 2, "prunable.exclude"),
    "failed": ((*QUICK, "optim.lr=1e30"), 1, "round 0: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ENDS)
def test_a_process_ends_with_one_line_and_its_status(case: str, tmp_path: Path) -> None:
    args, status, named = ENDS[case]
    outcome = spawn(*args, cwd=tmp_path)
    assert outcome.status == status
    assert named in outcome.line
    assert "Traceback" not in outcome.out
    assert (status == 2) == (not list(tmp_path.iterdir()))


@pytest.mark.slow
def test_closed_streams_lead_nowhere(tmp_path: Path) -> None:
    """`>&-` and `2>&-`: the study is done, and none of its files takes the place of the stream."""
    for number in (1, 2):
        outcome = spawn("--version", cwd=tmp_path, before=lambda number=number: os.close(number))
        assert (outcome.status, outcome.err) == (0, ""), outcome
        outcome = spawn("optim.lrr=1", cwd=tmp_path, before=lambda number=number: os.close(number))
        assert outcome.status == 2
        assert ("optim.lrr" in outcome.err) == (number == 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("args", [("--help",), ("doctor",), ("compare", "a", "b"), ("optim.lr=0",)])
def test_a_locale_without_utf8(args: tuple[str, ...], tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    outcome = spawn(*args, cwd=tmp_path, **ascii_only)
    assert outcome.status in (0, 1, 2)
    assert "Error" not in outcome.err, outcome.err
    if args[0] == "optim.lr=0":
        assert outcome.line.startswith("lottery: optim.lr: got 0.0")


@pytest.mark.parametrize("args", [("seed=0",), ("report",), ("doctor",), ("status",)])
def test_a_working_directory_that_was_deleted(args: tuple[str, ...], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    outcome = call(*args)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.line == "lottery: the working directory was deleted; change to one that exists"


def test_hydra_full_error_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = call("optim.lr=abc")
    assert outcome.err.startswith("Traceback")
    assert outcome.err.splitlines()[-1] == "lottery: optim.lr: got 'abc', expected a number"


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("wanted", ["gpu", "cuda", "mps"])
def test_a_device_that_is_not_there(wanted: str) -> None:
    line = refused(*QUICK, f"trainer.accelerator={wanted}")
    assert line.startswith(f"trainer.accelerator: got '{wanted}', expected a device that torch sees here")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_several_processes_on_a_cpu_are_told_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    check_device(composed(["trainer=ddp"]).trainer)
    assert capsys.readouterr().out.startswith("trainer.devices=2: torch sees no GPU, so that so many processes train")
    check_device(composed(["trainer=ddp", "trainer.accelerator=cpu"]).trainer)
    check_device(composed([]).trainer)
    assert capsys.readouterr().out == ""
