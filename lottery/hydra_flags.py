"""Hydra's own options on the command line: --cfg, --package, --info, --shell-completion. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lottery.compose import explained, groups, hydra_opened
from lottery.errors import ConfigError, nearest
from lottery.explain import keys
from lottery.overrides import as_written
from lottery.preset import compose_preset

SHELLS = ("bash", "zsh", "fish")
ACTIONS = ("install", "uninstall", "query")  # of --shell-completion; the shell itself uses the last one


def shown_config(cfg: DictConfig, kind: str, package: str, overrides: Sequence[str], config_dir: str | None) -> str:
    """Return a configuration, or the part `package` of it, as resolved YAML. kind: job, hydra (unresolved) or all.

    Raises ConfigError for a package that is not there.
    """
    found: Any = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    if kind != "job":
        with hydra_opened(config_dir), explained(overrides, config_dir):
            whole, _ = compose_preset(as_written(overrides), groups(config_dir), hydra=True)
        hydra = OmegaConf.create({"hydra": OmegaConf.to_container(whole.hydra)})
        found = hydra if kind == "hydra" else OmegaConf.merge(hydra, found)
    part = found if package in ("", "_global_") else OmegaConf.select(found, package)
    if part is None:
        raise ConfigError(f"--package: the configuration has no {package!r}{nearest(package, keys(found))}")
    return OmegaConf.to_yaml(part).rstrip() if OmegaConf.is_config(part) else str(part)


def show_info(kind: str, overrides: Sequence[str], config_dir: str | None) -> int:
    """Print how Hydra composes a configuration: the defaults list, the search path, its plugins. Returns 0."""
    with hydra_opened(config_dir), explained(overrides, config_dir):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.show_info(kind, "config", as_written(overrides))
    return 0


def shell_completion(overrides: Sequence[str], config_dir: str | None) -> int:
    """Print what completes `lottery` in a shell (install=bash), or undoes it. Raises ConfigError. Returns 0."""
    actions = [override.partition("=") for override in overrides if override.partition("=")[0] in ACTIONS]
    if len(actions) != 1 or actions[0][2] not in SHELLS:
        got = " ".join(overrides)
        raise ConfigError.of("--shell-completion", got, f"install=SHELL or uninstall=SHELL, of {', '.join(SHELLS)}")
    if sys.argv[0].endswith(".py"):
        again = f"lottery --shell-completion {'='.join(actions[0][::2])}"
        raise ConfigError(f'--shell-completion: completes the script, not `python -m lottery`: eval "$({again})"')
    with hydra_opened(config_dir):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.shell_completion("config", ["=".join(actions[0][::2])])
    return 0
