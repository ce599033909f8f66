"""The pages on how to add something are run from top to bottom, as they are written, each in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_runner import in_folder, run
from page_tools import DOCS, blocks

PAGES = sorted((DOCS / "howto").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_how_to(page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    assert any(block.file.endswith(".py") for block in found)
    assert any(block.file.endswith(".yaml") for block in found)
    assert any("assert" in block.text for block in found if block.language == "python")
    with in_folder(tmp_path):
        assert run(page) >= 2
