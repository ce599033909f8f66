"""The tutorial, and the pages whose code reads run folders, are run from top to bottom, with short trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line_tools import call
from page_runner import SHORT, in_folder, run, shortened
from page_tools import DOCS


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    with in_folder(tmp_path):
        assert run(DOCS / "tutorial.md", shortened) >= 12
    assert (tmp_path / "tickets.png").stat().st_size > 10_000
    assert (tmp_path / "compared" / "compare.csv").exists()
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_from_python(tmp_path: Path) -> None:
    """A stranger's tasks: the mask of another run, weights of round 3 in a plain network, a figure over three seeds, an
    offline run of W&B read back.
    """
    with in_folder(tmp_path):
        assert run(DOCS / "python.md", shortened) == 1
        [exported] = (tmp_path / "runs" / "imp_rewind").glob("*/export/round_003.both/README.md")
        with in_folder(exported.parent):
            run(exported)
    assert (tmp_path / "three_seeds.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run folders of the first command, of two seeds."""
    folder = tmp_path_factory.mktemp("two_seeds")
    with in_folder(folder):
        options = [f"{key}={value}" for key, value in SHORT.items()]
        assert call("-m", "+exp=imp_rewind", "seed=0,1", *options).status == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", ["contracts", "analysis"])
def test_code_that_reads_run_folders(page: str, two_seeds: Path) -> None:
    with in_folder(two_seeds):
        run(DOCS / f"{page}.md", shortened)
    if page == "analysis":
        assert {path.suffix for path in two_seeds.glob("accuracy_published.*")} == {".png", ".svg", ".pdf"}
        assert (two_seeds / "report.html").exists()
