"""What Hydra and OmegaConf raise, as one line each: the key, what it got, what it may be, the way out. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf, StringNode
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from lottery.errors import cause, closest, nearest

Groups = Mapping[str, Sequence[str]]  # config group -> its options
Base = Callable[[], DictConfig]  # a sound configuration, for the keys there are; asked for only where it is needed

KINDS = {FloatNode: "a number", IntegerNode: "a whole number", BooleanNode: "true or false", StringNode: "a text"}
ELEMENTS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


def explain(error: Exception, overrides: Sequence[str], groups: Groups, base: Base) -> str:
    """One line from what was raised while composing."""
    where = re.match(r"In '(?!config'|hydra/)([^']+)'", str(error))
    suffix = f" (in {where[1]}.yaml)" if where else ""
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return missing_option(error, groups) + suffix
    if isinstance(error, yaml.MarkedYAMLError):
        return broken_yaml(error)
    inner = omegaconf_error(error)
    if inner is not None:
        return described(inner, base, groups, str(error)) + suffix
    return composition(str(error), overrides, groups, base) + suffix


def omegaconf_error(error: BaseException | None) -> OmegaConfBaseException | None:
    """The first of OmegaConf's errors among an error and what led to it: it knows key, value and type."""
    while error is not None and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__ or error.__context__
    return error


# -- a wrong value ----------------------------------------------------------------------------------------------------


def described(error: OmegaConfBaseException, base: Base, groups: Groups, outer: str = "") -> str:
    """A wrong value, an unknown key or a missing value. `outer` is what Hydra made of it."""
    key = error.full_key or ""
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        named = re.search(r"Could not \w+ '([^']+)'", outer)  # Hydra names `trian.steps`, OmegaConf `trian`
        written = re.search(r"use (\+.+)", outer)
        if named and written and len(named[1]) < len(key) and not typed(error.parent_node):
            return f"{key}: no such key; to add it write {written[1]}"
        if named and len(named[1]) > len(key):
            return unknown_key(named[1], base, groups)
        return unknown_key(key, base, groups, error.parent_node)
    if isinstance(error, MissingMandatoryValue):
        group = key.partition(".")[0]
        choose = f"choose one with {group}=NAME, or " if group in groups else ""
        return f"{key}: has no value; {choose}give it one with {key}=VALUE"
    if isinstance(error, InterpolationResolutionError):
        return f"{key}: {cause(error).partition(': ')[2]}"
    if isinstance(error, ConfigTypeError) and "deletion" in str(error):
        return f"{key}: cannot be left out, only set to another value"
    if isinstance(error, ValidationError) and key:
        return f"{key}: got {shown(error.value)}, expected {expected(error)}"
    return f"{key}: {cause(error).partition(': ')[2]}" if key else cause(error)


def expected(error: OmegaConfBaseException) -> str:
    """What the node that refused a value takes."""
    node, parent = error.child_node, error.parent_node
    if isinstance(parent, ListConfig):
        element = next(iter(get_args(error.ref_type)), None)
        return ELEMENTS.get(element, "another kind of value")  # type: ignore[arg-type]
    if isinstance(node, DictConfig) and typed(node):
        return f"its keys one by one: {', '.join(names(node))}"
    if isinstance(node, DictConfig):
        return "a mapping such as {name: value}"
    text = "a list such as [a,b]" if isinstance(node, ListConfig) else KINDS.get(type(node), "another kind of value")
    return text + (" or null" if node is not None and node._metadata.optional else "")


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


# -- an unknown name --------------------------------------------------------------------------------------------------


