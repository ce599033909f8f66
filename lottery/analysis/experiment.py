"""Which options runs of one experiment share: all but seeds, controls and probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Runs of one experiment may differ in these options: they draw random numbers, or change no ticket.
FREE = ("seed", "seeds", "controls", "probes")


def fixed(leaves: Mapping[str, Any], *free: str) -> dict[str, Any]:
    """Return the options (dotted key -> value) that runs of one experiment share, less those in the groups `free`."""
    from lottery.config import INFRASTRUCTURE  # it imports Hydra

    left_out = (*FREE, *INFRASTRUCTURE, *free)
    return {
        key: value
        for key, value in leaves.items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
