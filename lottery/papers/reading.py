"""Find, read and check the files `experiments/NAME/sweep.yaml`. Torch-free.

    title: ...
    source: {authors: ..., venue: ..., sections: ...}
    about: what is run, and how it differs from the paper
    runs:                                   # blocks of studies
      - {name: lenet, label: LeNet, overrides: [+exp=lth_lenet, "seed=0,1,2"]}      # as after `python -m lottery -m`
    scales:                                 # any of smoke, small, paper
      small: {cost: 12 min, overrides: [train.steps=5000it], runs: {lenet: ["seed=0,1"], conv2: null}}
    figures:
      - {name: fig4, plot: accuracy, runs: [lenet], filters: {}, arguments: {density: density_weights},
         published: [{x: 0.2, y: 0.98, label: Their Fig. 4, series: ticket}]}

A scale's overrides are added to those of every block, then those in its `runs` to single blocks; null leaves a block
out. A later override of a key replaces an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lottery.errors import ConfigError, LotteryError, nearest
from lottery.files import Unreadable, read_yaml
from lottery.papers.paper import SCALES, Block, Figure, Paper, Scale

FILE = "sweep.yaml"


def papers_folder() -> Path:
    """Return the folder of the project's own papers: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "experiments"
    return inside if inside.exists() else package.parent / "experiments"


def names() -> list[str]:
    """Return the names of the project's papers, sorted."""
    return sorted(path.parent.name for path in papers_folder().glob(f"*/{FILE}"))


def load(name: str | Path) -> Paper:
    """Load a paper by its name, or one of your own by the path of its sweep.yaml or of its folder.

    Raises ConfigError where there is no such paper, and for a damaged file.
    """
    text = str(name)
    if "/" in text or text.endswith((".yaml", ".yml")) or isinstance(name, Path):
        path = Path(name) / FILE if Path(name).is_dir() else Path(name)
        if not path.is_file():
            raise ConfigError(f"{text}: no such file, expected a {FILE}, or one of {', '.join(names())}")
        return read(path, path.resolve().parent.name if path.name == FILE else path.stem)
    if text not in names():
        raise ConfigError(f"{text}: no such paper{nearest(text, names())}; there are {', '.join(names())}")
    return read(papers_folder() / text / FILE, text)


# -- the file ---------------------------------------------------------------------------------------------------------


def read(path: Path, name: str) -> Paper:
    """Read and check a sweep.yaml. Raises ConfigError in one line that names file and key."""
    try:
        return _paper(path, name, read_yaml(path))
    except Unreadable as error:
        raise ConfigError(str(error)) from error
    except _Wrong as error:
        raise ConfigError(f"{path}: {error}") from error


class _Wrong(LotteryError):
    """A value that its key does not take."""


def _paper(path: Path, name: str, values: Any) -> Paper:
    _keys(values, "", ("title", "source", "runs", "scales"), ("about", "figures"))
    blocks = tuple(_block(each, f"runs[{i}]") for i, each in enumerate(_list(values["runs"], "runs")))
    known = [block.name for block in blocks]
    if not known or len(set(known)) < len(known):
        raise _Wrong("runs: expected at least one block, each with a name of its own")
    _keys(values["scales"], "scales", (), SCALES)
    scales = {key: _scale(key, values["scales"][key], known) for key in SCALES if key in values["scales"]}
    drawn = [_figure(each, f"figures[{i}]", known) for i, each in enumerate(_list(values.get("figures"), "figures"))]
    if len({figure.name for figure in drawn}) < len(drawn):
        raise _Wrong("figures: expected a name of its own for each")
    _keys(values["source"], "source", ("authors",), ("venue", "sections"))
    title, about = _text(values["title"], "title"), _text(values.get("about", ""), "about").strip()
    return Paper(name, path, title, values["source"], about, blocks, scales, tuple(drawn))


def _block(values: Any, where: str) -> Block:
    _keys(values, where, ("name", "overrides"), ("label",))
    name = _text(values["name"], f"{where}.name")
    overrides = _overrides(values["overrides"], f"{where}.overrides")
    return Block(name, overrides, _text(values.get("label", name), f"{where}.label"))


def _scale(name: str, values: Any, blocks: Sequence[str]) -> Scale:
    where = f"scales.{name}"
    _keys(values, where, ("cost",), ("overrides", "runs"))
    runs = values.get("runs") or {}
    _keys(runs, f"{where}.runs", (), blocks)
    own = {key: None if each is None else _overrides(each, f"{where}.runs.{key}") for key, each in runs.items()}
    if all(own.get(block, ()) is None for block in blocks):
        raise _Wrong(f"{where}.runs: leaves every block out")
    cost = _text(values["cost"], f"{where}.cost")
    return Scale(name, cost, _overrides(values.get("overrides") or [], f"{where}.overrides"), own)


def _figure(values: Any, where: str, blocks: Sequence[str]) -> Figure:
    _keys(values, where, ("name", "plot"), ("runs", "scales", "filters", "arguments", "published"))
    chosen = []
    for key, allowed in (("runs", blocks), ("scales", SCALES)):
        chosen.append(tuple(_list(values.get(key), f"{where}.{key}")))
        for each in chosen[-1]:
            if each not in allowed:
                hint = nearest(str(each), allowed)
                raise _Wrong(f"{where}.{key}: got {each!r}, expected one of {', '.join(allowed)}{hint}")
    filters, arguments = (
        _typed(values.get(key) or {}, f"{where}.{key}", dict, "a mapping") for key in ("filters", "arguments")
    )
    points = [_point(each, f"{where}.published[{i}]") for i, each in enumerate(_list(values.get("published"), where))]
    name, plot = (_text(values[key], f"{where}.{key}") for key in ("name", "plot"))
    return Figure(name, plot, chosen[0], chosen[1] or SCALES, filters, arguments, tuple(points))


def _point(values: Any, where: str) -> dict[str, Any]:
    _keys(values, where, ("x", "y", "label"), ("series", "panel", "density", "value"))
    for key in ("x", "y"):
        if isinstance(values[key], bool):
            raise _Wrong(f"{where}.{key}: got {values[key]!r}, expected a number")
        _typed(values[key], f"{where}.{key}", (int, float), "a number")
    return dict(values)


def _keys(values: Any, where: str, needed: Iterable[str], others: Iterable[str]) -> None:
    """Raise _Wrong unless `values` is a mapping with the `needed` keys and, besides, only `others`."""
    known, prefix = [*needed, *others], f"{where}." if where else ""
    _typed(values, where or "the file", dict, f"a mapping with {', '.join(known)}")
    for key in values:
        if key not in known:
            raise _Wrong(f"{prefix}{key}: no such key{nearest(str(key), known)}; there are {', '.join(known)}")
    for key in needed:
        if key not in values:
            raise _Wrong(f"{prefix}{key}: is missing")


def _typed(value: Any, where: str, kind: type | tuple[type, ...], words: str) -> Any:
    if not isinstance(value, kind):
        raise _Wrong(f"{where}: got {value!r}, expected {words}")
    return value


def _list(values: Any, where: str) -> list[Any]:
    return [] if values is None else _typed(values, where, list, "a list")


def _text(value: Any, where: str) -> str:
    return _typed(value, where, str, "a text")


def _overrides(values: Any, where: str) -> tuple[str, ...]:
    for each in _list(values, where):
        if not isinstance(each, str) or not ("=" in each or each.startswith("~")):
            raise _Wrong(f"{where}: got {each!r}, expected key=value, group=option or +exp=NAME")
    return tuple(values)
