"""The input of criteria that score the weights."""

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

    weights:   the prunable weights, by parameter name (read only)
    mask:      the weights kept so far; scores of pruned weights are ignored
    generator: the random stream for criteria that draw numbers, on the CPU
    network:   returns a private copy of the network, its pruned weights zero, on the training device, in training mode
    sample:    returns that many training images of each class, not augmented, and their labels, in a random order
    shape:     shape of one image
    """

    weights: Mapping[str, Tensor]
    mask: Mask
    generator: torch.Generator
    network: Callable[[], nn.Module]
    sample: Callable[[int], Batch]
    shape: tuple[int, ...]


Criterion = Callable[[Scoring], dict[str, Tensor]]
"""Returns a real score for each prunable weight; the weights with the lowest scores are pruned first."""


def in_steps(steps: int) -> Callable[[Criterion], Criterion]:
    """Mark a criterion whose authors prune in `steps` steps, with new scores before each."""

    def marked(criterion: Criterion) -> Criterion:
        criterion.steps = steps  # type: ignore[attr-defined]
        return criterion

    return marked


def layers(network: nn.Module, at: Scoring) -> dict[str, nn.Parameter]:
    """Return the parameters of `network` that are scored."""
    named = dict(network.named_parameters())
    return {name: named[name] for name in at.mask}
