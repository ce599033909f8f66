"""Criteria that look at the weights alone. Each gives every prunable weight a score; the lowest are pruned first.

Those that look at gradients are in `gradients`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lottery.pruning.scoring import Scoring


def magnitude(at: Scoring) -> dict[str, Tensor]:
    """|w| (Han et al. 2015; the criterion of Frankle & Carbin 2019)."""
    return {name: weight.abs() for name, weight in at.weights.items()}


def random(at: Scoring) -> dict[str, Tensor]:
    """Uniform in [0, 1). In float64: among millions of weights float32 would draw many equal scores."""
    return {
        name: torch.rand(weight.shape, generator=at.generator, dtype=torch.float64)
        for name, weight in at.weights.items()
    }


def lamp(at: Scoring) -> dict[str, Tensor]:
    """w² over the sum of the kept w² of the layer that are no smaller (Lee et al. 2021, LAMP); float64, in [0, 1].

    Ranked globally this gives layers their densities by itself: the largest weight of every layer scores 1, so that no
    layer is pruned empty before all others have a single weight, and scaling a layer changes nothing.
    """
    return {name: _share_of_rest(weight, at.mask[name]) for name, weight in at.weights.items()}


def _share_of_rest(weight: Tensor, kept: Tensor) -> Tensor:
    squares, order = weight[kept].double().square().sort(stable=True)
    rest = squares.flip(0).cumsum(0).flip(0)  # summed up to each from the largest: subtracting would lose digits
    shares = torch.empty_like(squares)
    shares[order] = squares / rest.clamp_min(torch.finfo(torch.float64).tiny)  # a layer of zeros scores 0
    return torch.zeros(weight.shape, dtype=torch.float64).masked_scatter(kept, shares)
