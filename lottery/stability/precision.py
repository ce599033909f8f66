"""Sums in float64."""

from __future__ import annotations

from torch import Tensor


def precise(tensor: Tensor) -> Tensor:
    """In float64; on the CPU where its device (Apple's GPU) has none."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
