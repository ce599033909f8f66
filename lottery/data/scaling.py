"""From pixels to network inputs: one function for each value of `data.scaling`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lottery.data.options import Data
from lottery.errors import ConfigError

Scaler = Callable[[Tensor], Tensor]


def scaler(options: Data, dtype: torch.dtype, device: torch.device) -> Scaler:
    """A function of images [B, *shape] of type `dtype` (uint8 or float32) to fresh float32 tensors of the same shape.

    Which scaling is used changes when networks early-stop, and by a lot: methods.md 1, "disagreements".
    Raises ConfigError where the scaling does not suit the type: float32 images have no known range to divide by.
    """
    suitable = ("standard", "unit", "l2") if dtype == torch.uint8 else ("none", "l2")
    if options.scaling not in suitable:
        raise ConfigError.of("data.scaling", options.scaling, f"one of {', '.join(suitable)} for {dtype} images")
    if options.scaling == "standard":
        return _standard(options, device)
    scalers: dict[str, Scaler] = {"unit": to_pixels, "l2": _l2, "none": torch.clone}
    return scalers[options.scaling]


def from_pixels(scale: Scaler, pixels: Tensor) -> Tensor:
    """What `scale`, a scaler of uint8 images, makes of pixels in [0, 1], which need not be multiples of 1/255.

    Differentiable: scalers work in place, but only on what is theirs, which `255 * pixels` is.
    """
    return scale(255 * pixels)


def check_pixels(options: Data, dtype: torch.dtype) -> None:
    """Raise ConfigError where images of this type have no known range, and so no pixels in [0, 1]."""
    if dtype != torch.uint8:
        expected = "a data set of 8-bit images: pixels in [0, 1] are needed, and the range of float32 values is unknown"
        raise ConfigError.of("data", options.name, expected)


def to_pixels(images: Tensor) -> Tensor:
    """Images uint8 as fresh float32 in [0, 1]."""
    return images.float().div_(255)


def _l2(images: Tensor) -> Tensor:
    """Each image has norm 1 over all its pixels (Google's lottery-ticket code); an all-black one stays 0."""
    floats = images.float()
    norms = torch.linalg.vector_norm(floats.flatten(1), dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return floats / norms.view(-1, *[1] * (images.ndim - 1))


def _standard(options: Data, device: torch.device) -> Scaler:
    per_channel = (-1, *[1] * (len(options.shape) - 1))
    centre = torch.tensor([255 * mean for mean in options.mean], device=device).view(per_channel)
    factor = torch.tensor([1 / (255 * std) for std in options.std], device=device).view(per_channel)
    # (x/255 - mean)/std in two passes over the batch instead of three.
    return lambda images: images.float().sub_(centre).mul_(factor)
