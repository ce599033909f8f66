"""Expand a sweep into its studies: every combination of the swept values, its configuration and its label."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from lottery.compose import checked, choose_, composed, groups, hydra_opened, is_hydra
from lottery.errors import ConfigError
from lottery.overrides import as_written, sets_key
from lottery.preset import compose_preset, tell


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each study: every combination of swept values, the last override changing fastest."""
    values = []
    for override in overrides:
        if not override.is_sweep_override():
            values.append([override.input_line or ""])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            if is_hydra(key):
                raise ConfigError(f"{override.input_line}: a launcher and its settings are the same for a whole sweep")
            values.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ConfigError(f"{override.input_line}: a sweep needs values one by one, such as seed=0,1,2 or range(3)")
    return [list(job) for job in product(*values)]


class Composer:
    """Composes many similar studies fast: Hydra runs once for each choice of groups, and single keys are set after it.

    Any other kind of override, and any error, is left to `lottery.compose.composed`.
    """

    def __init__(self, config_dir: str | None = None) -> None:
        self.config_dir = config_dir
        self._bases: dict[tuple[str, ...], tuple[DictConfig, str]] = {}  # with the note of `compose_preset`

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Return the checked configuration of these overrides. Raises ConfigError."""
        overrides = as_written(overrides)
        try:
            made = self._set(overrides)
        except Exception:  # `composed`, below, raises a ConfigError for it
            made = None
        if made is None:
            return composed(overrides, self.config_dir)
        cfg = checked(made[0], self.config_dir)
        tell(made[1])
        return cfg

    def _set(self, overrides: Sequence[str]) -> tuple[DictConfig, str] | None:
        """Return the configuration before its check and the note, or None where it is left to `composed`."""
        known, choices, keys = groups(self.config_dir), list[str](), []
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.key_or_group in known and isinstance(override.value(), str | list):
                choices.append(override.input_line or "")
            elif override.key_or_group not in known and override.package is None and sets_key(override):
                keys.append(override)
            else:
                return None
        base = tuple(choices)
        if base not in self._bases:
            with hydra_opened(self.config_dir):
                self._bases[base] = compose_preset(choices, known)
        cfg, note = copy.deepcopy(self._bases[base])
        for override in keys:
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        choose_(cfg, overrides, self.config_dir)
        return cfg, note


def labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Label each job by its overrides, leaving out those that all jobs have."""
    common = set(jobs[0]).intersection(*jobs)
    return [" ".join(override for override in job if override not in common) for job in jobs]
