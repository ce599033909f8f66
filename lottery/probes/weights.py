"""How far training moved the kept weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lottery.stages.lab import Lab
    from lottery.stages.round import Round


def distance(round: Round, previous: Round | None, lab: Lab) -> dict[str, float]:
    """Between the ticket's start and its trained state, kept weights only: L2 distance, the angle between the two
    weight vectors in degrees, and the share of weights whose sign changed (Stabilizing the LTH, section 2)."""
    start, end = round.ticket.state.tensors(), round.trained.state.tensors()
    a = torch.cat([start[name][kept].double() for name, kept in round.mask.items()])
    b = torch.cat([end[name][kept].double() for name, kept in round.mask.items()])
    if not a.numel():
        return {}
    cosine = float(a @ b / (a.norm() * b.norm()).clamp_min(1e-300))
    return {
        "l2_from_start": float((a - b).norm()),
        "angle_from_start": math.degrees(math.acos(min(1.0, max(-1.0, cosine)))),
        "sign_changes": float((a.sign() != b.sign()).double().mean()),
    }
