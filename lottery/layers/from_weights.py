"""Criteria that score a unit by its weights (of convolutions, linear layers, attention projections), or by chance.

Jordao et al. 2023 ("When Layers Play the Lottery, all Tickets Win at Initialization") use weight-wise scores at
initialisation, and do not say how they combine them to a score of the layer. Here `agg` takes the "mean" (default) or
the "sum" over the unit's weights; units of equal size rank the same by both. Pruned weights count as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lottery.errors import ConfigError, LotteryError
from lottery.layers.scoring import UnitScoring, check_one_of
from lottery.pruning import gradients
from lottery.pruning.prunable import weight_shapes
from lottery.pruning.scoring import Scoring
from lottery.ticket import Mask

ROUNDING = 1e-5  # rounding error of a float32 sum, relative to the sum of its absolute terms
Aggregate = Literal["mean", "sum"]


def random(at: UnitScoring) -> dict[str, float]:
    """Score units uniformly in [0, 1), so that a random choice of them leaves."""
    draws = torch.rand(len(at.units), generator=at.generator, dtype=torch.float64)
    return dict(zip(at.units, draws.tolist(), strict=True))


def l1(at: UnitScoring, agg: Literal["filters", "mean", "sum"] = "mean") -> dict[str, float]:
    """Score by |w|, ≥ 0: the known bad baseline, since magnitudes depend on the stage (Jordao et al., appendix A.2).

    `agg="filters"` sums |w| over each filter (row of a linear layer), averages over a layer's filters, and sums over
    the unit's layers, as Jordao's public code does. "mean" and "sum" are over all the unit's weights. From stage to
    stage |w| falls and a filter's Σ|w| rises, so "filters" and "mean" rank the stages in opposite order.
    """
    check_one_of("agg", agg, ("filters", "mean", "sum"))
    weights = dict(at.network().named_parameters())
    sizes = {name: weights[name].detach().abs() for unit in at.units.values() for name in unit.weights}
    if agg == "filters":
        return _aggregated(at, {name: size.flatten(1).sum(1).mean() for name, size in sizes.items()}, "sum")
    return _aggregated(at, sizes, agg)


def snip(at: UnitScoring, agg: Aggregate = "mean", per_class: int = 10) -> dict[str, float]:
    """Score by |w · ∂L/∂w|, ≥ 0, of the mean cross-entropy of `per_class` images of each class (Lee et al. 2019)."""
    check_one_of("agg", agg, ("mean", "sum"))
    return _aggregated(at, gradients.snip(_weightwise(at), per_class), agg)


def snip_signed(at: UnitScoring, agg: Aggregate = "mean", per_class: int = 10) -> dict[str, float]:
    """Score by w · ∂L/∂w, of either sign: SNIP without the absolute value.

    Jordao et al. describe what they call GraSP this way; whether their code computes this or `grasp` is unverified. To
    first order, the sum is the fall of the loss if the unit's weights were 0. Taken literally, the rule removes first
    the units whose removal raises the loss most.

    Batch normalisation uses the network's statistics (at initialisation mean 0 and variance 1). With the sample's, the
    weights' scale would not matter, and w · ∂L/∂w would add up to 0 in every filter. LotteryError where the sums are 0
    nevertheless (group normalisation), since rounding errors alone would be ranked.
    """
    check_one_of("agg", agg, ("mean", "sum"))
    signed = gradients.sensitivity(_weightwise(at), per_class, by_sample=False)
    scores = _aggregated(at, signed, agg)
    sizes = _aggregated(at, {name: score.abs() for name, score in signed.items()}, agg)
    if all(abs(scores[unit]) <= ROUNDING * sizes[unit] for unit in at.units):
        raise LotteryError("method.criterion: snip_signed: adds up to 0 in every unit; choose layer_criterion=snip")
    return scores


def grasp(
    at: UnitScoring, agg: Aggregate = "mean", per_class: int = 10, temperature: float = 200.0
) -> dict[str, float]:
    """Score by w · Hg, of either sign: gradient g and Hessian H in all the network's weights (Wang et al. 2020, GraSP).

    To first order, twice the sum is the fall of |g|² if the unit's weights were 0, so the units without which the
    gradient is largest leave first. Sample, temperature and sign follow `lottery.pruning.gradients.grasp`. In a layer
    before batch normalisation the sum is -|g|² of that layer, because the loss does not depend on the layer's scale;
    there the units with the largest gradients leave first.
    """
    check_one_of("agg", agg, ("mean", "sum"))
    if not temperature > 0:
        raise ConfigError.of("method.criterion.temperature", temperature, "a number > 0")
    return _aggregated(at, gradients.grasp(_weightwise(at), per_class, temperature), agg)


def _weightwise(at: UnitScoring) -> Scoring:
    """Return a weight criterion's input: the whole network, so a unit's score does not depend on other candidates."""
    network = at.network()
    shapes = weight_shapes(network)
    weights = {name: network.get_parameter(name).detach() for name in shapes}
    return Scoring(weights, Mask.ones(shapes), at.generator, at.network, at.sample, at.shape)


def _aggregated(at: UnitScoring, scores: Mapping[str, Tensor], agg: Aggregate) -> dict[str, float]:
    found = {}
    for unit in at.units.values():
        count = sum(scores[name].numel() for name in unit.weights)
        if not count:
            raise LotteryError(f"method.criterion: unit {unit.name!r} has no convolution or linear weights to score")
        total = sum(float(scores[name].cpu().double().sum()) for name in unit.weights)
        found[unit.name] = total / count if agg == "mean" else total
    return found
