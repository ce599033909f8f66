"""Turn errors of Hydra and OmegaConf into one line: the key, its value, the allowed values, the remedy. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
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
from lottery.parts import WORDS

Groups = Mapping[str, Sequence[str]]  # config group -> its options
Base = Callable[[], DictConfig]  # composes a valid configuration, whose keys are the known ones; called only if needed

NO_KEY = "expected key=value, group=option or +exp=NAME: there is an override without a key"


def explain(error: Exception, overrides: Sequence[str], groups: Groups, base: Base) -> str:
    """Return the message for an error that was raised while composing."""
    where = re.match(r"In '(?!config'|hydra/)([^']+)'", str(error))
    suffix = f" (in {where[1]}.yaml)" if where else ""
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return missing_option(error, groups) + suffix
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a config file"
        return f"{place}: not valid YAML: {error.problem}"
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OmegaConfBaseException):
        inner = inner.__cause__ or inner.__context__
    if inner is not None:  # an OmegaConf error knows key, value and type
        return described(inner, base, groups, str(error)) + suffix
    if isinstance(error, OSError):
        return cause(error)
    if not isinstance(error, HydraException):  # raised by Python inside Hydra: its message does not help a user
        return wrong_choice(overrides, groups)
    return composition(str(error), overrides, groups, base) + suffix


def described(error: OmegaConfBaseException, base: Base, groups: Groups, outer: str = "") -> str:
    """Return the message for a wrong value, an unknown key or a missing value. outer: the message of Hydra's error."""
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
    if "Cannot merge DictConfig with ListConfig" in str(error):
        return f"{key}: got a mapping, expected a list such as [a,b]"
    return f"{key}: {cause(error).partition(': ')[2]}" if key else cause(error)


def expected(error: OmegaConfBaseException) -> str:
    """Describe the kind of value that is allowed where this error's value was refused."""
    node = error.child_node
    if isinstance(error.parent_node, ListConfig):
        return kind_of(next(iter(get_args(error.ref_type)), None))
    if isinstance(node, DictConfig) and typed(node):
        return f"its keys one by one: {', '.join(names(node))}"
    if isinstance(node, DictConfig):
        return "a mapping such as {name: value}"
    about = getattr(node, "_metadata", None)
    text = "a list such as [a,b]" if isinstance(node, ListConfig) else kind_of(about and about.ref_type)
    return text + (" or null" if about and about.optional else "")


def kind_of(declared: Any) -> str:
    """Describe a plain type in words, such as "a whole number"."""
    return WORDS.get(getattr(declared, "__name__", ""), "another kind of value")


def shown(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else repr(value)


def unknown_key(key: str, base: Base, groups: Groups, parent: DictConfig | None = None) -> str:
    """Return the message for a key or group that does not exist. parent: the node that lacks the key, if known."""
    if not key:
        return NO_KEY
    if key == "exp":
        return "exp: an experiment is added with a plus: +exp=NAME"
    (path, _, last), sound = key.rpartition("."), base()
    node = OmegaConf.select(sound, path) if path and parent is None else parent
    siblings = names(node, last) if path and isinstance(node, DictConfig) else []
    if siblings:
        meant = closest(last, siblings)
        hint = f" (did you mean '{path}.{meant}'?)" if meant else ""
        return f"{key}: no such key{hint}; {path} has {', '.join(siblings)}"
    # Do not suggest keys that `+` added below the unknown key.
    known = [name for name in [*keys(sound), *groups] if not f"{name}.".startswith(f"{key}.")]
    return f"{key}: no such key{nearest(key, known)}"


def missing_option(error: MissingConfigException, groups: Groups) -> str:
    """Return the message for an option that its group does not have."""
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    options = groups.get(group) or [name for name in error.options or [] if not name.startswith("schema")]
    if not group or not options:
        return f"{group or option}: no such group{nearest(group, groups)}; there are {', '.join(groups)}"
    return f"{group}: got {option!r}, expected one of {', '.join(options)}{nearest(option, options)}"


def names(node: DictConfig, but: str = "") -> list[str]:
    """List a node's keys, except `but` and those of Hydra such as `_target_`."""
    return [str(name) for name in node if not str(name).startswith("_") and name != but]


def typed(node: Any) -> bool:
    """Whether a node is a dataclass, to which no key can be added."""
    return isinstance(node, DictConfig) and OmegaConf.get_type(node) not in (dict, None)


def keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a configuration."""
    for name in map(str, node):
        yield f"{prefix}{name}"
        value = node._get_node(name)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            yield from keys(value, f"{prefix}{name}.")


def unreadable(override: str) -> str:
    """Return the message for an override that Hydra's grammar cannot parse."""
    if "=" not in override:
        return f"{override}: expected key=value, group=option or +exp=NAME"
    return f"{override}: cannot be read: close every bracket and quote; a text with special characters goes in quotes"


def composition(text: str, overrides: Sequence[str], groups: Groups, base: Base) -> str:
    """Return the message for an error of Hydra that is recognised by its wording in Hydra 1.3."""
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
    """Return the message for several values of one key without -m."""
    key, _, value = override.partition("=")
    listed = "" if "(" in value else f", or write '{key}=[{value}]' for a list"
    return f"{key}: got several values, {value}: add -m to run a study for each{listed}"


def twice(key: str) -> str:
    """Return the message for a key given twice. `exp` always needs its plus: it has no default to replace."""
    return f"{key}: given twice" + f"; to choose another option leave out the plus: {key}=NAME" * (key != "exp")


COMPLAINTS: dict[str, Callable[[str], str]] = {
    r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: requires|\n|$)": several,
    r"(\S+) appears more than once in the final": twice,
    r"Multiple values for (\S+)\.": twice,
    r"An item is already at '(.+?)'": lambda key: f"{key}: is there already: leave out the plus",
    r"Could not delete from config\. The value of '(.+?)'": lambda key: f"{key}: has another value; ~{key} deletes it",
    r"You must specify '(.+?)'": lambda key: f"{key}: nothing chosen; --help lists the options",
}


def wrong_choice(overrides: Sequence[str], groups: Groups) -> str:
    """Return the message for a group whose value is neither an option's name nor a list of such names."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        listed = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else value
        if key in groups and any(part.strip() not in groups[key] for part in listed.split(",")):
            return f"{key}: got {value}, expected one of {', '.join(groups[key])}"
    if any(not override.lstrip("+~").partition("=")[0] for override in overrides):
        return NO_KEY
    return f"{' '.join(overrides)}: cannot be composed; leave one out after the other to see which is wrong"
