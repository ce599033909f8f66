"""README: short, and every command and line of Python in it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line_tools import call
from page_runner import in_folder, run, shortened
from page_tools import ROOT, Command, blocks

README = ROOT / "README.md"
# Studies of other methods than IMP, and what makes them short.
OTHER = {"+exp=bip": ["method.steps=20it"], "+exp=synflow": ["method.steps=5", "probes.connectivity.points=3"]}


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 1200


def test_the_method_is_the_one_that_runs() -> None:
    (block,) = [block.text for block in blocks(README) if block.language == "py"]
    lines = [line.strip() for line in (ROOT / "lottery/methods/imp.py").read_text(encoding="utf-8").splitlines()]
    assert [line for line in map(str.strip, block.splitlines()) if line not in lines] == []


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_runs(tmp_path: Path) -> None:
    """Studies in a short version. The command for SLURM runs on the test cluster: tests/launch."""

    def run_command(command: Command) -> object:
        if "hydra/launcher=slurm" in command.words or command.words[0] == "status":
            return None
        if command.words[0] == "paper":
            return call(*command.words)
        if other := OTHER.get(command.words[0]):
            return call(*command.words, "tracker=none", "train.steps=100it", "data.limit=1000", *other)
        return shortened(command)

    with in_folder(tmp_path):
        assert run(README, run_command) >= 6  # type: ignore[arg-type]
    assert (tmp_path / "report.html").exists()
    assert list((tmp_path / "runs/papers/lth/smoke/figures").glob("*.png"))
