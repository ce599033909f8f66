"""Let Optuna choose the values of a sweep: `-m hydra/sweeper=optuna`, with the package hydra-optuna-sweeper."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from lottery.compose import composed, hydra_opened
from lottery.config import study_key
from lottery.errors import ConfigError, Interrupted, LotteryError, cause, reported
from lottery.overrides import as_written
from lottery.printing import say
from lottery.record.rows import read_rows
from lottery.runner import run_composed
from lottery.signals import StopFlag

PLUGIN = "hydra_plugins.hydra_optuna_sweeper"
DIRECTION = "hydra.sweeper.direction"


def tuned(overrides: Sequence[str], config_dir: str | None, stop: StopFlag) -> int:
    """Run the studies that Optuna asks for, one after the other, and print the best; return the exit status.

    A study's score is the accuracy of its last ticket on held-out images, or on the test set where none are held out.
    A study that fails has no score. Raises ConfigError where the package is missing, or Optuna refuses an option.
    """
    if find_spec("hydra_plugins") is None or find_spec(PLUGIN) is None:
        raise ConfigError("hydra/sweeper=optuna: the package is missing: pip install hydra-optuna-sweeper")
    scores: list[tuple[str, float, str]] = []  # overrides, accuracy, and what it is of
    failed: list[int] = []

    def study(_: DictConfig) -> float:
        """Run one study; return its score, NaN where it failed."""
        given = list(HydraConfig.get().overrides.task)
        name = " ".join(given)
        print(f"[{len(scores) + len(failed) + 1}] {name}", flush=True)
        found: list[DictConfig] = []

        def work() -> int:
            found.append(composed(given, config_dir))
            return run_composed(found[0], stop)

        status = reported(work, name)
        if stop:
            raise Interrupted(stop.signum or 0, "between two studies of Optuna")
        if status:
            failed.append(status)
            return float("nan")
        value, what = score_of(found[0])
        scores.append((name, value, what))
        return value

    told = any(override.lstrip("+").startswith(f"{DIRECTION}=") for override in overrides)
    added = [] if told else [f"{DIRECTION}=maximize"]
    try:
        with hydra_opened(config_dir):
            Plugins.instance()
            hydra: Any = GlobalHydra.instance().hydra
            hydra.multirun("config", study, [*as_written(overrides), *added], with_log_configuration=False)
    except (LotteryError, KeyboardInterrupt):
        raise
    except Exception as error:  # Optuna's, of an option, or because no study had a score
        if failed and not scores:
            return max(failed)
        raise ConfigError(f"hydra/sweeper=optuna: {cause(error)}") from error
    best = max(scores, key=lambda score: score[1])
    say(f"best of {len(scores)} studies: {best[0]}: {100 * best[1]:.2f} % ({best[2]} of the last ticket)")
    return max(failed, default=0)


def score_of(cfg: DictConfig) -> tuple[float, str]:
    """Return the accuracy of a finished study's last ticket, and in words on which images."""
    rows = [row for row in read_rows(Path(cfg.paths.runs) / cfg.name / study_key(cfg)) if row["control"] is None]
    held_out = rows[-1].get("val_accuracy")
    return (
        (float(rows[-1]["test_accuracy"]), "test accuracy") if held_out is None else (held_out, "validation accuracy")
    )
