"""Criteria that score a unit by its weights, or by chance.

A unit's weights are those of its convolutions, linear layers and attention projections. Jordao et al. 2023 ("When
Layers Play the Lottery, all Tickets Win at Initialization") take weight-wise scores at initialisation and do not say
how they come from weights to a layer: `agg` is "mean" (the default) or "sum" over the unit's weights. Units of equal
size rank the same by both, so it matters between stages only. Weights that are pruned are 0, and count.
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

ROUNDING = 1e-5  # of a sum of float32, as a share of the sum of its absolute terms
Aggregate = Literal["mean", "sum"]


def random(at: UnitScoring) -> dict[str, float]:
    """Uniform in [0, 1): any units may leave."""
    draws = torch.rand(len(at.units), generator=at.generator, dtype=torch.float64)
    return dict(zip(at.units, draws.tolist(), strict=True))


def l1(at: UnitScoring, agg: Aggregate = "mean") -> dict[str, float]:
    """|w|, ≥ 0. The known bad baseline: magnitudes depend on the stage (Jordao et al., appendix A.2)."""
    check_one_of("agg", agg, ("mean", "sum"))
    weights = dict(at.network().named_parameters())
    return _aggregated(at, {name: weights[name].detach().abs() for name in _weights(at)}, agg)


def snip(at: UnitScoring, agg: Aggregate = "mean", per_class: int = 10) -> dict[str, float]:
    """|w · ∂L/∂w|, ≥ 0, of the mean cross-entropy of `per_class` images of each class (Lee et al. 2019)."""
    check_one_of("agg", agg, ("mean", "sum"))
    return _aggregated(at, gradients.snip(_weightwise(at), per_class), agg)


def snip_signed(at: UnitScoring, agg: Aggregate = "mean", per_class: int = 10) -> dict[str, float]:
    """w · ∂L/∂w, of either sign: SNIP without the absolute value.

    So Jordao et al. describe what they call GraSP; whether their code computes this or `grasp` is unverified. The sum
    is, to first order, by how much the loss would fall if the unit's weights were 0: taken at its word the rule removes
    first what the loss would miss most.

    Batch normalisation takes the network's statistics here, at initialisation mean 0 and variance 1: by the sample's
    own, the scale of the weights before it is of no consequence, and w · ∂L/∂w adds up to 0 in every filter. Where it
    does nevertheless (group normalisation), there is nothing but rounding to rank: LotteryError.
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
    """w · Hg, gradient g and Hessian H in all the network's weights (Wang et al. 2020, GraSP), of either sign.

    Twice the sum is, to first order, by how much |g|² would fall if the unit's weights were 0: those units leave first
    without which the gradient is largest. Sample, temperature and sign as in the criterion for weights,
    `lottery.pruning.gradients.grasp`. For a layer that batch normalisation follows the sum is -|g|² of that layer,
    because the loss does not depend on the layer's scale: the units with the largest gradients leave first.
    """
    check_one_of("agg", agg, ("mean", "sum"))
    if not temperature > 0:
        raise ConfigError.of("method.criterion.temperature", temperature, "a number > 0")
    return _aggregated(at, gradients.grasp(_weightwise(at), per_class, temperature), agg)


def _weights(at: UnitScoring) -> list[str]:
    return [name for unit in at.units.values() for name in unit.weights]


def _weightwise(at: UnitScoring) -> Scoring:
    """The same moment for a criterion that scores weights: all of the network, so that a unit's score does not depend
    on which other units are candidates.
    """
    network = at.network()
    shapes = weight_shapes(network)
    named = dict(network.named_parameters())
    weights = {name: named[name].detach() for name in shapes}
    return Scoring(weights, Mask.ones(shapes), at.generator, at.network, at.sample, at.shape)


def _aggregated(at: UnitScoring, scores: Mapping[str, Tensor], agg: Aggregate) -> dict[str, float]:
    """The mean or the sum of the scores of each unit's weights, in float64."""
    found = {}
    for unit in at.units.values():
        count = sum(scores[name].numel() for name in unit.weights)
        if not count:
            raise LotteryError(f"method.criterion: unit {unit.name!r} has no convolution or linear weights to score")
        total = sum(float(scores[name].cpu().double().sum()) for name in unit.weights)
        found[unit.name] = total / count if agg == "mean" else total
    return found
