"""Accuracy on images that were changed against the network by one gradient step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lottery.errors import ConfigError
from lottery.probes.images import check_images, check_limit
from lottery.training.evaluate import evaluate

if TYPE_CHECKING:
    from lottery.data.dataset import Batch
    from lottery.stages.lab import Lab
    from lottery.stages.round import Round


@dataclass(frozen=True)
class FGSM:
    """`accuracy_fgsm`: on the test split after the fast gradient sign method (Goodfellow et al. 2015).

    epsilon: how far each pixel is moved, of pixels in [0, 1]; 8/255 as in methods.md 3.2
    limit:   how many of the test images, a fixed random choice; None for all
    """

    epsilon: float = 8 / 255
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ConfigError.of("epsilon", self.epsilon, "a number > 0 and ≤ 1, of pixels in [0, 1]; 8/255 is 0.03137")
        check_limit(self.limit)

    def check(self, lab: Lab) -> None:
        """Raise ConfigError where the data have no pixels in [0, 1]."""
        check_images(lab, "probes.fgsm")

    def __call__(self, round: Round, previous: Round | None, lab: Lab) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            network = lab.trained_network(round.trained)
            # As many images at a time as were trained on: that many are known to fit with their gradients.
            pixels = lab.watched(lab.data.pixels("test", lab.config.train.batch_size, self.limit))
            attacked = attack(network, pixels, lab.data.scaled, self.epsilon)
            return {"accuracy_fgsm": evaluate(network, attacked)[1]}

        inputs = {"version": 1, "state": round.trained.state.digest, "epsilon": self.epsilon, "limit": self.limit}
        return lab.evaluated("fgsm", inputs, compute)


def attack(
    network: nn.Module, batches: Iterable[Batch], scaled: Callable[[Tensor], Tensor], epsilon: float
) -> Iterator[Batch]:
    """Network inputs from pixels x + epsilon · sign(∇_x L(x, y)), clipped to [0, 1]; y are the true labels.

    Where the gradient is 0 the pixel stays. The network is asked in the mode it is in.
    """
    for pixels, labels in batches:
        with torch.enable_grad():
            start = pixels.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(margin(network(scaled(start)).float(), labels).sum(), start)
        with torch.no_grad():
            moved = (pixels + epsilon * gradient.sign()).clamp(0, 1)
        yield scaled(moved), labels


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """m = log Σ_{j≠y} exp(z_j) - z_y of each image, [B].

    The cross-entropy is log(1 + exp(m)), which grows with m: their gradients have the same sign. But that of the
    cross-entropy loses z_y's part in float32 where m < -17, and then a network that is very sure seems robust.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, labels[:, None])[:, 0]
