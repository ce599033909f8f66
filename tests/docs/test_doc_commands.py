"""Every command line in the documentation is one that lottery takes, and every option named in its text exists."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from page_tools import DOCS, PROGRAM, ROOT, Command, blocks, commands, inline_code

from lottery.__main__ import COMMANDS, main
from lottery.arguments import Arguments
from lottery.combine import Composer
from lottery.compose import composed, config_folder, groups, is_hydra
from lottery.errors import ConfigError
from lottery.sweep import planned

PAGES = sorted(DOCS.rglob("*.md"))
PLACEHOLDER = re.compile(r"\b(RUN|KEY|NAME|FILE|DIR)\b|^\[|^\.\.\.$")


def written(page: Path) -> list[Command]:
    """The command lines of a page's blocks and of its text."""
    text = [block.text for block in blocks(page) if block.language in ("", "bash")]
    return [each for part in [*text, *inline_code(page)] for each in commands(part) if each.words]


STUDIES = [(page, each) for page in PAGES for each in written(page) if each.words[0] not in COMMANDS]
RUN = DOCS / "howto"  # these pages are run as they are written: test_howtos
CALLS = [(page, each) for page in PAGES for each in written(page) if each.words[0] in COMMANDS]


def label(value: Any) -> str:
    return value.stem if isinstance(value, Path) else str(value)[:60]


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language == "bash" for b in blocks(page))], ids=label)
def test_commands_survive_bash_and_zsh(page: Path) -> None:
    """zsh expands [ ] and *, both shells read ( ) and { }: outside of quotes none of them may stand."""
    for text in (block.text for block in blocks(page) if block.language == "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition("  #")[0]).split()
            assert bare[:3] != PROGRAM.split() or not [word for word in bare if re.search(r"=.*[][{}()*?]", word)]


# -- studies and sweeps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted({page for page, _ in STUDIES if page.parent != RUN}), ids=label)
def test_studies_compose(page: Path) -> None:
    """Every study's configuration is whole and in range, those of sweeps too; what is said to be wrong is."""
    for command in [each for of, each in STUDIES if of == page and "--config" not in each.words]:
        words = [re.sub(r"=interval\((.*?),.*\)", r"=\1", word) for word in command.words]  # Optuna chooses in it
        wrong = refused([word for word in words if not PLACEHOLDER.search(word)])
        assert bool(wrong) == (command.status == 2), f"{page.name}: {command}: {wrong}"


def refused(words: list[str]) -> str:
    """What is said against the configuration; nothing where it is right."""
    try:
        compose(words)
    except ConfigError as error:
        return str(error)
    return ""


def compose(words: list[str]) -> None:
    asked = Arguments.parse(words, COMMANDS)
    if asked.config or not asked.overrides:
        return
    if not asked.sweep:
        composed(asked.overrides, asked.config_dir)
        return
    composer, seen = Composer(asked.config_dir), set[str]()
    for job in planned(asked.overrides, asked.config_dir)[0]:
        if not seen.issuperset(job):  # every value once, not every combination
            composer([override for override in job if not is_hydra(override)])
            seen |= set(job)


# -- commands ---------------------------------------------------------------------------------------------------------


@cache
def help_of(*words: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue()


@pytest.mark.parametrize(("page", "command"), CALLS, ids=label)
def test_options_of_commands_are_in_their_help(page: Path, command: Command) -> None:
    word, *rest = command.words
    about = help_of(word, *rest[:1]) if word == "store" else help_of(word)
    assert len(about) > 100
    for option in (each.partition("=")[0] for each in rest if each.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", about), f"{page.name}: {command}: no {option}"


def test_words_of_the_text_are_commands() -> None:
    """Among them those of the tutorial."""
    words = {each.words[0] for page in PAGES for each in written(page)}
    named = {word for word in words if re.fullmatch(r"[a-z]+", word)}
    assert {"status", "submit", "compare", "paper", "report", "store"} <= named <= set(COMMANDS)


def test_sweeps_that_are_submitted_compose() -> None:
    submitted = [each.words[1:] for _, each in CALLS if each.words[0] == "submit" and len(each.words) > 1]
    assert any(any("=" in word for word in words) for words in submitted)
    for words in submitted:
        if "--help" not in words:
            compose(["-m", "hydra/launcher=slurm", *words])


def test_papers_and_their_scales_exist() -> None:
    from lottery.papers import load

    asked = [each.words for _, each in CALLS if each.words[0] == "paper" and len(each.words) > 1]
    for words in asked:
        if not PLACEHOLDER.search(words[1]) and "--scale" in words:
            load(words[1]).scale(words[words.index("--scale") + 1])


# -- options in the text ----------------------------------------------------------------------------------------------

ASSIGNED = re.compile(r"(?<![\w.+/])(\+?)([a-z_]+(?:[./][a-z_0-9]+)*)=([^\s`]*)")
DOTTED = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)+")
PARTS = {
    "seed", "seeds", "name", "paths", "controls", "tracker", "trainer", "train", "optim", "schedule", "rewind",
    "prunable", "data", "model", "method", "criterion", "probes",
}  # fmt: skip
FILES = (".yaml", ".md", ".py", ".json", ".jsonl", ".csv", ".log", ".safetensors", ".png", ".html", ".npz")


@pytest.fixture(scope="session")
def known_keys() -> set[str]:
    """Every key that some study has: those of the configs' files, and of three whole configurations."""
    found: set[str] = set()
    for group, names in groups().items():
        under = {"allocation": "method.allocation", "layer_criterion": "method.criterion"}.get(group, group)
        for name in names if group != "exp" else ():
            found |= dotted(OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{name}.yaml")), under)
    for model in ("mlp", "resnet20", "timm"):
        found |= dotted(OmegaConf.to_container(composed([f"model={model}"])))
    return found


def dotted(values: Any, prefix: str = "") -> set[str]:
    if not isinstance(values, dict):
        return {prefix}
    return {prefix} | {key for name, value in values.items() for key in dotted(value, f"{prefix}.{name}".lstrip("."))}


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_options_named_in_the_text_exist(page: Path, known_keys: set[str]) -> None:
    """`group=option`: the group has it. `part.key` and `part.key=value`: some study has that key."""
    options = {name: set(found) for name, found in groups().items()}
    for file in (block.file for block in blocks(page)):  # the page's own configs
        if file.startswith("own/"):
            options[Path(file).parent.name].add(Path(file).stem)
    wrong = []
    for code in inline_code(page):
        for plus, key, value in ASSIGNED.findall(code):
            if key in options:
                words = re.split(r"[|,]", value.strip("[]'\""))
                wrong += [
                    f"{key}={word}" for word in words if re.fullmatch(r"[a-z_0-9]+", word) and word not in options[key]
                ]
            elif key.partition(".")[0] in PARTS and not plus and key not in known_keys:
                wrong.append(key)
        if DOTTED.fullmatch(code) and code.partition(".")[0] in PARTS and not code.endswith(FILES):
            wrong += [] if code in known_keys else [code]
    assert not wrong


def test_a_page_that_is_cited_exists() -> None:
    """In docstrings, comments and configurations."""
    cited = {
        (path, page)
        for folder in ("lottery", "conf", "tests", "benchmarks", "notebooks", "experiments")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".md")
        for page in re.findall(r"(?<![\w/.-])((?:docs/[\w/-]+|methods)\.md)", path.read_text(encoding="utf-8"))
    }
    assert len(cited) > 20
    assert {(path, page) for path, page in cited if not (ROOT / page).is_file()} == set()
