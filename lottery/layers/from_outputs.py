"""Criteria that run the network without each unit and look at what comes out: one network built and run a unit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lottery.layers.scoring import UnitScoring, pieces, settled_
from lottery.stability.precision import precise


def kl(at: UnitScoring, per_class: int = 10) -> dict[str, float]:
    """KL(p || q), ≥ 0: class probabilities p of the network, q of the network without the unit; mean over images.

    `per_class` images of each class. Luo & Wu 2020 (CURL) score filters so; Jordao et al. say "divergence of outputs"
    and leave direction and sample open.
    """
    images, _ = at.sample(per_class)
    whole = _log_probabilities(at.network(), images)

    def divergence(unit: str) -> float:
        without = _log_probabilities(at.without(unit), images)
        return float(F.kl_div(without, whole, reduction="batchmean", log_target=True))

    return {unit: divergence(unit) for unit in at.units}


def loss(at: UnitScoring, per_class: int = 10) -> dict[str, float]:
    """By how much the mean cross-entropy of `per_class` images of each class rises when the unit is skipped.

    Negative for a unit without which the network is better: it leaves first.
    """
    images, labels = at.sample(per_class)
    whole = float(F.nll_loss(_log_probabilities(at.network(), images), labels))
    return {unit: float(F.nll_loss(_log_probabilities(at.without(unit), images), labels)) - whole for unit in at.units}


@torch.no_grad()
def _log_probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """[N, classes], in float64; the network is put into `settled_` mode."""
    settled_(network)
    return torch.cat([precise(network(part)).log_softmax(1) for part in pieces(images)])
