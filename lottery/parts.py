"""Parts of a study that the configuration names by `_target_`: criteria, allocations, probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import getsourcefile, signature
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lottery.config import locate
from lottery.errors import ConfigError, cause
from lottery.files import file_digest

TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),),
}  # fmt: skip
WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "None": "null"}


def made(node: Any, key: str) -> Callable[..., Any]:
    """The function (or object) that a `_target_` names, with its options.

    `key` is where the node stands. ConfigError where there is no such thing, or where it takes other options.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError.of(key, node, "{_target_: package.module.function, ...}")
    check_types(node, key)
    try:
        function = instantiate(node)
        if isinstance(function, partial):
            signature(function.func).bind_partial(*function.args, **function.keywords)
        return function
    except (InstantiationException, TypeError) as error:
        reason = error.__cause__ or error
        if isinstance(reason, ConfigError):
            raise ConfigError(f"{key}.{reason}") from error
        locate(node["_target_"], key)  # says it better, where it cannot be imported
        raise ConfigError(f"{key}: {node['_target_']}: {cause(reason)}") from error


def check_types(node: Mapping[str, Any], key: str) -> None:
    """Raise ConfigError for an option that is not of the plain type its function declares; nested parts too."""
    parameters = signature(locate(node["_target_"], key)).parameters
    for name, value in node.items():
        if isinstance(value, Mapping) and isinstance(value.get("_target_"), str):
            check_types(value, f"{key}.{name}")
        elif name in parameters:
            words = str(getattr(parameters[name].annotation, "__name__", parameters[name].annotation)).split(" | ")
            allowed = [kind for word in words for kind in TYPES.get(word, (object,))]
            if type(value) not in allowed and object not in allowed:
                raise ConfigError.of(f"{key}.{name}", value, " or ".join(WORDS[word] for word in words))


def own_code(node: Any) -> dict[str, str]:
    """For each `_target_` in a node that is not lottery's: the digest of the file that it is defined in.

    What is kept under a key made of options alone would outlive a change of the user's own code.
    """
    return {target: _file_digest(target) for target in _targets(node) if not target.startswith("lottery.")}


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _file_digest(target: str) -> str:
    try:
        path = getsourcefile(locate(target, "criterion"))
    except TypeError:  # of something that is built in
        path = None
    return file_digest(Path(path)) if path else ""
