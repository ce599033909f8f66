"""Which files count as the user's own code: what a `_target_` names, and every module of theirs that it may import."""

from __future__ import annotations

import hashlib
import importlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lottery.own_code import code_inputs, own_code

Write = Callable[[Mapping[str, str]], Path]
NODE = {"_target_": "ours.nets.net"}
OURS = {"ours/__init__.py": "", "ours/nets.py": "def net():\n    return 1\n"}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files of a user's project, which is on Python's path; they are read anew, as a new process would."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def fresh() -> None:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
                del sys.modules[name]
        importlib.invalidate_caches()

    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        fresh()
        return tmp_path

    yield write
    fresh()


def test_lotterys_own_parts_are_no_own_code() -> None:
    assert own_code({"_target_": "lottery.models.mlp.mlp", "hidden": [3]}) == {}
    assert code_inputs([{"_target_": "lottery.pruning.criteria.magnitude"}]) == {}


def test_the_file_of_a_target_counts_by_its_bytes(write: Write) -> None:
    folder = write(OURS)
    digest = hashlib.sha256((folder / "ours/nets.py").read_bytes()).hexdigest()
    assert own_code(NODE)["ours.nets"] == digest
    assert set(own_code([{"nested": [NODE]}])) == {"ours", "ours.nets"}


IMPORTS = {  # how nets.py imports the module that is edited: the line, and where that module lies
    "absolute": ("import helper", "helper.py"),
    "from": ("from helper import width", "helper.py"),
    "dotted": ("import ours.deep.blocks", "ours/deep/blocks.py"),
    "module of a package": ("from ours.deep import blocks", "ours/deep/blocks.py"),
    "relative": ("from .deep import blocks", "ours/deep/blocks.py"),
    "relative name": ("from .blocks import width", "ours/blocks.py"),
    "relative module": ("from . import blocks", "ours/blocks.py"),
    "inside a function": ("def late():\n    from .blocks import width", "ours/blocks.py"),
    "in a branch": ("try:\n    import blocks_missing\nexcept ImportError:\n    import helper", "helper.py"),
    "by name": ("import importlib\nimportlib.import_module('helper')", "helper.py"),
    "by relative name": (
        "from importlib import import_module\nimport_module('.blocks', __package__)",
        "ours/blocks.py",
    ),
    "star": ("from ours.deep import *", "ours/deep/blocks.py"),
    "through a package": ("import other.part", "other/__init__.py"),
    "over two files": ("import middle", "helper.py"),
    "in a circle": ("import circle", "circle.py"),
    "namespace": ("import spread.deeper.part", "spread/deeper/part.py"),
}
AROUND = {
    "ours/deep/__init__.py": "__all__ = ['blocks']\n",
    "other/part.py": "",
    "middle.py": "from helper import width\n",
    "circle.py": "import ours.nets\n",
}


@pytest.mark.parametrize("how", IMPORTS)
def test_every_module_that_it_imports_counts(how: str, write: Write) -> None:
    line, edited = IMPORTS[how]
    nets = f"{line}\n\ndef net():\n    return 1\n"
    write({"helper.py": "width = 3\n", "ours/blocks.py": "width = 3\n"})
    write({**OURS, **AROUND, "unrelated.py": "", "ours/nets.py": nets, edited: "width = 3\n" + AROUND.get(edited, "")})
    before = own_code(NODE)
    write({"unrelated.py": "# another comment\n"})
    assert own_code(NODE) == before
    write({edited: "width = 4\n" + AROUND.get(edited, "")})
    after = own_code(NODE)
    [changed] = {name for name in before if before[name] != after[name]}
    assert changed == edited.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert set(before) == set(after)


def test_packages_around_a_module_and_the_module_that_defines_a_part_count(write: Write) -> None:
    lazy = (
        "def __getattr__(name):\n    from importlib import import_module\n    return import_module('hid' + 'den').net\n"
    )
    write({"ours/__init__.py": lazy, "hidden.py": "def net():\n    pass\n"})
    assert set(own_code({"_target_": "ours.net"})) == {"ours", "hidden"}


def test_what_is_installed_counts_only_where_a_target_names_its_package(write: Write, tmp_path: Path) -> None:
    installed = tmp_path / "lib" / "site-packages"
    write({"lib/site-packages/theirs/__init__.py": "", "lib/site-packages/theirs/deep.py": "def net():\n    pass\n"})
    sys.path.insert(0, str(installed))
    try:
        write({**OURS, "ours/nets.py": "import json, torch\nimport theirs.deep\nfrom theirs.deep import net\n"})
        assert set(own_code(NODE)) == {"ours", "ours.nets"}
        assert set(own_code({"_target_": "theirs.deep.net"})) == {"theirs", "theirs.deep"}
    finally:
        sys.path.remove(str(installed))


def test_nothing_is_imported_to_find_out(write: Write) -> None:
    write({**OURS, "ours/nets.py": "def net():\n    import bomb\n", "bomb.py": "raise SystemExit('imported')\n"})
    assert "bomb" in own_code(NODE)
    assert "bomb" not in sys.modules
    write({"bomb.py": "this is no Python\n"})
    assert "bomb" in own_code(NODE)


def test_a_module_counts_as_it_was_imported_until_it_is_reloaded(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """An edit that a running process does not see must not be kept under the key of the edited file."""
    folder = write(OURS)
    before = own_code(NODE)
    (folder / "ours/nets.py").write_text("def net():\n    return 22\n")
    with caplog.at_level(logging.WARNING, "lottery"):
        assert own_code(NODE) == own_code(NODE) == before
    assert caplog.messages == [
        "ours.nets was edited after it was imported: this process still runs it as it was; restart it"
    ]
    importlib.reload(sys.modules["ours.nets"])
    assert own_code(NODE) != before


SCRIPT = """
from lottery.own_code import own_code
def helper(): pass
class Net:
    def forward(self): pass
print(sorted(own_code({"_target_": "__main__.Net"}).items()))
"""


def test_a_script_counts_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    digest = hashlib.sha256((tmp_path / "script.py").read_bytes()).hexdigest()
    assert done.stdout.strip() == str([("__main__", digest)])


def test_what_is_typed_in_counts_by_its_cell_and_says_what_is_missing(tmp_path: Path) -> None:
    """As a notebook runs its cells: compiled from text that linecache knows."""
    cell = f"""
import linecache, sys
def run(text):
    linecache.cache["cell"] = (len(text), None, text.splitlines(keepends=True), "cell")
    exec(compile(text, "cell", "exec"), sys.modules["__main__"].__dict__)
text = {SCRIPT!r}
run(text); run(text); run(text.replace("pass", "return 2"))
"""
    done = subprocess.run([sys.executable, "-"], input=cell, capture_output=True, text=True, check=True, cwd=tmp_path)
    first, again, edited = done.stdout.splitlines()
    assert first == again != edited
    assert "__main__.Net is defined in no file" in done.stderr
