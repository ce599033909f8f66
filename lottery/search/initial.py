"""The scores that a search starts from, one tensor for each tensor of weights and never in its storage.

Scores that shared their weights' storage would move with them: so in BiP's released code, whose mask is therefore
the top of |θ| whatever the scores' gradient says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

LOW, HIGH = 0.99, 1.0  # of `two_level`: zyxxmu/lottery-jackpots


@torch.no_grad()
def magnitude(weights: Sequence[Tensor]) -> list[Tensor]:
    """|θ|."""
    return [weight.abs() for weight in weights]


@torch.no_grad()
def scaled(weights: Sequence[Tensor]) -> list[Tensor]:
    """√(6 / fan_in) · |θ| / max|θ|, tensor by tensor (HYDRA's scaled initialisation); fan_in = inputs · kernel size.

    The original scales θ itself. Here it is |θ|, since the masks of BiP's algorithm are the top of the signed scores,
    and a large negative weight is no worse than a large positive one. A tensor of zeros has scores of 0.
    """
    return [_scaled(weight.abs(), math.sqrt(6 / weight[0].numel())) for weight in weights]


def _scaled(size: Tensor, bound: float) -> Tensor:
    return size.div_(size.max().clamp_(min=torch.finfo(size.dtype).tiny)).mul_(bound)


@torch.no_grad()
def two_level(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """0.99 where the mask is 0 and 1 where it is 1 (jackpots), in the weights' dtype."""
    return [
        torch.full_like(weight, LOW).masked_fill_(mask.bool(), HIGH)
        for weight, mask in zip(weights, masks, strict=True)
    ]


def kaiming_uniform(shapes: Sequence[torch.Size], generator: torch.Generator) -> list[Tensor]:
    """U(-1/√fan_in, 1/√fan_in), float32 on the CPU: torch's Kaiming uniform with a = √5 (edge-popup)."""
    return [nn.init.kaiming_uniform_(torch.empty(shape), math.sqrt(5), generator=generator) for shape in shapes]


def uniform(shapes: Sequence[torch.Size], generator: torch.Generator) -> list[Tensor]:
    """U(0, 1), float32 on the CPU."""
    return [torch.rand(shape, generator=generator) for shape in shapes]


def _drawn(draw: Callable[[Sequence[torch.Size], torch.Generator], list[Tensor]]) -> Initial:
    """Scores that are drawn for these weights' shapes, on their device and in their dtype."""

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
