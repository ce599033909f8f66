"""The size of the gradient where a training starts."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lottery.data.dataset import Batch
from lottery.data.order import check_per_class
from lottery.seeding import derive
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.ticket import Mask


@dataclass(frozen=True)
class GradientNorm:
    """`gradient_norm_start`: L2 norm of the loss's gradient with respect to the kept weights, at the ticket's start.

    The loss is the mean cross-entropy of `per_class` training images of each class, not augmented, chosen by `seed`
    alone. The network is in training mode. Normalisation is over pieces no larger than a training batch.
    """

    per_class: int = 10
    seed: int = 0

    def check(self, lab: Bench) -> None:
        """Raise ConfigError where a class has fewer training images."""
        check_per_class(lab.data.class_sizes, self.per_class, "probes.gradient_norm.per_class")

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        size = lab.config.train.batch_size

        def compute() -> dict[str, Any]:
            network = lab.start_network(round.ticket)
            sample = lab.data.sample(self.per_class, self.seed, "probes.gradient_norm.per_class")
            return {"gradient_norm_start": gradient_norm(network, round.mask, sample, size, self.seed)}

        inputs = {
            "version": 1,
            "state": round.ticket.state.digest,
            "mask": round.mask.digest,
            "per_class": self.per_class,
            "seed": self.seed,
            "batch_size": size,
        }
        if round.ticket.removed:
            inputs["removed"] = sorted(round.ticket.removed)
        if round.ticket.silent:
            inputs["silent"] = True
        return lab.evaluated("gradient norm", inputs, compute)


def gradient_norm(network: nn.Module, mask: Mask, sample: Batch, size: int, seed: int) -> float:
    """Return the norm over all kept weights together, summed in float64. Puts the network in training mode.

    Running statistics change; dropout noise depends on `seed`. Unused weights have gradient 0; frozen ones count.
    """
    network.train()
    images, labels = sample
    named = dict(network.named_parameters())
    weights = [named[name].requires_grad_() for name in mask]
    total = [torch.zeros_like(weight) for weight in weights]
    pieces = ceil(len(labels) / size)
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(derive(seed, "gradient norm"))
        for part, truth in zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True):
            loss = cross_entropy(network(part).float(), truth, reduction="sum") / len(labels)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            for so_far, gradient in zip(total, gradients, strict=True):
                so_far.add_(gradient)
    kept = (gradient[mask[name].to(gradient.device)] for name, gradient in zip(mask, total, strict=True))
    return sum(float(gradient.cpu().double().square().sum()) for gradient in kept) ** 0.5