def unknown_key(key: str, base: Base, groups: Groups, parent: DictConfig | None = None) -> str:
    """A key or a group that does not exist. `parent` is the node that has no such key, where it is known."""
    if key == "exp":
        return "exp: an experiment is added with a plus: +exp=NAME"
    (path, _, last), sound = key.rpartition("."), base()
    node = OmegaConf.select(sound, path) if path and parent is None else parent
    siblings = names(node, last) if path and isinstance(node, DictConfig) else []
    if siblings:
        meant = closest(last, siblings)
        hint = f" (did you mean '{path}.{meant}'?)" if meant else ""
        return f"{key}: no such key{hint}; {path} has {', '.join(siblings)}"
    # What `+` may have added under the key itself is not meant.
    known = [name for name in [*keys(sound), *groups] if not f"{name}.".startswith(f"{key}.")]
    return f"{key}: no such key{nearest(key, known)}"


def missing_option(error: MissingConfigException, groups: Groups) -> str:
    """A group's option that does not exist."""
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    options = groups.get(group) or [name for name in error.options or [] if not name.startswith("schema")]
    if not group or not options:
        return f"{group or option}: no such group{nearest(group, groups)}; there are {', '.join(groups)}"
    return f"{group}: got {option!r}, expected one of {', '.join(options)}{nearest(option, options)}"


def names(node: DictConfig, but: str = "") -> list[str]:
    """A node's own keys, without `_target_` and its kin, and without `but`."""
    return [str(name) for name in node if not str(name).startswith("_") and name != but]


def typed(node: Any) -> bool:
    """Whether a node is a dataclass, so that keys cannot be added."""
    return isinstance(node, DictConfig) and OmegaConf.get_type(node) not in (dict, None)


def keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration."""
    for name in map(str, node):
        yield f"{prefix}{name}"
        value = node._get_node(name)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            yield from keys(value, f"{prefix}{name}.")


# -- what cannot be composed ------------------------------------------------------------------------------------------


def unreadable(override: str) -> str:
    """An override that Hydra's grammar does not read."""
    if "=" not in override:
        return f"{override}: expected key=value, group=option or +exp=NAME"
    return f"{override}: cannot be read: close every bracket and quote; a text with special characters goes in quotes"


def broken_yaml(error: yaml.MarkedYAMLError) -> str:
    """A file that is not YAML."""
    mark = error.problem_mark
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a config file"
    return f"{place}: not valid YAML: {error.problem}"


def composition(text: str, overrides: Sequence[str], groups: Groups, base: Base) -> str:
    """Hydra's own complaints, by their wording in 1.3."""
    for pattern, line in COMPLAINTS.items():
        found = re.search(pattern, text)
        if found:
            return line(found[1])
    unknown = re.search(r"Could not (?:override|delete from config\.|delete) '?([\w./@-]+)", text)
    unknown = unknown or re.search(r"config group '(.+?)' does not exist", text)
    if unknown:
        return unknown_key(unknown[1], base, groups)
    if "Config group override" in text:
        return wrong_choice(overrides, groups)
    return next(iter(text.strip().splitlines()), "the configuration cannot be composed")


def several(override: str) -> str:
    key, _, value = override.partition("=")
    listed = "" if "(" in value else f", or write {key}=[{value}] for a list"
    return f"{key}: got several values, {value}: add -m to run a study for each{listed}"


def twice(key: str) -> str:
    other = f"; to choose another option leave out the plus: {key}=NAME"
    return f"{key}: given twice" + (other if key != "exp" else "")


COMPLAINTS: dict[str, Callable[[str], str]] = {
    r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: requires|\n|$)": several,
    r"(\S+) appears more than once in the final": twice,
    r"Multiple values for (\S+)\.": twice,
    r"An item is already at '(.+?)'": lambda key: f"{key}: is there already: leave out the plus",
    r"You must specify '(.+?)'": lambda key: f"{key}: nothing chosen; --help lists the options",
}


def wrong_choice(overrides: Sequence[str], groups: Groups) -> str:
    """A group that was given something else than the name of an option."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in groups:
            options = ", ".join(groups[key])
            if value not in groups[key]:
                return f"{key}: got {value}, expected one of {options}"
    return "expected key=value, group=option or +exp=NAME: there is an override without a key"
