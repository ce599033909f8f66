"""Accuracy on corrupted images: noise, blur, contrast and brightness, at five severities each.

The definitions and strengths are those of CIFAR-10-C (Hendrycks and Dietterich 2019), as in its script
`make_cifar_c.py`: `gaussian_noise`, `gaussian_blur` (one of its four extra corruptions), `contrast` and `brightness`,
each clipped to [0, 1] and cut off to 8 bits. Where this differs:

- Noise is drawn from other random streams, one a severity. It is the same for every network.
- CIFAR-10-C has 32x32 colour images; here images of every size and number of channels are corrupted with the same
  parameters. So large images are blurred less than in ImageNet-C. One channel is its own brightness (HSV value).
- Cutting off allows for rounding: a value up to a thousandth of a grey level below a level is that level. The script
  computes in float64 and this in float32, so single pixels may differ by one level.
- Only these four of its nineteen corruptions: the mean over them is no "mCE".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lottery.data.dataset import Batch
from lottery.probes.images import LIMIT, Options, at_a_time, check_images
from lottery.ranges import option
from lottery.seeding import derive
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.training.evaluate import evaluate

Corruption = Callable[[Tensor], Tensor]  # of pixels [B, C, H, W]; called with the images in order, each once

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruptions(Options):
    """Accuracy on the test split under noise, blur, contrast and brightness.

    `accuracy_noise`, `accuracy_blur`, `accuracy_contrast` and `accuracy_brightness` are means over five severities,
    `accuracy_corrupted` is the mean of the four. The stage's result.json has each severity (`accuracy_noise_3`).

    limit: how many of the test images, a fixed random choice; None for all
    """

    limit: int | None = option(None, LIMIT)

    def check(self, lab: Bench) -> None:
        """Raise ConfigError where the data have no pixels in [0, 1]."""
        check_images(lab, "probes.corruptions")

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            network, found = lab.trained_network(round.trained), {}
            for kind in CORRUPTIONS:
                for severity in SEVERITIES:
                    pixels = lab.watched(lab.data.pixels("test", lab.config.train.eval_batch_size, self.limit))
                    _, accuracy = evaluate(network, corrupted(pixels, kind, severity, lab.data.scaled))
                    found[f"accuracy_{kind}_{severity}"] = accuracy
            return found

        inputs = {"version": 1, "state": round.trained.state.digest, "limit": self.limit, **at_a_time(lab)}
        found = lab.evaluated("corruptions", inputs, compute)
        means = {kind: fmean(found[f"accuracy_{kind}_{severity}"] for severity in SEVERITIES) for kind in CORRUPTIONS}
        return {f"accuracy_{kind}": mean for kind, mean in means.items()} | {
            "accuracy_corrupted": fmean(means.values())
        }


def corrupted(
    batches: Iterable[Batch], kind: str, severity: int, scaled: Callable[[Tensor], Tensor] = torch.clone
) -> Iterator[Batch]:
    """Yield network inputs from all images of a split, in order, after one corruption (1 ≤ severity ≤ 5)."""
    corrupt = CORRUPTIONS[kind](severity)
    for pixels, labels in batches:
        yield scaled(eight_bits(corrupt(pixels))), labels


def eight_bits(pixels: Tensor) -> Tensor:
    """Clip pixels to [0, 1] and round them down to multiples of 1/255."""
    return (255 * pixels.clamp(0, 1) + 1e-3).floor() / 255


def noise(severity: int) -> Corruption:
    """Return a corruption that adds Gaussian noise, independent for every value."""
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    normals = Normals(derive(0, "corruptions", "noise", severity))
    return lambda pixels: pixels + sigma * normals.like(pixels)


class Normals:
    """A stream of standard normal noise for one image after the other, independent of the batch size."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)

    def like(self, images: Tensor) -> Tensor:
        """Return the next noise by Box and Muller's method, float32, with shape and device of `images` [B, ...]."""
        each = images[0].numel()
        raw = self._bits.random_raw(len(images) * -(-each // 2))  # 64 bits for two values; images share none
        uniform, turn = ((part.astype(np.float32) + 1) / 2**32 for part in (raw >> np.uint64(32), raw & LOW))
        radius = torch.from_numpy(uniform).to(images.device).log_().mul_(-2).sqrt_()
        angle = torch.from_numpy(turn).to(images.device).mul_(2 * torch.pi)
        pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
        return pairs.view(len(images), -1)[:, :each].view(images.shape)


LOW = np.uint64(2**32 - 1)


def blur(severity: int) -> Corruption:
    """Return a Gaussian filter, cut off at four standard deviations (in whole pixels), repeating the edges outwards."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]

    def blurred(pixels: Tensor) -> Tensor:
        rows, columns = (filter_matrix(side, sigma).to(pixels.device) for side in pixels.shape[2:])
        return rows @ pixels @ columns.T  # a filter along each axis: for small images much faster than a convolution

    return blurred


def filter_matrix(side: int, sigma: float) -> Tensor:
    """Return the matrix that filters `side` values, float32 [side, side]; each row sums to 1."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = (-0.5 * (offsets.double() / sigma).square()).exp()
    weights /= weights.sum()
    source = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, source, weights.expand(side, -1)).float()


def contrast(severity: int) -> Corruption:
    """Return a corruption that moves pixels towards the mean of their image's channel."""
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]

    def faded(pixels: Tensor) -> Tensor:
        mean = pixels.mean((2, 3), keepdim=True)
        return (pixels - mean) * factor + mean

    return faded


def brightness(severity: int) -> Corruption:
    """Return a corruption that raises the HSV value up to 1. Hue and saturation stay, black becomes grey."""
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]

    def brightened(pixels: Tensor) -> Tensor:
        value = pixels.amax(1, keepdim=True)
        raised = (value + added).clamp(max=1)
        return torch.where(value > 0, pixels * (raised / value), raised)

    return brightened


CORRUPTIONS: dict[str, Callable[[int], Corruption]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
}
