"""Parts of a study that the configuration names by `_target_`: criteria, allocations, probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lottery.config import locate
from lottery.errors import ConfigError, cause


def made(node: Any, key: str) -> Callable[..., Any]:
    """The function (or object) that a `_target_` names, with its options.

    `key` is where the node stands. ConfigError where there is no such thing, or where it takes other options.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError.of(key, node, "{_target_: package.module.function, ...}")
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
