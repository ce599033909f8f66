"""The initial scores of a search: for each tensor of weights one tensor, which does not share its storage.

Scores in the weights' storage would change with the weights, as in BiP's released code (`method.variant=repo`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

LOW, HIGH = 0.99, 1.0  # the values of `two_level`, from zyxxmu/lottery-jackpots


@torch.no_grad()
def magnitude(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return |θ|."""
    return [weight.abs() for weight in weights]


@torch.no_grad()
def scaled(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return √(6 / fan_in) · |θ| / max|θ| per tensor (HYDRA's scaled initialisation); fan_in = inputs · kernel size.

    HYDRA scales θ itself. Here |θ| is scaled, since BiP's algorithm takes the top of the signed scores, and a large
    negative weight is as good as a large positive one. A tensor of zeros has scores of 0.
    """
    found = magnitude(weights)
    for weight, size in zip(weights, found, strict=True):
        largest = size.max().clamp_(min=torch.finfo(size.dtype).tiny)
        size.div_(largest).mul_(math.sqrt(6 / weight[0].numel()))
    return found


@torch.no_grad()
def two_level(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Return 0.99 where the mask is 0 and 1 where it is 1 (jackpots), in the weights' dtype."""
    return [
        torch.full_like(weight, LOW).masked_fill_(mask.bool(), HIGH)
        for weight, mask in zip(weights, masks, strict=True)
    ]


def kaiming_uniform(shapes: Sequence[torch.Size], generator: torch.Generator) -> list[Tensor]:
    """Draw U(-1/√fan_in, 1/√fan_in), float32 on the CPU: torch's Kaiming uniform with a = √5 (edge-popup)."""
    return [nn.init.kaiming_uniform_(torch.empty(shape), math.sqrt(5), generator=generator) for shape in shapes]


def uniform(shapes: Sequence[torch.Size], generator: torch.Generator) -> list[Tensor]:
    """Draw U(0, 1), float32 on the CPU."""
    return [torch.rand(shape, generator=generator) for shape in shapes]


def _drawn(draw: Callable[[Sequence[torch.Size], torch.Generator], list[Tensor]]) -> Initial:
    """Return an initialiser that calls `draw` with the weights' shapes, and moves scores to their device and dtype."""

    def initial(weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        drawn = draw([weight.shape for weight in weights], generator)
        return [scores.to(weight) for scores, weight in zip(drawn, weights, strict=True)]

    return initial


Initial = Callable[[Sequence[Tensor], torch.Generator], list[Tensor]]

INITIAL: Mapping[str, Initial] = {
    "scaled": lambda weights, generator: scaled(weights),
    "magnitude": lambda weights, generator: magnitude(weights),
    "kaiming_uniform": _drawn(kaiming_uniform),
    "uniform": _drawn(uniform),
}
