"""Instantiate the parts that a configuration names by `_target_`: method, criteria, allocations, probes. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lottery.errors import ConfigError, LotteryError, cause, nearest

TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),),
}  # fmt: skip
WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "None": "null"}


def has_target(node: Any) -> bool:
    """Whether a node of a configuration has a `_target_`, the dotted path that it is instantiated from."""
    return isinstance(node, Mapping) and isinstance(node.get("_target_"), str)


def locate(target: Any, key: str) -> Any:
    """Import the object that a `_target_` names. Raises ConfigError where that fails for any reason."""
    module, _, name = str(target).rpartition(".")
    if not module:
        raise ConfigError.of(f"{key}._target_", target, "a dotted path such as package.module.Name")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):  # and not a module that it imports
            raise ConfigError(
                f"{key}._target_: cannot import {target!r}: no module named {error.name!r} in the current folder, "
                "in --config-dir DIR, beside it or on PYTHONPATH; run from the module's folder, or PYTHONPATH=FOLDER"
            ) from error
        raise ConfigError(f"{key}._target_: cannot import {target!r}: {cause(error)}") from error
    except Exception as error:  # a user's module may fail in any way
        raise ConfigError(f"{key}._target_: cannot import {target!r}: {cause(error)}") from error
    if not hasattr(found, name):
        raise ConfigError(f"{key}._target_: {module} has no {name!r}{nearest(name, dir(found))}")
    return getattr(found, name)


def function_at(target: Any, key: str) -> Callable[..., Any]:
    """Import the function that a `_target_` names. Raises ConfigError as `locate`, and where it is no function."""
    function = locate(target, key)
    if not callable(function):
        raise ConfigError.of(f"{key}._target_", target, "the dotted path of a function")
    return function


def instantiated(node: Any, key: str) -> Callable[..., Any]:
    """Instantiate the function (or object) that a node's `_target_` names, with the node's options.

    key: the node's dotted key. Raises ConfigError where there is no such function, or it has other options.
    """
    if not has_target(node):
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
        locate(node["_target_"], key)  # raises a clearer error where it cannot be imported
        raise ConfigError(f"{key}: {node['_target_']}: {cause(reason)}") from error


def check_types(node: Mapping[str, Any], key: str) -> None:
    """Raise ConfigError for an option that is not of the plain type in its function's signature; check nested parts."""
    parameters = signature(locate(node["_target_"], key)).parameters
    for name, value in node.items():
        if has_target(value):
            check_types(value, f"{key}.{name}")
        elif name in parameters:
            words = str(getattr(parameters[name].annotation, "__name__", parameters[name].annotation)).split(" | ")
            allowed = [kind for word in words for kind in TYPES.get(word, (object,))]
            if type(value) not in allowed and object not in allowed:
                raise ConfigError.of(f"{key}.{name}", value, " or ".join(WORDS[word] for word in words))


# -- a method, whose options are the fields of a dataclass -------------------------------------------------------------


def typed_method(node: DictConfig) -> Any:
    """Build the method's dataclass from its node. Raises for an unknown key, a wrong type or a value out of range.

    A method's file imports no torch at its top, so that this stays fast.
    """
    try:
        return OmegaConf.to_object(_schema(node))
    except (LotteryError, OmegaConfBaseException):
        raise
    except Exception as error:  # its own __post_init__
        raise ConfigError(f"method: {cause(error)}") from error


def method_options(node: DictConfig) -> dict[str, Any]:
    """Return the method's node with every option of its dataclass, each converted to its declared type."""
    options: dict[str, Any] = OmegaConf.to_container(_schema(node), resolve=True)  # type: ignore[assignment]
    return {"_target_": node._target_, **options}


def _schema(node: DictConfig) -> DictConfig:
    """Turn the method's dataclass into a config, and fill it from the method's node."""
    cls = locate(node._target_, "method")
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise ConfigError.of("method._target_", node._target_, "a dataclass, whose fields are the method's options")
    values = {key: value for key, value in node.items() if key != "_target_"}
    schema = OmegaConf.structured(cls)
    for key, value in values.items():
        if key in schema and isinstance(schema._get_node(key), DictConfig) and not isinstance(value, DictConfig):
            options = ", ".join(f"{name}: ..." for name in [*map(str, schema[key])][:2])
            raise ConfigError.of(f"method.{key!s}", value, f"a mapping such as {{{options}}}")
    # Merged under the key `method`, so that an error names the option's full key.
    return OmegaConf.merge({"method": schema}, {"method": values}).method
