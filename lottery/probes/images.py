"""What the probes that change images have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lottery.errors import ConfigError

if TYPE_CHECKING:
    from lottery.stages.lab import Lab


def check_images(lab: Lab, key: str) -> None:
    """Raise ConfigError, naming the probe by its `key`, unless the data are images [C, H, W] with pixels in [0, 1]."""
    try:
        lab.data.pixels("test", 1)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    if len(lab.data.shape) != 3:
        raise ConfigError(f"{key}: data.shape: got {list(lab.data.shape)}, expected images, [C, H, W]")


def check_limit(limit: int | None) -> None:
    """Raise ConfigError unless `limit` is a number of test images, or None for all."""
    if limit is not None and limit < 1:
        raise ConfigError.of("limit", limit, "a number of test images ≥ 1, or null for all")
