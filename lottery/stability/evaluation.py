"""Loss and error of many states of one network in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lottery.stability.precision import precise
from lottery.state import State

Batch = tuple[Tensor, Tensor]  # images [B, *shape], labels int64 [B]


@torch.no_grad()
def scores(network: nn.Module, states: Sequence[State], batches: Iterable[Batch]) -> list[tuple[float, float]]:
    """Mean cross-entropy (nats) and error in [0, 1] of each state, in evaluation mode; `network` is left as it was.

    States, network and batches lie on one device. Sums stay there, and are read once.
    """
    was_training = network.training
    network.eval()
    sums: Tensor | None = None
    count = 0
    try:
        for images, labels in batches:
            logits = (functional_call(network, state, (images,), tie_weights=False) for state in states)
            tallied = torch.stack([_tally(of, labels) for of in logits])
            sums = tallied if sums is None else sums + tallied
            count += len(labels)
    finally:
        network.train(was_training)
    if sums is None:
        raise ValueError("scores: no batches")
    return [(loss / count, error / count) for loss, error in sums.tolist()]


def _tally(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy and number of errors, float64 [2]."""
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return precise(torch.stack((loss, (logits.argmax(1) != labels).sum())))


def states_at_once(state: State, budget: int = 256 * 2**20) -> int:
    """How many such states fit into `budget` bytes, at least one; 256 MiB are 240 LeNets or two ResNet-50."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return max(1, budget // max(1, size))
