"""`export`: from a run folder to a smaller network, an ONNX file, and back (docs/methods/layers.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from command_line_tools import Outcome, listing
from torch import nn
from training_tools import SMALL, draw_nothing

from lottery.compose import composed
from lottery.cost.counts import multiply_adds
from lottery.errors import LotteryError, reported
from lottery.export import command, write
from lottery.export.command import export
from lottery.export.write import load_shrunk, write_network
from lottery.models.mlp import mlp
from lottery.models.resnet import resnet
from lottery.record.run import Run
from lottery.state import load_state
from lottery.study import Study
from lottery.ticket import Mask

pytest.importorskip("torch_pruning")
pytest.importorskip("onnxscript")

COMMON = [option for option in SMALL if not option.startswith(("method.", "model="))]
RESNET = ["model=resnet20", "model.depth=8", "model.width=4"]
BIP = ["method=bip", "method.steps=10it", "method.pattern=filter", "method.density=0.5", "prunable.exclude=[fc]"]


def exported(*args: object) -> Outcome:
    """The command, as the command line calls it."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = reported(lambda: export([str(arg) for arg in args]))
    return Outcome(status, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True, scope="module")
def _undrawn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        yield


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a search by filters."""
    study = Study(composed([*COMMON, *RESNET, *BIP, f"paths.runs={tmp_path_factory.mktemp('filtered')}"]))
    study.run()
    return study.folder.path


@pytest.fixture(scope="module")
def small(filtered: Path) -> tuple[Outcome, Path]:
    """What its round 1 was exported to."""
    outcome = exported(filtered, "--round", 1)
    return outcome, filtered / "export" / "round_001"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an unstructured study with controls."""
    options = ["method.rounds=1", "model=mlp", "model.hidden=[8]", "controls.reinit=1", "controls.shuffle=2"]
    study = Study(composed([*COMMON, *options, f"paths.runs={tmp_path_factory.mktemp('pruned')}"]))
    study.run()
    return study.folder.path


def stored(run: Path, stem: str) -> dict[str, torch.Tensor]:
    """The trained state of a round, read here."""
    key = json.loads((run / "rounds" / f"{stem}.json").read_text())["stages"]["train"]
    return load_state(run.parent.parent / ".store" / "train" / key / "state.safetensors")


