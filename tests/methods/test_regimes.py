"""The three-regime view: density against when the dense training stops (docs/methods/stability.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line_tools import call
from training_tools import SMALL

from lottery.compose import composed
from lottery.figures.regimes import regime
from lottery.methods.regimes import Regimes
from lottery.stages.lab import Lab
from lottery.study import Study


def test_what_was_trained_so_far_is_pruned_and_trained_anew(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    dense, *cells = Regimes(stops=["20it", "7it"], densities=[0.2, 0.6])(lab)
    assert [(cell.index, cell.rewound) for cell in cells] == [(1, 7), (2, 7), (3, 20), (4, 20)]
    for cell, density in zip(cells, (0.6, 0.2, 0.6, 0.2), strict=True):
        assert cell.mask.kept == round(density * cell.mask.size)
        assert cell.rewound is not None
        assert cell.ticket.state == dense.trained.at(cell.rewound)
        assert (cell.ticket.step, cell.ticket.steps) == (0, 30)
        state = cell.ticket.state.tensors()
        kept = torch.cat([state[name].abs()[bits] for name, bits in cell.mask.items()])
        gone = torch.cat([state[name].abs()[~bits] for name, bits in cell.mask.items()])
        assert kept.min() >= gone.max()


@pytest.mark.parametrize(
    ("barrier", "cka", "name"), [(0.05, 0.99, "I"), (0.02, 0.5, "I"), (0.01, 0.9, "II-A"), (0.01, 0.99, "II-B")]
)
def test_the_regimes_of_the_specification(barrier: float, cka: float, name: str) -> None:
    assert regime(barrier, cka) == name


@pytest.mark.slow
def test_a_study_draws_its_regimes(tmp_path: Path) -> None:
    small = [override for override in SMALL if not override.startswith(("method.", "probes="))]
    method = ["method=regimes", "method.stops=[7it,20it]", "method.densities=[0.5,0.2]"]
    probes = [
        "probes=[light,connectivity,alignment]",
        "probes.connectivity.points=3",
        "probes.alignment.between=copies",
    ]
    study = Study(composed([*small, *method, *probes, f"paths.runs={tmp_path}"]))
    rows = study.run()
    assert [row["step_rewind"] for row in rows] == [0, 7, 7, 20, 20]
    figures = {path.name for path in (study.folder.path / "figures").iterdir()}
    assert figures == {"regimes.png", "lmc.png", "mask_overlap.png", "layer_density.png"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.stops=[]"], "method.stops: got []"),
        (["method.stops=[500it]"], "method.stops: got '500it', expected a step of the dense training"),
        (["method.densities=[1.5]"], "method.densities: got [1.5]"),
    ],
)
def test_a_wrong_option_is_one_line(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("method=regimes", "train.steps=20it", "tracker=none", *overrides)
    assert outcome.status == 2, outcome
    assert message in outcome.line
    assert not any(tmp_path.iterdir())
