"""Criteria: each gives every prunable weight a score, and the lowest scores are pruned first."""

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
