"""Conversion to float64, for sums."""

from __future__ import annotations

from torch import Tensor


def precise(tensor: Tensor) -> Tensor:
    """Convert to float64; on the CPU if the tensor's device (Apple's GPU) has no float64."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
