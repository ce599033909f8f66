"""`export --weights`: mask and weights of a ticket for any torch module, which the written README loads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_export_command import COMMON, exported
from torch import Tensor, nn
from training_tools import assert_same_bits, draw_nothing

from lottery.compose import composed
from lottery.record.run import Run
from lottery.state import snapshot
from lottery.study import Study

OPTIONS = ["method.rounds=1", "model=mlp", "model.hidden=[8]", "controls.reinit=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        study = Study(composed([*COMMON, *OPTIONS, f"paths.runs={tmp_path_factory.mktemp('weights')}"]))
        study.run()
        yield Run(study.folder.path)


def code(folder: Path) -> list[str]:
    """The Python blocks of an export's README."""
    return re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def read(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("weights", ["start", "end", "both"])
def test_the_readme_loads_them(
    weights: str, form: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five lines, run as they are written in their folder; then a step under the mask."""
    suffix = {"safetensors": "safetensors", "torch": "pt"}[form]
    given = ["--weights", weights, *(["--format", form] if form == "torch" else [])]
    outcome = exported(run.path, "--round", 1, *given, "--out", tmp_path / "out")
    assert (outcome.status, outcome.err) == (0, "")
    points = ["start", "end"] if weights == "both" else [weights]
    expected = {f"{name}.{suffix}" for name in ["mask", *points]} | {"README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert all(name in outcome.out for name in expected)
    for point in points:
        assert_same_bits(read(tmp_path / "out" / f"{point}.{suffix}"), snapshot(run.network(1, at=point)))
    load, train = code(tmp_path / "out")
    assert len([line for line in load.splitlines() if line]) == 5
    defined: dict[str, object] = {}
    monkeypatch.chdir(tmp_path / "out")
    exec(load, defined)
    network, mask = defined["network"], defined["mask"]
    assert isinstance(network, nn.Module)
    assert_same_bits(snapshot(network), snapshot(run.network(1, at=points[0])))
    assert_same_bits(mask, dict(run.mask(1)))  # type: ignore[arg-type]
    exec(train, defined)
    before = network.fc1.weight.detach().clone()
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    defined["optimizer"].step()  # type: ignore[attr-defined]
    changed = network.fc1.weight != before
    assert changed.any()
    assert not network.fc1.weight[~run.mask(1)["fc1.weight"]].any()


def test_the_readme_says_what_it_is(run: Run) -> None:
    outcome = exported(run.path, "--round", 1, "--control", "reinit", "--weights", "start")
    folder = run.path / "export" / "round_001.reinit-0.start"
    assert outcome.out == f"{folder / 'mask.safetensors'}, start.safetensors, README.md\n"
    text, mask = (folder / "README.md").read_text(), run.mask(1)
    assert text.startswith(
        f"# Round 1, control reinit 0, of {run.name}\n\n{mask.kept:,} of {mask.size:,} prunable weights"
    )
    assert mask.digest in text
    assert "end.safetensors" not in text


def test_a_layer_ticket_says_which_units_are_gone(
    tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = ["method=layers", "layer_criterion=l1", "method.remove=[2]", "model=resnet20", "model.depth=14"]
    study = Study(composed([*COMMON, *layers, "model.width=4", f"paths.runs={tmp_path}"]))
    study.run()
    assert exported(study.folder.path, "--round", 1, "--weights", "end", "--out", tmp_path / "out").status == 0
    load, _ = code(tmp_path / "out")
    for unit in Run(study.folder.path).rows[1]["removed_units"]:
        assert unit in (tmp_path / "out" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "out")
    defined: dict[str, object] = {}
    exec(load, defined)
    assert_same_bits(snapshot(defined["network"]), snapshot(Run(study.folder.path).network(1)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--format", "torch"], "--format: is of mask and weights, it goes with --weights start, end or both"),
        (["--weights", "start", "--dense"], "--dense: is of a smaller network, it does not go with --weights"),
        (["--weights", "middle"], "argument --weights: invalid choice: 'middle'"),
        (["--weights", "end", "--out", "{run}/config.yaml"], "expected a folder"),
    ],
)
def test_bad_input_is_one_line(options: list[str], expected: str, run: Run) -> None:
    outcome = exported(run.path, "--round", 1, *(option.replace("{run}", str(run.path)) for option in options))
    assert outcome.status == 2
    assert expected in outcome.line
