"""What a criterion may look at when it scores the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lottery.ticket import Mask


@dataclass(frozen=True)
class Scoring:
    """The network at the moment of scoring.

    weights:   the prunable weights, by parameter name (read them, do not change them)
    mask:      what is kept so far; the scores of pruned weights are never looked at
    generator: the stream for criteria that draw random numbers, on the CPU
    """

    weights: Mapping[str, Tensor]
    mask: Mask
    generator: torch.Generator


Criterion = Callable[[Scoring], dict[str, Tensor]]
"""Gives each prunable weight a real score; the weights with the lowest scores are pruned first."""
