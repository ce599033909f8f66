"""Stores as real studies leave them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from store_house import SEEDS, House
from training_tools import draw_nothing


@pytest.fixture(autouse=True)
def _undrawn(undrawn: None) -> None:
    """No test here looks at figures."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders and the store of a finished study for each of the seeds. Not to be changed."""
    house = House(tmp_path_factory.mktemp("finished") / "runs")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        for seed in SEEDS:
            house.study(f"seed={seed}").run()
    return house.runs


@pytest.fixture
def house(finished: Path, tmp_path: Path) -> House:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "runs")
    for config in (tmp_path / "runs").glob("*/*/config.yaml"):
        config.write_text(config.read_text().replace(str(finished), str(tmp_path / "runs")))
    return House(tmp_path / "runs")
