"""Runs a page of the documentation from top to bottom, in the current folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import pytest
from command_line_tools import Outcome, call
from page_tools import Block, Command, blocks, commands

RunCommand = Callable[[Command], Outcome | None]

# A study of the first command's kind, in a second instead of half a minute.
SHORT = {
    "tracker": "none", "model.hidden": "[20,20]", "train.steps": "100it", "method.rounds": "2", "data.limit": "1000",
}  # fmt: skip
SHORTER = {
    "method.rounds=10": "method.rounds=3", "method.rounds=4": "method.rounds=1", "seed=0,1,2": "seed=0,1",
    "rewind.to=0it,50it,200it": "rewind.to=20it",
}  # fmt: skip
# What needs a scheduler or downloads: tests/launch and tests/papers run these.
ELSEWHERE = ("submit", "cancel", "doctor", "paper", "status latest", "+exp=lth_lenet")


@contextmanager
def in_folder(folder: Path) -> Iterator[Path]:
    """The current folder, and on Python's path, as with `python -m`; modules from it are forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("MPLBACKEND", "agg")
        patch.delenv("LOTTERY_DATA", raising=False)
        yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def as_written(command: Command) -> Outcome | None:
    return call(*command.words)


def shortened(command: Command) -> Outcome | None:
    """A study in its short version, other commands as they are; None for what is tested elsewhere."""
    if any(" ".join(command.words).startswith(words) for words in ELSEWHERE):
        return None
    words = [match for word in command.words for match in sorted(glob(word)) or [word]]  # as a shell does
    if any(word.startswith("+exp=") for word in words):
        words = [SHORTER.get(word, word) for word in words]
        given = {word.partition("=")[0] for word in words}
        words += [f"{key}={value}" for key, value in SHORT.items() if key not in given]
    return call(*words)


def run(page: Path, run_command: RunCommand = as_written) -> int:
    """Write the files, run the commands and the code, in the order of the page; how many commands were run.

    A block of text below a command that is wrong is what it says.
    """
    defined: dict[str, object] = {"__name__": page.stem}
    count, said = 0, ""
    for block in blocks(page):
        if block.file:
            write(block)
        elif block.language == "bash":
            for command in commands(block.text):
                outcome = run_command(command)
                if outcome is not None:
                    where = f"{page}:{block.line}: {command}"
                    assert outcome.status == command.status, f"{where}\n{outcome.err}{outcome.out}"
                    count, said = count + 1, outcome.line if command.status == 2 else ""
        elif block.language == "python":
            # As many lines before it as on the page, so that a traceback names the page's own.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), defined)
        elif block.language == "text" and said:
            assert block.text.strip() == said
    return count


def write(block: Block) -> None:
    """A file of the page, below the current folder; if it is one of tests, they are run."""
    path = Path(block.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)
    if path.name.startswith("test_"):
        defined: dict[str, object] = {"__name__": path.stem}
        exec(compile(block.text, str(path), "exec"), defined)
        tests = [function for name, function in defined.items() if name.startswith("test_") and callable(function)]
        assert tests
        for test in tests:
            test()
