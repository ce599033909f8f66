"""Imports go one way: no circle of files, and none from a line of the picture in ARCHITECTURE.md to a later line."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PICTURE = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Import:
    """One import of one module of the package by another."""

    file: Path
    line: int
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.importer} imports {self.imported}"


def modules_of(package: Path) -> dict[str, Path]:
    """The files of a package by their module names; an `__init__.py` has the name of its folder."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(package: Path) -> list[Import]:
    """Every import of the package by itself, wherever it stands in a file."""
    modules = modules_of(package)
    found = (
        Import(path.relative_to(package.parent), line, importer, name)
        for importer, path in modules.items()
        for line, name in names_in(path, importer, modules)
        if name.partition(".")[0] == package.name
    )
    return list(dict.fromkeys(found))  # several names of one module are one import


def names_in(path: Path, importer: str, modules: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The line and the module of each import of a file; `from package import module` imports the module."""
    inside = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) - node.level + 1] if node.level else []  # a dot is the file's own package
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = (f"{origin}.{alias.name}" for alias in node.names)
            yield from ((node.lineno, name if name in modules else origin) for name in names)


def circles(found: Iterable[Import]) -> list[set[str]]:
    """The sets of several modules each of which imports, by way of others, every one of the set."""
    arrows = defaultdict(set)
    for each in found:
        arrows[each.importer].add(each.imported)
    reached = {module: reachable(module, arrows) for module in list(arrows)}
    together = {
        frozenset(other for other in others if module in reached.get(other, ())) for module, others in reached.items()
    }
    return [set(circle) for circle in together if len(circle) > 1]


def reachable(module: str, arrows: dict[str, set[str]]) -> set[str]:
    """Every module that is imported by this one, or by one that it imports."""
    found: set[str] = set()
    left = [module]
    while left:
        for other in arrows.get(left.pop(), set()) - found:
            found.add(other)
            left.append(other)
    return found


def room(module: str) -> str:
    """The top-level file or package that a module is in; `__init__` for the package as a whole."""
    return module.split(".")[1] if "." in module else "__init__"


def levels_in(text: str) -> list[list[str]]:
    """The rooms of each line of the one picture in a text, ground first; two spaces end the names of a line."""
    (picture,) = PICTURE.findall(text)
    return [re.split(r"\s{2,}", line)[0].split() for line in picture.splitlines()]


def upward(found: Iterable[Import], levels: list[list[str]]) -> list[str]:
    """What is wrong with each import that goes to a later line."""
    level = {name: number for number, names in enumerate(levels, 1) for name in names}
    return [
        f"{each}, but {room(each.importer)} stands in line {level[room(each.importer)]} of the picture in "
        f"ARCHITECTURE.md and {room(each.imported)} in line {level[room(each.imported)]}, which comes later"
        for each in found
        if level[room(each.imported)] > level[room(each.importer)]
    ]


@pytest.fixture(scope="module")
def found() -> list[Import]:
    return imports_of(ROOT / "lottery")


@pytest.fixture(scope="module")
def levels() -> list[list[str]]:
    return levels_in((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


def test_every_room_stands_in_one_line_of_the_picture(levels: list[list[str]]) -> None:
    rooms = {room(module) for module in modules_of(ROOT / "lottery")}
    assert sorted(name for names in levels for name in names) == sorted(rooms)


def test_no_file_imports_itself_by_way_of_others(found: list[Import]) -> None:
    lines = []
    for circle in circles(found):
        lines.append("these files import each other in a circle:")
        lines += [f"  {each}" for each in found if {each.importer, each.imported} <= circle]
    assert not lines, "\n" + "\n".join(lines)


def test_no_import_goes_to_a_later_line(found: list[Import], levels: list[list[str]]) -> None:
    lines = upward(found, levels)
    assert not lines, "\n" + "\n".join(lines)


# -- the reader of imports itself -------------------------------------------------------------------------------------

FILES = {
    "house/__init__.py": "",
    "house/ground.py": "def late():\n    from house.roof import top\n",
    "house/roof/__init__.py": "from house import ground\n",
    "house/roof/top.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import tile\n",
    "house/roof/tile.py": "import os\nimport house.roof.top\nfrom ..ground import late\n",
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "house"


def test_lazy_relative_and_type_imports_are_seen(house: Path) -> None:
    assert {(each.importer, each.line, each.imported) for each in imports_of(house)} == {
        ("house.ground", 2, "house.roof.top"),
        ("house.roof", 1, "house.ground"),
        ("house.roof.top", 3, "house.roof.tile"),
        ("house.roof.tile", 2, "house.roof.top"),
        ("house.roof.tile", 3, "house.ground"),
    }


def test_a_circle_is_found(house: Path) -> None:
    """`house.roof` imports files of the circle, and none of them imports it."""
    assert circles(imports_of(house)) == [{"house.ground", "house.roof.top", "house.roof.tile"}]


def test_an_import_of_a_later_line_is_told_with_its_file_and_line(house: Path) -> None:
    levels = levels_in("```text\n__init__ ground   leaves\nroof  the rest\n```\n")
    (line,) = upward(imports_of(house), levels)
    assert line.startswith("house/ground.py, line 2: house.ground imports house.roof.top, but ground stands in line 1")
    assert not upward(imports_of(house), [["__init__", "ground", "roof"]])
