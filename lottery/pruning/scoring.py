"""What a criterion may look at when it scores the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lottery.ticket import Mask

if TYPE_CHECKING:
    from lottery.data.dataset import Batch


@dataclass(frozen=True)
class Scoring:
    """The network at the moment of scoring.

    weights:   the prunable weights, by parameter name (read them, do not change them)
    mask:      what is kept so far; the scores of pruned weights are never looked at
    generator: the stream for criteria that draw random numbers, on the CPU
    network:   gives a private copy of the network, its pruned weights zero, on the training device, in training mode
    sample:    gives that many training images of each class, not augmented, and their labels, in a random order
    shape:     of one image
    """

    weights: Mapping[str, Tensor]
    mask: Mask
    generator: torch.Generator
    network: Callable[[], nn.Module]
    sample: Callable[[int], Batch]
    shape: tuple[int, ...]


Criterion = Callable[[Scoring], dict[str, Tensor]]
"""Gives each prunable weight a real score; the weights with the lowest scores are pruned first."""


def in_steps(steps: int) -> Callable[[Criterion], Criterion]:
    """Marks a criterion whose authors prune in so many steps, with new scores before each."""

    def marked(criterion: Criterion) -> Criterion:
        criterion.steps = steps  # type: ignore[attr-defined]
        return criterion

    return marked


def layers(network: nn.Module, at: Scoring) -> dict[str, nn.Parameter]:
    """The parameters of `network` that are scored."""
    named = dict(network.named_parameters())
    return {name: named[name] for name in at.mask}
