"""Loss and accuracy of a network over a split, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Tally:
    """Sums over the batches of a split that were measured so far."""

    loss: float = 0.0  # cross-entropy, nats
    correct: float = 0.0  # images classified correctly
    count: float = 0.0  # images
    batches: int = 0


def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy in [0, 1] over all batches; restore the network's mode."""
    tally = Tally()
    add_(tally, network, batches)
    if not tally.count:
        raise ValueError("evaluate: no batches")
    return tally.loss / tally.count, tally.correct / tally.count


@torch.no_grad()
def add_(tally: Tally, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add batches to a tally; if `batches` raises, the batches before are still added. The mode is restored.

    Sums stay on the device and are read once, so that measuring costs one synchronisation.
    """
    was_training = network.training
    network.eval()
    sums = torch.tensor([tally.loss, tally.correct], dtype=torch.float64)
    try:
        for images, labels in batches:
            logits = network(images).float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(1) == labels).sum()
            sums = torch.stack((loss.double(), correct.double())) + sums.to(labels.device)
            tally.count += len(labels)
            tally.batches += 1
    finally:
        network.train(was_training)
        tally.loss, tally.correct = sums.tolist()
