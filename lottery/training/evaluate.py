"""Loss and accuracy of a network over a split, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy in [0, 1] over all batches; the mode is restored afterwards.

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
    if sums is None:
        raise ValueError("evaluate: no batches")
    loss_sum, correct_sum = sums.tolist()
    return loss_sum / count, correct_sum / count
