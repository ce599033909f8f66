"""What the pages say of options and of measurements is what the configs and the experiments' pages say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from page_tools import DOCS, ROOT, inline_code

from lottery.compose import composed, groups
from lottery.config import locate

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


# -- names in the text ------------------------------------------------------------------------------------------------

KEY = re.compile(r"(\+?)([a-z_]+(?:\.[a-z_0-9]+)*)=(\S*)")
DOTTED = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
OURS = {
    *groups(), "seed", "seeds", "name", "paths", "hydra", "controls", "tracker", "trainer", "train", "optim", "schedule", "rewind", "prunable",
}  # fmt: skip


@pytest.fixture(scope="session")
def known_keys() -> set[str]:
    """Every key that some configuration has."""
    chosen = ["allocation=erk", "layer_criterion=snip", "criterion=grasp"]
    studies = [[f"method={name}", *chosen] for name in ("random", "layers", "jackpot", "pai")]
    studies = [[part for part in study if takes(study[0], part)] for study in studies]
    studies += [[f"method={name}"] for name in ("imp", "bip", "edge_popup", "filters", "instability", "regimes")]
    studies += [["allocation=uniform_plus", "method=random"], ["allocation=from_mask", "method=random", "method.allocation.path=x"]]
    studies += [[f"probes={name}"] for name in groups()["probes"]] + [[f"model={name}"] for name in ("resnet20", "timm", "conv2", "mlp")]
    found: set[str] = set()
    for overrides in studies:
        found |= dotted(OmegaConf.to_container(composed(overrides)))
    return found


def takes(method: str, part: str) -> bool:
    return {"allocation": "method=layers" != method, "layer_criterion": "method=layers" == method}.get(
        part.partition("=")[0], method != "method=random"
    )


def dotted(values: Any, prefix: str = "") -> set[str]:
    if not isinstance(values, dict):
        return {prefix}
    return {prefix} | {key for name, value in values.items() for key in dotted(value, f"{prefix}.{name}".lstrip("."))}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_named_options_exist(page: Path, known_keys: set[str]) -> None:
    """In `key=value` and `key.of.group` of the text: keys that some study has, options that their group has."""
    known, wrong = groups(), []
    added = set(re.findall(r'title="own/\w+/(\w+)\.yaml"', page.read_text()))  # the page's own configs
    for text in inline_code(page):
        for plus, key, value in KEY.findall(text):
            options = [word for word in re.findall(r"[a-z_0-9]+", value)] if key in known and value else []
            wrong += [f"{key}={word}" for word in options if word.islower() and word not in {*known[key], *added}]
            if key not in known and key.partition(".")[0] in OURS and key.partition(".")[0] != "hydra" and not plus:
                wrong += [key] if key not in known_keys else []
        if DOTTED.fullmatch(text) and text.partition(".")[0] in OURS and text not in known_keys:
            wrong.append(text)
    wrong = [each for each in wrong if each.rpartition(".")[2] not in ("yaml", "md", "py", "json", "csv")]
    assert not [each for each in wrong if not each.startswith("probes.") or each not in added]


assert yaml  # the dependency that OmegaConf reads with
