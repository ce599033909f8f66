"""What methods say of themselves to those who draw and tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lottery.figures.study import INSTEAD
from lottery.figures.style import group, title
from lottery.methods.shows import Shows, shows

METHODS = sorted((Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"))


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_every_method_is_told_without_a_place_left_open(path: Path) -> None:
    """Its words have names for all that stands in braces, and its figure is one that there is."""
    method = yaml.safe_load(path.read_text())
    said = shows(method["_target_"])
    config = {"model": {"_target_": "a.mlp"}, "data": {"name": "mnist"}, "method": method}
    assert "{" not in title(config) + group(config)
    assert said.needs in ("all", "dense", "none")
    assert said.ladder or said.figure in INSTEAD


@pytest.mark.parametrize(
    "target", ["own.Method", "lottery.methods.imp.Gone", "lottery.methods.gone.Gone", "os.path", ""]
)
def test_code_that_is_not_lotterys_is_not_asked(target: str) -> None:
    assert shows(target) == Shows()
    assert group({"method": {"_target_": target}}) == target.rpartition(".")[2]


def test_asking_needs_no_torch() -> None:
    targets = [yaml.safe_load(path.read_text())["_target_"] for path in METHODS]
    code = (
        "import sys; from lottery.methods.shows import shows\n"
        f"[shows(target) for target in {targets}]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
