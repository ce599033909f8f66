"""Accuracy on images that one gradient step has changed against the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lottery.data.dataset import Batch
from lottery.probes.images import LIMIT, Options, at_a_time, check_images
from lottery.ranges import option, such_that
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.training.evaluate import evaluate

EPSILON = such_that(lambda moved: 0 < moved <= 1, "a number > 0 and ≤ 1, of pixels in [0, 1]; 8/255 is 0.03137")


@dataclass(frozen=True)
class FGSM(Options):
    """`accuracy_fgsm`: accuracy on the test split after the fast gradient sign method (Goodfellow et al. 2015).

    epsilon: how far each pixel is moved, of pixels in [0, 1]; 8/255 as for FGSM in Liu et al. 2022
    limit:   how many of the test images, a fixed random choice; None for all
    """

    epsilon: float = option(8 / 255, EPSILON)
    limit: int | None = option(None, LIMIT)

    def check(self, lab: Bench) -> None:
        """Raise ConfigError where the data have no pixels in [0, 1]."""
        check_images(lab, "probes.fgsm")

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            network = lab.trained_network(round.trained)
            # The training's batch size is known to fit in memory with gradients.
            pixels = lab.watched(lab.data.pixels("test", lab.config.train.batch_size, self.limit))
            attacked = attack(network, pixels, lab.data.scaled, self.epsilon)
            return {"accuracy_fgsm": evaluate(network, attacked)[1]}

        inputs = {"version": 1, "state": round.trained.state.digest, "epsilon": self.epsilon, "limit": self.limit}
        return lab.evaluated("fgsm", inputs | at_a_time(lab, "batch_size"), compute)


def attack(
    network: nn.Module, batches: Iterable[Batch], scaled: Callable[[Tensor], Tensor], epsilon: float
) -> Iterator[Batch]:
    """Yield network inputs from pixels x + epsilon · sign(∇_x L(x, y)), clipped to [0, 1]; y are the true labels.

    A pixel with a gradient of 0 stays unchanged. The network keeps its mode.
    """
    for pixels, labels in batches:
        with torch.enable_grad():
            start = pixels.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(margin(network(scaled(start)).float(), labels).sum(), start)
        with torch.no_grad():
            moved = (pixels + epsilon * gradient.sign()).clamp(0, 1)
        yield scaled(moved), labels


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return m = log Σ_{j≠y} exp(z_j) - z_y of each image, [B].

    The cross-entropy is log(1 + exp(m)), which grows with m: both gradients have the same sign. But the cross-entropy's
    loses z_y's part in float32 where m < -17, and a network that is very sure would then seem robust.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, labels[:, None])[:, 0]
