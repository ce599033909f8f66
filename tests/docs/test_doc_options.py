"""What the pages say of options and of measurements is what the configs and the experiments' pages say."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from page_tools import DOCS, ROOT

from lottery.compose import groups
from lottery.parts import locate

PAGES = sorted((DOCS / "methods").glob("*.md"))
TABLE = re.compile(r"<!-- options: (\w+)=(\w+) -->\n\n((?:\|.*\n)+)")
ROW = re.compile(r"^\| `([\w.]+)` \| `(.*?)` \|", re.MULTILINE)
INTERNAL = ("_target_", "_partial_", "_recursive_", "_convert_")
UNDER = {"layer_criterion": "method.criterion"}  # groups that are packaged elsewhere
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*")

tables = [(page.stem, *found) for page in PAGES for found in TABLE.findall(page.read_text())]


def plain(value: Any) -> Any:
    return OmegaConf.to_container(OmegaConf.create({"value": value}))["value"]  # type: ignore[index, call-overload]


def documented(table: str) -> dict[str, Any]:
    """The option and its default, as Hydra reads it (1e-4 is a number)."""
    return {key: OmegaConf.create(f"value: {text}").value for key, text in ROW.findall(table)}


def leaves(values: dict[str, Any], stop: set[str], prefix: str = "") -> dict[str, Any]:
    """The options below `prefix`; a mapping whose name is in `stop` counts as one, as does an empty one."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if name in INTERNAL:
            continue
        if isinstance(value, dict) and value and key not in stop:
            found |= leaves(value, stop, key)
        else:
            found[key] = value
    return found


def own(group: str, option: str) -> dict[str, Any]:
    """A config's file."""
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / group / f"{option}.yaml"))  # type: ignore[return-value]


@pytest.mark.parametrize(("page", "group", "option", "table"), tables, ids=lambda each: str(each)[:24])
def test_options_are_those_of_the_config(page: str, group: str, option: str, table: str) -> None:
    """All of them, with the same defaults."""
    shown = documented(table)
    values = own(group, option)
    values.pop("defaults", None)
    expected = leaves(values, set(shown), UNDER.get(group, group))
    assert set(shown) == set(expected)
    assert {key: plain(value) for key, value in shown.items()} == expected


@pytest.mark.parametrize("name", groups()["method"])
def test_every_option_of_every_method_is_documented(name: str) -> None:
    """Its config file has all fields of the method's dataclass, and a page has a table of that file."""
    values = own("method", name)
    known = {field.name for field in fields(locate(values["_target_"], "method"))}
    assert known - {"criterion", "allocation"} <= set(values) - {"_target_"} <= known
    assert name in [option for _, group, option, _ in tables if group == "method"]


@pytest.mark.parametrize("group", ["allocation", "layer_criterion", "criterion"])
def test_every_part_is_named(group: str) -> None:
    """Each allocation and criterion stands in a table of its page."""
    page = {"allocation": "random", "layer_criterion": "layers", "criterion": "pai"}[group]
    first = re.findall(r"^\| (`[^|]+`) \|", (DOCS / "methods" / f"{page}.md").read_text(), re.MULTILINE)
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert set(groups()[group]) <= named


RESULTS = re.compile(r"^\|(.*)\|([^|]*)\|([^|]*)\| \[\w+\]\(\.\./\.\./(experiments/\w+/README\.md)\) \|$", re.MULTILINE)
measured = [(page.stem, *row) for page in PAGES for row in RESULTS.findall(page.read_text())]


@pytest.mark.parametrize(("page", "what", "here", "published", "source"), measured, ids=lambda each: str(each)[:24])
def test_measured_numbers_are_those_of_the_experiment(
    page: str, what: str, here: str, published: str, source: str
) -> None:
    text = (ROOT / source).read_text()
    numbers = NUMBER.findall(here)
    assert numbers
    if "…" in here:  # mean (min … max): these three stand together
        assert here.strip() in text
    assert set(numbers) <= set(NUMBER.findall(text))


def test_there_are_results_of_every_experiment_on_a_method() -> None:
    shown = {Path(source).parent.name for *_, source in measured}
    assert {"lth", "random_pruning", "pai_sanity", "bip", "jackpots", "layer_tickets", "stability"} <= shown


def test_every_figure_is_listed() -> None:
    """The functions of lottery.figures that write figures, in the table of the page on analysis."""
    functions = {
        f"{path.stem}.{node.name}"
        for path in (ROOT / "lottery" / "figures").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and [each.arg for each in node.args.args[:2]] == ["frame", "path"]
        if node.name[0] != "_"
    }
    rows = re.findall(r"^\| ((?:`\w+\.\w+`(?:, )?)+) \|", (DOCS / "analysis.md").read_text(), re.MULTILINE)
    assert functions == {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
