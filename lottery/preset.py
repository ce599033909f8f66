"""Compose a preset whose options are changed: leave out its keys that the changed option does not take. Torch-free.

`+exp=imp_rewind method=bip` shares the preset's training, but BiP has no `rounds`, and nobody typed that key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lottery.errors import LotteryError
from lottery.parts import has_target, method_options, typed_method
from lottery.printing import say


def compose_preset(
    overrides: Sequence[str], groups: Mapping[str, Sequence[str]], hydra: bool = False
) -> tuple[DictConfig, str]:
    """Compose as Hydra does, but without keys of a preset that an option chosen in `overrides` does not take.

    groups: every config group with its options. hydra: whether to add Hydra's own configuration. Hydra must be
    initialised. Keys that `overrides` set themselves stay, for the check to refuse. Raises what Hydra raises.
    Returns the configuration, and a note that names the keys left out ("" without any).
    """
    chosen = {group: name for group, name in given(overrides).items() if name in groups.get(group, ())}
    presets = [override for override in overrides if override.startswith("+exp=")]
    left: list[str] = []
    while True:
        try:
            with _without(left):
                cfg = compose("config", overrides=list(overrides), return_hydra_config=hydra)
            break
        except ConfigCompositionException as error:  # from a typed option, as the models' are
            key = _refused(error)
            if not presets or key in left or key.partition(".")[0] not in chosen:
                raise
            left.append(key)
    if presets and "method" in chosen and has_target(cfg.get("method")):
        without = [override for override in overrides if override not in presets and given([override]).keys() & groups]
        left += _leave_out_(cfg, compose("config", overrides=without).method, given(overrides))
    options = " ".join(f"{group}={chosen[group]}" for group in dict.fromkeys(key.split(".")[0] for key in left))
    note = f"note: {options} does not have what {' '.join(presets)} sets; left out: {', '.join(left)}" if left else ""
    return cfg, note


def given(overrides: Sequence[str]) -> dict[str, str]:
    """Map the keys that overrides set, without a leading +, to their values as texts."""
    pairs = (override.lstrip("+").partition("=") for override in overrides if "=" in override)
    return {key: value for key, _, value in pairs}


def _refused(error: ConfigCompositionException) -> str:
    """Return the key of a preset that a typed option refused while Hydra composed; "" for any other error."""
    inner = error.__cause__ or error.__context__
    from_preset = re.match(r"In 'exp/", str(error)) and isinstance(inner, OmegaConfBaseException)
    return (inner.full_key or "") if from_preset else ""  # type: ignore[union-attr]


@contextmanager
def _without(keys: Sequence[str]) -> Iterator[None]:
    """Let Hydra read the presets, within the block, as if they did not set these dotted keys."""
    repository = GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]
    load: Callable[[str], Any] = repository.load_config

    def load_config(config_path: str) -> Any:
        found = load(config_path)
        if found is not None and config_path.startswith("exp/"):
            for group, _, name in (key.partition(".") for key in keys):
                with open_dict(found.config):
                    (found.config.get(group) or {}).pop(name, None)
        return found

    repository.load_config = load_config
    try:
        yield
    finally:
        del repository.load_config  # the method of its class again


def _leave_out_(cfg: DictConfig, alone: DictConfig, typed: Mapping[str, str]) -> list[str]:
    """Remove the method's keys that came with the preset and that the method does not take; return them.

    alone: the method as its option has it, without the preset. typed: the keys that the user set.
    """
    left: list[str] = []
    own: dict[str, Any] = OmegaConf.to_container(alone)  # type: ignore[assignment]
    build = typed_method if _takes(typed_method, own) else method_options  # an option may be incomplete by itself
    values: dict[str, Any] = OmegaConf.to_container(cfg.method)  # type: ignore[assignment]
    for key, value in values.items():
        kept = any(f"{name}.".startswith(f"method.{key}.") for name in typed) or (key in own and own[key] == value)
        if kept or _takes(build, {**own, key: value}):
            continue
        with open_dict(cfg):
            cfg.method.pop(key)
            cfg.method.update({key: own[key]} if key in own else {})
        left.append(f"method.{key}")
    return left


def _takes(build: Callable[[DictConfig], Any], options: dict[str, Any]) -> bool:
    try:
        build(OmegaConf.create(options))
        return True
    except (LotteryError, OmegaConfBaseException):
        return False


@cache
def tell(note: str) -> None:
    """Print a note on stderr, once in a process, unless it is empty."""
    if note:
        say(note, error=True)
