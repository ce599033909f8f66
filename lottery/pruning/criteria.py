"""Criteria that look at the weights alone. Each gives every prunable weight a score; the lowest are pruned first.

Criteria that look at gradients are in `gradients`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lottery.pruning.scoring import Scoring


def magnitude(at: Scoring) -> dict[str, Tensor]:
    """Score by |w| (Han et al. 2015; the criterion of Frankle & Carbin 2019)."""
    return {name: weight.abs() for name, weight in at.weights.items()}


def random(at: Scoring) -> dict[str, Tensor]:
    """Score uniformly in [0, 1), in float64: among millions of weights float32 would draw many equal scores."""
    return {
        name: torch.rand(weight.shape, generator=at.generator, dtype=torch.float64)
        for name, weight in at.weights.items()
    }


def lamp(at: Scoring) -> dict[str, Tensor]:
    """Score by w² over the sum of the layer's kept w² that are no smaller (Lee et al. 2021, LAMP); float64, in [0, 1].

    Ranked globally, these scores also set the layer densities: the largest weight of every layer scores 1, so no layer
    is emptied before all others have a single weight left, and scaling a layer changes nothing.
    """
    return {name: _share_of_rest(weight, at.mask[name]) for name, weight in at.weights.items()}


def _share_of_rest(weight: Tensor, kept: Tensor) -> Tensor:
    squares, order = weight[kept].double().square().sort(stable=True)
    rest = squares.flip(0).cumsum(0).flip(0)  # sums from the largest down to each: subtracting would lose digits
    shares = torch.empty_like(squares)
    shares[order] = squares / rest.clamp_min(torch.finfo(torch.float64).tiny)  # a layer of zeros scores 0
    return torch.zeros(weight.shape, dtype=torch.float64).masked_scatter(kept, shares)
