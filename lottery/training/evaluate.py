"""Loss and accuracy of a network over a split, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy in [0, 1] over all batches; the mode is restored afterwards."""
    loss, correct, count = tallied(network, batches)
    if not count:
        raise ValueError("evaluate: no batches")
    return loss / count, correct / count


@torch.no_grad()
def tallied(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float, float]:
    """The sum of the cross-entropy (nats), how many are classified correctly, and of how many, over all batches.

    Sums stay on the device and are read once, so that evaluating costs one synchronisation.
    """
    was_training = network.training
    network.eval()
    sums: Tensor | None = None
    count = 0
    for images, labels in batches:
        logits = network(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(1) == labels).sum()
        batch = torch.stack((loss.double(), correct.double()))
        sums = batch if sums is None else sums + batch
        count += len(labels)
    network.train(was_training)
    loss_sum, correct_sum = (0.0, 0.0) if sums is None else sums.tolist()
    return loss_sum, correct_sum, count
