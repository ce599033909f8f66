"""A searched method of the user's own: what its stage key holds; and no method's file imports torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import lottery.methods
from lottery.methods.bip import BiP
from lottery.methods.edge_popup import EdgePopup
from lottery.stages.lab import Lab
from lottery.training.phases import Phase, Tuning
from lottery.training.search import ScoreSearch
from lottery.training.search_options import Search

FILES = sorted(path.stem for path in Path(lottery.methods.__path__[0]).glob("[!_]*.py"))


@dataclass
class Own:
    """A method that is not lottery's."""

    density: float = 0.2
    heat: float = 0.1
    scores: Phase = field(default_factory=Phase)
    tune: Tuning = field(default_factory=Tuning)

    def update(self, run: ScoreSearch, step: int) -> Any:
        raise NotImplementedError


@dataclass
class Warm(BiP):
    """A method of lottery's with one more option."""

    heat: float = 0.1


@dataclass
class Renamed(BiP):
    """A method of lottery's with none."""


def search_by(method: Any, lab: Lab) -> Search:
    known = BiP(steps="10it").search(lab)
    return replace(known, kind="own", method=method)


@pytest.mark.parametrize("changed", [Own(heat=0.2), Own(density=0.3), Own(scores=Phase(lr=0.3))])
def test_every_option_of_an_own_method_is_in_its_key(make_lab: Callable[..., Lab], changed: Own) -> None:
    lab = make_lab()
    assert search_by(changed, lab).inputs() != search_by(Own(), lab).inputs()


def test_the_tuning_is_not_as_it_follows_the_search(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    assert search_by(Own(tune=Tuning(steps="5it")), lab).inputs() == search_by(Own(), lab).inputs()


def test_what_is_added_to_a_method_of_lotterys_is_in_its_key_and_nothing_else(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    plain = BiP(steps="10it").search(lab).inputs()
    assert Renamed(steps="10it").search(lab).inputs() == plain
    assert Warm(steps="10it").search(lab).inputs() == plain | {"options": {"heat": 0.1}}


@pytest.mark.parametrize("method", [BiP(), BiP(variant="repo"), EdgePopup()], ids=["bip", "repo", "edge_popup"])
def test_a_method_of_lotterys_adds_no_entry(make_lab: Callable[..., Lab], method: Any) -> None:
    """Keys of searches that were done before own methods could search."""
    assert list(method.search(make_lab()).inputs()) == [
        "kind", "optim", "lr", "initial", "seed", "density", "pattern", "counts", "restriction", "inner",
        "inverse_gamma", "snapshots",
    ]  # fmt: skip


def test_no_method_imports_torch() -> None:
    """Options are checked before torch is imported."""
    imports = "; ".join(f"import lottery.methods.{name}" for name in FILES)
    assert {"bip", "jackpot", "edge_popup", "imp"} <= set(FILES)
    assert (
        subprocess.run([sys.executable, "-c", f"import sys; {imports}; sys.exit('torch' in sys.modules)"]).returncode
        == 0
    )
