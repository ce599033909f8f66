"""The examples in docstrings of the public API run, beside the run folder of a small study, and print what they say."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line_tools import QUICK, call
from page_runner import in_folder

import lottery
from lottery import lightning, masked_optimizer, runner, ticket
from lottery.record import run, table
from lottery.training.lightning import pl

SMALL = [*QUICK, "train.steps=40it", "rewind.to=10it"]
MODULES = [runner, run, table, masked_optimizer, lightning, ticket]
EXAMPLES = [
    example
    for module in MODULES
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if example.examples
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with in_folder(tmp_path_factory.mktemp("docstrings")) as folder:
        assert call("+exp=imp_rewind", *SMALL).status == 0
        yield folder


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.name)
def test_docstring(example: doctest.DocTest, folder: Path) -> None:
    example.globs |= {"lottery": lottery, "torch": torch, "pl": pl, "small": SMALL}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


def test_the_public_names_have_examples() -> None:
    named = {example.name.rpartition(".")[2] for example in EXAMPLES}
    assert {"run", "load_run", "load_runs", "mask", "ticket", "network", "MaskedOptimizer"} <= named
    assert "TicketCallback" in named
