"""Options and image checks that several probes share."""

from __future__ import annotations

from lottery.config import Train
from lottery.errors import ConfigError
from lottery.ranges import Checked, such_that
from lottery.stages.bench import Bench

LIMIT = such_that(lambda limit: limit is None or limit >= 1, "a number of test images ≥ 1, or null for all")


class Options(Checked):
    """Base of a probe's dataclass. Errors get `probes.NAME` before an option's name where the probe is instantiated."""

    of = ""


def check_images(lab: Bench, key: str) -> None:
    """Raise ConfigError, naming the probe by its `key`, unless the data are images [C, H, W] with pixels in [0, 1]."""
    try:
        lab.data.pixels("test", 1)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    if len(lab.data.shape) != 3:
        raise ConfigError(f"{key}: data.shape: got {list(lab.data.shape)}, expected images, [C, H, W]")


def at_a_time(lab: Bench, option: str = "eval_batch_size") -> dict[str, int]:
    """Return how many images are measured at a time, as an input of a stage: it changes the last digits.

    The default gives no entry, so that figures measured before this input existed are still found.
    """
    size = getattr(lab.config.train, option)
    return {} if size == getattr(Train, option) else {option: size}
