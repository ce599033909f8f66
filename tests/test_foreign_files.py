"""Run folders and exports from elsewhere are data: reading them runs no code of theirs, tells no secret of the reader,
and sends the terminal nothing that it would obey.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import yaml
from command_line_tools import QUICK, ROOT, call, listing, run_folder

from lottery.errors import LotteryError
from lottery.export.write import load_shrunk
from lottery.record.table import load_runs
from lottery.state import save_state, state_digest
from lottery.trust import FACTORIES, SOURCES, was_run

SECRET = "the-readers-own-secret"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study of two rounds."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LOTTERY_DATA", raising=False)
        assert call(*QUICK).status == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder of a copy of it, in the current folder; one that says nothing of what it should be like."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (run_folder(tmp_path) / "manifest.json").unlink(missing_ok=True)
    return run_folder(tmp_path).relative_to(tmp_path)


def changed(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the configuration of a run folder."""
    path = run / "config.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


# -- code -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A local repository as torch.hub takes it; whoever loads from it leaves a file."""
    folder = tmp_path / "hub"
    folder.mkdir()
    code = f"open({str(tmp_path / 'attacked')!r}, 'w').close()\ndef network(**options): raise OSError\n"
    (folder / "hubconf.py").write_text(code)
    return folder


def exported(folder: Path, model: dict[str, Any], state: dict[str, Any] | None = None) -> Path:
    """An export folder that names this model."""
    folder.mkdir()
    facts = {
        "format": "lottery-network/1", "model": model, "shape": [1, 4], "classes": 3, "layers": {},
        "digests": {"network": state_digest(state or {})},
    }  # fmt: skip
    (folder / "network.json").write_text(json.dumps(facts))
    save_state(state or {}, folder / "network.safetensors")
    return folder


