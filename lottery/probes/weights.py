"""How far training moved the kept weights, their distance from the dense network's, and how unequal they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lottery.stability.weights import distance as distance_of
from lottery.stability.weights import least_density, pq_by_layer, pq_index
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.state import StateRef
from lottery.ticket import Mask


def distance(round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
    """Return L2 distance, angle in degrees and share of changed signs from the ticket's start to its trained state.

    Of kept weights only; the angle is between the weight vectors (Stabilizing the LTH, section 2).
    """
    return between(round.ticket.state, round.trained.state, round.mask, "from_start")


def from_dense(round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
    """Return distance, angle and sign changes between the trained dense network and this round's."""
    return between(lab.dense.trained.state, round.trained.state, round.mask, "from_dense") if round.index else {}


def between(one: StateRef, other: StateRef, mask: Mask, name: str) -> dict[str, Any]:
    """Return the figures l2_NAME, angle_NAME and sign_changes_NAME (from the start: sign_changes)."""
    found = distance_of(one.tensors(), other.tensors(), mask)
    if found is None:
        return {}
    signs = "sign_changes" if name == "from_start" else f"sign_changes_{name}"
    return {f"l2_{name}": found.l2, f"angle_{name}": found.angle, signs: found.sign_changes}


@dataclass(frozen=True)
class PQ:
    """`pq_layers`: the PQ index of each layer's kept weights after training (Diao et al. 2023), 0 < p < q.

    `pq_least_layers`: the least share of these weights to keep, by the bound that the index gives.
    """

    p: float = 0.5
    q: float = 1.0

    def __post_init__(self) -> None:
        import numpy as np

        pq_index(np.ones(1), self.p, self.q)  # raises ConfigError for other p and q

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        found = pq_by_layer(round.trained.state.tensors(), round.mask, self.p, self.q)
        least = {name: None if index is None else least_density(index, self.p, self.q) for name, index in found.items()}
        return {"pq_layers": found, "pq_least_layers": least}