def test_from_a_run_folder_to_a_smaller_network_and_back(filtered: Path, small: tuple[Outcome, Path]) -> None:
    outcome, folder = small
    assert (outcome.status, outcome.err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == ["network.json", "network.onnx", "network.safetensors"]
    facts = json.loads((folder / "network.json").read_text())
    masked = resnet(shape=(1, 8, 8), classes=10, depth=8, width=4).eval()
    masked.load_state_dict(stored(filtered, "round_001"))
    network = load_shrunk(folder)
    batch = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(batch), masked(batch), rtol=0, atol=1e-5)
    assert not network.training
    before, after = (sum(p.numel() for p in each.parameters()) for each in (masked, network))
    assert facts["parameters"] == [before, after]
    assert after < 0.7 * before
    assert f"parameters: {before:,} -> {after:,} ({after / before:.1%})" in outcome.out
    mask = Mask.load(filtered / "masks" / "round_001.safetensors")
    assert facts["density"] == mask.density
    assert facts["digests"]["mask"] == mask.digest
    for name, layer in facts["layers"].items():
        if "multiply_adds" in layer and layer["kind"] == "Conv2d":
            kept = int(mask[f"{name}.weight"].flatten(1).any(1).sum())
            assert layer["outputs"][1] - layer["zero_filters"] == kept, name
    assert facts["difference"]["shrunk"] <= 1e-5


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a study that removes two of six units."""
    layers = ["method=layers", "layer_criterion=l1", "method.remove=[2]", "model=resnet20", "model.depth=14"]
    study = Study(composed([*COMMON, *layers, "model.width=4", f"paths.runs={tmp_path_factory.mktemp('shallow')}"]))
    study.run()
    return study.folder.path


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--dense"]], ids=["shrunk", "dense"])
def test_a_layer_ticket_is_written_as_the_shallow_network(shallow: Path, options: list[str]) -> None:
    row = Run(shallow).rows[1]
    outcome = exported(shallow, "--round", 1, *options)
    assert (outcome.status, outcome.err) == (0, "")
    folder = shallow / "export" / f"round_001{'.dense' if options else ''}"
    facts = json.loads((folder / "network.json").read_text())
    assert facts["removed_units"] == row["removed_units"]
    assert len(row["removed_units"]) == 2
    dense = resnet(shape=(1, 8, 8), classes=10, depth=14, width=4).eval()
    dense.load_state_dict(stored(shallow, "round_001"))
    network = load_shrunk(folder)
    batch = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(batch), dense(batch), rtol=0, atol=1e-5)
    gone = {name for name in dense.state_dict() if name.startswith(tuple(f"{unit}." for unit in row["removed_units"]))}
    assert set(network.state_dict()) == set(dense.state_dict()) - gone
    parameters = {name: p.numel() for name, p in dense.named_parameters()}
    after = sum(p.numel() for p in network.parameters())
    assert facts["parameters"] == [sum(parameters.values()), after]
    assert after <= sum(count for name, count in parameters.items() if name not in gone)


def test_the_onnx_file_gives_the_same_logits_for_any_number_of_images(small: tuple[Outcome, Path]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    _, folder = small
    session = runtime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    network = load_shrunk(folder)
    for count in (1, 7):
        batch = torch.randn(count, 1, 8, 8)
        [found] = session.run(None, {"images": batch.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), network(batch), rtol=0, atol=1e-5)
    assert not list(folder.glob("*.data")), "its weights are in the one file"
    assert b".py" not in (folder / "network.onnx").read_bytes(), "it tells the paths of whose code made it"


@pytest.mark.slow
def test_a_control_with_all_its_channels(pruned: Path, tmp_path: Path) -> None:
    """An unstructured mask, kept dense: the very state of the store."""
    outcome = exported(pruned, "--round", 1, "--control", "shuffle", "--copy", 1, "--dense", "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    facts = json.loads((tmp_path / "out" / "network.json").read_text())
    assert (facts["control"], facts["copy"], facts["dense"]) == ("shuffle", 1, True)
    assert facts["parameters"][0] == facts["parameters"][1] == 64 * 8 + 8 + 8 * 10 + 10
    assert facts["multiply_adds"] == [64 * 8 + 8 * 10] * 2
    found, expected = load_shrunk(tmp_path / "out").state_dict(), stored(pruned, "round_001.shuffle-1")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    again = exported(pruned, "--round", 1, "--control", "shuffle", "--copy", 0, "--dense", "--out", tmp_path / "out")
    assert again.status == 0, "an export replaces an earlier one"
    assert json.loads((tmp_path / "out" / "network.json").read_text())["copy"] == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_reinit_control_has_its_tickets_mask(pruned: Path) -> None:
    found = Run(pruned)
    assert found.mask(1, "reinit") == Mask.load(pruned / "masks" / "round_001.safetensors")
    expected = stored(pruned, "round_001.reinit-0")
    assert all(torch.equal(value, expected[name]) for name, value in found.network(1, "reinit").state_dict().items())


def test_a_moved_run_folder_finds_the_store_beside_it(pruned: Path, tmp_path: Path) -> None:
    for folder in (pruned.parent.name, ".store"):
        shutil.copytree(pruned.parent.parent / folder, tmp_path / folder)
    run = tmp_path / pruned.parent.name / pruned.name
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(pruned.parent.parent), "/nowhere"))
    expected = stored(pruned, "round_001")
    found = Run(run).network(1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_multiply_adds_of_a_network_worked_out_by_hand() -> None:
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, groups=4), nn.Flatten(), nn.Linear(36, 5)]
    found = multiply_adds(nn.Sequential(*layers), torch.zeros(2, 3, 8, 8))
    assert found == {"0": 8 * 8 * 4 * 3 * 9, "1": 3 * 3 * 4 * 9, "3": 36 * 5}
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2))
    assert multiply_adds(transposed, torch.zeros(1, 3, 8, 8)) == {"0": 8 * 8 * 3 * 4 * 4}


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shrunk", "onnx"])
def test_a_network_that_computes_something_else_is_not_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(network: nn.Module, *_: object) -> nn.Module:
        other = mlp(shape=(1, 8, 8), classes=10, hidden=[3])
        other.load_state_dict({key: value * 1.01 for key, value in network.state_dict().items()})
        return other.eval()

    if name == "shrunk":
        monkeypatch.setattr(write, "shrink", broken)
    else:
        pytest.importorskip("onnxruntime")
        original = write.write_onnx
        monkeypatch.setattr(write, "write_onnx", lambda net, *rest: original(broken(net), *rest))
    network = mlp(shape=(1, 8, 8), classes=10, hidden=[3])
    with pytest.raises(LotteryError, match=f"the {name} network's logits differ by .* nothing was written"):
        write_network(network, torch.randn(4, 1, 8, 8), tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


def test_logits_that_are_not_numbers_are_not_equal(tmp_path: Path) -> None:
    network = mlp(shape=(1, 8, 8), classes=10, hidden=[3])
    with torch.no_grad():
        network.output.bias[0] = float("nan")
    with pytest.raises(LotteryError, match="the shrunk network's logits differ by nan"):
        write_network(network, torch.randn(4, 1, 8, 8), tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        (["--round", "5"], 1, "has no round 5; it has rounds 0, 1; controls 1 reinit 0, 1 shuffle 0, 1 shuffle 1"),
        (["--round", "1", "--control", "random"], 1, "has no round 1, control random 0; it has rounds 0, 1"),
        (["--round", "one"], 2, "export: argument --round: invalid int value: 'one'; --help says more"),
        ([], 2, "export: the following arguments are required: --round; --help says more"),
        (["--round", "1", "--copy", "1"], 2, "--copy: says which copy of a control, it goes with --control KIND"),
        (["--round", "1", "--out", "{run}/config.yaml"], 2, "expected a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(pruned: Path, options: list[str], status: int, expected: str) -> None:
    before = listing(pruned)
    outcome = exported(pruned, *(option.replace("{run}", str(pruned)) for option in options))
    assert outcome.status == status
    assert expected in outcome.line
    assert listing(pruned) == before


def test_no_run_folder(tmp_path: Path) -> None:
    assert "no such folder, expected a run folder" in exported(tmp_path / "nothing", "--round", 1).line


def test_an_unfinished_study_says_so(pruned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pruned, run, ignore=shutil.ignore_patterns("manifest.json"))
    table = run / "rounds.jsonl"
    table.write_text(table.read_text().splitlines(keepends=True)[0])
    status = run / "status.json"
    status.write_text(status.read_text().replace('"done"', '"interrupted"'))
    outcome = exported(run, "--round", 1)
    assert outcome.line.endswith("has no round 1; it has rounds 0; the study is not finished (interrupted)")


def test_a_store_without_the_weights_names_the_command_that_makes_them(pruned: Path, tmp_path: Path) -> None:
    run = tmp_path / "study" / pruned.name
    shutil.copytree(pruned, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(pruned.parent.parent), "/nowhere"))
    line = exported(run, "--round", 1).line
    assert "the store /nowhere/.store does not have the trained weights" in line
    assert f"`python -m lottery --config {config}` trains it again" in line
    assert not (run / "export").exists()


@pytest.mark.parametrize("which", ["state", "mask"])
def test_what_is_not_what_the_round_names_is_refused(which: str, pruned: Path, tmp_path: Path) -> None:
    for folder in (pruned.parent.name, ".store"):
        shutil.copytree(pruned.parent.parent / folder, tmp_path / folder)
    run = tmp_path / pruned.parent.name / pruned.name
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(pruned.parent.parent), str(tmp_path)))
    if which == "mask":
        shutil.copy(run / "masks" / "round_000.safetensors", run / "masks" / "round_001.safetensors")
    else:
        keys = [json.loads((run / "rounds" / f"round_00{n}.json").read_text())["stages"]["train"] for n in (0, 1)]
        dense, own = (tmp_path / ".store" / "train" / key / "state.safetensors" for key in keys)
        shutil.copy(dense, own)
    outcome = exported(run, "--round", 1)
    assert outcome.status == 1
    assert ("not the mask that rounds.jsonl names" if which == "mask" else "changed or damaged") in outcome.line


def test_missing_packages_are_named_with_the_way_to_install_them(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name in ("torch_pruning", "onnx") else name)
    expected = "export: torch-pruning, onnx are not installed: pip install -e '.[export]'"
    assert exported(pruned, "--round", 1).line == f"lottery: {expected}"
    assert (
        exported(pruned, "--round", 1, "--dense").line
        == f"lottery: {expected.replace('torch-pruning, onnx are', 'onnx is')}"
    )


def test_a_damaged_export_is_not_loaded(small: tuple[Outcome, Path], tmp_path: Path) -> None:
    with pytest.raises(LotteryError, match="expected a folder that `python -m lottery export` wrote"):
        load_shrunk(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(small[1], folder)
    facts = json.loads((folder / "network.json").read_text())
    facts["model"]["width"] = 2
    (folder / "network.json").write_text(json.dumps(facts))
    with pytest.raises(LotteryError, match=r"not a network that lottery\.models\.resnet\.resnet builds now"):
        load_shrunk(folder)
    (folder / "network.json").write_text(json.dumps({**facts, "format": "other"}))
    with pytest.raises(LotteryError, match="its format is 'other', expected 'lottery-network/1'"):
        load_shrunk(folder)
    (folder / "network.json").write_text("{")
    with pytest.raises(LotteryError, match=r"not JSON .*; export it again"):
        load_shrunk(folder)
    shutil.copy(small[1] / "network.json", folder)
    weights = bytearray((folder / "network.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "network.safetensors").write_bytes(weights)
    with pytest.raises(LotteryError, match=r"not the network that network\.json names"):
        load_shrunk(folder)