def attacks(hub: Path) -> dict[str, dict[str, Any]]:
    timm = "lottery.models.zoo.from_timm"
    return {
        "hub": {"_target_": "torch.hub.load", "repo_or_dir": str(hub), "model": "network", "source": "local"},
        "function": {"_target_": "subprocess.call", "args": ["touch", str(hub.parent / "attacked")]},
        "lottery's, but no factory": {"_target_": "lottery.files.write_json", "path": str(hub.parent / "attacked")},
        "timm itself": {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": "evil.pth"},
        "a checkpoint": {"_target_": timm, "name": "resnet18", "options": {"checkpoint_path": "evil.pth"}},
        "pretrained": {"_target_": timm, "name": "resnet18", "options": {"pretrained_cfg": {"file": "evil.pth"}}},
        "nothing": {},
        "no text": {"_target_": ["lottery.models.mlp.mlp"]},
    }


@pytest.mark.parametrize("attack", attacks(Path("hub")))
def test_an_export_runs_no_code_that_is_not_lotterys(attack: str, hub: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "export", attacks(hub)[attack])
    with pytest.raises(LotteryError, match=r"network\.json: model\..*trust=True"):
        load_shrunk(folder)
    assert not (tmp_path / "attacked").exists()


def test_a_run_folder_runs_no_code_that_is_not_lotterys(run: Path, hub: Path, tmp_path: Path) -> None:
    for change in (
        lambda values: values.update(model=attacks(hub)["hub"]),
        lambda values: values["data"].update(_target_="torch.hub.load"),
    ):
        before = (run / "config.yaml").read_text()
        changed(run, change)
        outcome = call("export", str(run), "--round", "1")
        assert (outcome.status, outcome.out) == (1, "")
        assert re.search(r"config\.yaml: (model|data)\._target_: got 'torch\.hub\.load'.*--trust", outcome.line)
        assert not (tmp_path / "attacked").exists()
        (run / "config.yaml").write_text(before)


def test_code_that_is_trusted_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    source = "from torch import nn\ndef network(*, shape, classes):\n    return nn.Linear(shape[-1], classes)\n"
    (tmp_path / "factory_of_mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    state = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    folder = exported(tmp_path / "export", {"_target_": "factory_of_mine.network"}, state)
    with pytest.raises(LotteryError, match="code that is not lottery's"):
        load_shrunk(folder)
    assert load_shrunk(folder, trust=True)(torch.ones(1, 4)).tolist() == [[4.0] * 3]


def test_code_that_this_user_ran_is_known_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the digests of its files, which are read without importing them; a library's functions are nobody's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(tmp_path)
    mine = tmp_path / "mine_that_ran.py"
    body = "return nn.Sequential(nn.Flatten(), nn.Linear(40, classes))"
    mine.write_text(f"from torch import nn\ndef network(*, shape, classes):\n    {body}\n")
    assert not was_run("mine_that_ran.network")
    model = ("~model", "+model._target_=mine_that_ran.network")
    assert call(*(each for each in QUICK if not each.startswith("model.")), *model, "method.rounds=0").status == 0
    del sys.modules["mine_that_ran"]
    assert was_run("mine_that_ran.network")
    assert not was_run("mine_that_ran.nn.Linear")
    assert not was_run("mine_that_ran.other")
    assert not was_run("torch.hub.load")
    assert "mine_that_ran" not in sys.modules
    mine.write_text(mine.read_text() + "# edited\n")
    assert not was_run("mine_that_ran.network")


def test_every_network_and_data_set_of_the_project_may_be_read() -> None:
    for group, known in (("model", FACTORIES), ("data", SOURCES)):
        texts = [path.read_text(encoding="utf-8") for path in (ROOT / "conf").rglob("*.yaml")]
        pattern = rf"_target_: (lottery\.{group}s?\.\S+)"
        assert {target for text in texts for target in re.findall(pattern, text)} <= known
    assert all(target.startswith("lottery.") for target in FACTORIES | SOURCES)


# -- secrets ----------------------------------------------------------------------------------------------------------

READERS: dict[str, tuple[tuple[str, ...], int]] = {
    "report": (("report", "RUN", "--static"), 1),
    "compare": (("compare", "RUN", "RUN2"), 1),
    "export": (("export", "RUN", "--round", "1"), 1),
    "sync": (("sync", "RUN", "--dry-run"), 1),
    "again": (("--config", "RUN/config.yaml"), 2),
    "store": (("store", "ls", "--runs", "RUN"), 1),
    "status": (("status",), 0),  # does not read configurations
    "list": (("store", "ls"), 0),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("key", ["name", "data.name"])
def test_no_reader_resolves_an_interpolation(reader: str, key: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    shutil.copytree(run, run.with_name("0123456789ab"))
    section, _, name = key.rpartition(".")
    changed(run, lambda values: (values[section] if section else values).update({name: "${oc.env:MY_SECRET}"}))
    args, status = READERS[reader]
    named = {"RUN": str(run), "RUN2": str(run.with_name("0123456789ab"))}
    outcome = call(*(re.sub(r"RUN2?", lambda found: named[found[0]], arg) for arg in args))
    assert outcome.status == status, outcome
    if status:
        assert f"config.yaml: {key}: got '${{oc.env:MY_SECRET}}'" in outcome.line
    assert SECRET not in outcome.out + outcome.err
    assert not [name for name, data in listing(Path.cwd()).items() if data and SECRET.encode() in data]


def test_load_runs_resolves_no_interpolation(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    changed(run, lambda values: values["data"].update(name="${oc.env:MY_SECRET}"))
    with pytest.raises(LotteryError, match=r"config\.yaml: data\.name: got '\$\{oc\.env"):
        load_runs(run)


def test_nested_aliases_are_refused_at_once(run: Path) -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    path = run / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "a0: &a0 [x]\n" + levels, encoding="utf-8")
    began = perf_counter()
    for args in (("report", str(run)), ("--config", str(path))):
        outcome = call(*args)
        assert outcome.status in (1, 2)
        assert "config.yaml: got more than 100,000 values, aliases written out" in outcome.line
    assert perf_counter() - began < 10


# -- the terminal -----------------------------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b"


def test_no_text_of_a_file_reaches_the_terminal_or_a_page_raw(run: Path) -> None:
    """Names, causes and labels; the key is that of another study, so that `--config` has something to say, too."""
    changed(run, lambda values: (values.update(name=f"a{ESCAPE}"), values["data"].update(name=f"b{ESCAPE}")))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "failed", "cause": f"c{ESCAPE}\nd"}))
    shutil.copytree(run, run.with_name("0123456789ab"))
    rows = (run / "rounds.jsonl").read_text().replace("output.weight", json.dumps(f"e{ESCAPE}")[1:-1])
    (run / "rounds.jsonl").write_text(rows)
    sweep = Path("runs/.sweeps/2026-01-01_00-00-00")
    sweep.mkdir(parents=True)
    job = {"label": f"f{ESCAPE}", "overrides": [ESCAPE], "folder": f"study/{run.name}", "log": ESCAPE}
    facts = {"executor": f"g{ESCAPE}", "command": [f"h{ESCAPE}"], "jobs": [job], "name": sweep.name}
    (sweep / "sweep.json").write_text(json.dumps(facts))
    for args in (
        ("status",),
        ("status", "latest"),
        ("compare", str(run), str(run.with_name("0123456789ab"))),
        ("store", "ls"),
        ("report", str(run), "--static"),
        ("sync", str(run), "--dry-run"),
        ("--config", str(run / "config.yaml")),
        ("status", "--runs", f"x{ESCAPE}"),
    ):
        outcome = call(*args)
        assert not CONTROLS.search(outcome.out + outcome.err), (args, outcome)
        assert all(line.startswith("lottery: ") for line in outcome.err.splitlines())
    page = Path("report.html").read_text(encoding="utf-8")
    assert not CONTROLS.search(page)
    assert r"b\x1b]0;owned\x07" in page
