"""Criteria that compare the network's outputs with and without a unit: they build and run one network per unit."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lottery.layers.scoring import UnitScoring, check_one_of, pieces, settled_
from lottery.stability.precision import precise

Direction = Literal["without_full", "full_without"]


def kl(at: UnitScoring, per_class: int = 10, direction: Direction = "full_without") -> dict[str, float]:
    """Score each unit by the KL divergence between the class probabilities with and without it, ≥ 0.

    With p of the whole network and q without the unit, "without_full" is KL(q || p), as in Jordao's public code;
    "full_without" is KL(p || q). Mean over `per_class` images of each class. Luo & Wu 2020 (CURL) score filters so.
    """
    check_one_of("direction", direction, ("without_full", "full_without"))
    images, _ = at.sample(per_class)
    whole = _log_probabilities(at.network(), images)

    def divergence(unit: str) -> float:
        without = _log_probabilities(at.without(unit), images)
        first, second = (without, whole) if direction == "without_full" else (whole, without)
        return float(F.kl_div(second, first, reduction="batchmean", log_target=True))

    return {unit: divergence(unit) for unit in at.units}


def loss(at: UnitScoring, per_class: int = 10) -> dict[str, float]:
    """Score each unit by how much the mean cross-entropy of `per_class` images of each class rises without it."""
    images, labels = at.sample(per_class)
    whole = float(F.nll_loss(_log_probabilities(at.network(), images), labels))
    return {unit: float(F.nll_loss(_log_probabilities(at.without(unit), images), labels)) - whole for unit in at.units}


@torch.no_grad()
def _log_probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """Return log-probabilities [N, classes] in float64. Puts the network into `settled_` mode."""
    settled_(network)
    return torch.cat([precise(network(part)).log_softmax(1) for part in pieces(images)])
