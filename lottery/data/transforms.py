"""Convert stored images to network inputs: augmentation and scaling, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lottery.config.data import Data
from lottery.data.order import Indices, integers
from lottery.errors import ConfigError

Scaler = Callable[[Tensor], Tensor]


def placed(array: Indices, device: torch.device) -> Tensor:
    """Copy an array to a device. A GPU is not waited for: CUDA copies from ordinary memory before it returns."""
    return torch.from_numpy(array).to(device, non_blocking=device.type == "cuda")


class FlipCrop:
    """The usual augmentation of small images: pad by `crop` pixels per side, crop at random, mirror half of them.

    Each image has its own draw; a batch takes one gather. Black padding is black before scaling, as in torchvision's
    RandomCrop on images. Reflected padding does not repeat the edge, as torch's padding mode "reflect".
    """

    def __init__(
        self, shape: tuple[int, ...], flip: bool, crop: int, device: torch.device, padding: str = "black"
    ) -> None:
        _, height, width = shape
        self._flip, self._crop, self._device, self._black = flip, crop, device, padding == "black"
        shifts = torch.arange(2 * crop + 1, device=device)[:, None]
        rows = shifts + torch.arange(height, device=device)  # row `dy`: rows of the padded image in that crop
        columns = shifts + torch.arange(width, device=device)
        if not self._black:  # every pixel of the padding is a copy of one in the image
            rows, columns = _reflected(rows - crop, height), _reflected(columns - crop, width)
        self._rows = rows * (width + 2 * crop if self._black else width)  # start of each row in the flattened image
        # Row `dx`: columns of a crop shifted by dx. Row `2 crop + 1 + dx`: that crop mirrored.
        self._columns = torch.cat([columns, columns.flip(1)])

    def draw_(self, count: int, seed: int, epoch: int, alternating: Indices | None = None) -> None:
        """Draw for the `count` images of an epoch, in training order: a function of (seed, epoch) alone.

        alternating: the image at each place. An image that one epoch mirrors the next one does not (airbench's scheme).
        """
        shifts = 2 * self._crop + 1
        dy = integers(count, shifts, seed, "augment", epoch, "dy")
        dx = integers(count, shifts, seed, "augment", epoch, "dx")
        if self._flip and alternating is not None:
            dx = dx + shifts * (integers(count, 2, seed, "augment", "flip")[alternating] ^ (epoch % 2))
        elif self._flip:
            dx = dx + shifts * integers(count, 2, seed, "augment", epoch, "flip")
        self._dy, self._dx = placed(dy, self._device), placed(dx, self._device)

    def __call__(self, images: Tensor, part: slice) -> Tensor:
        """Augment images [B, C, H, W] of any type: the images of slice `part` of the drawn epoch."""
        batch, channels = images.shape[:2]
        rows, columns = self._rows[self._dy[part]], self._columns[self._dx[part]]
        pixels = (rows[:, :, None] + columns[:, None, :]).view(batch, 1, -1).expand(-1, channels, -1)
        source = pad(images, [self._crop] * 4) if self._black else images
        return source.flatten(2).gather(2, pixels).view(images.shape)


def _reflected(position: Tensor, size: int) -> Tensor:
    """Map positions in [-size + 1, 2 size - 2] to [0, size), mirrored at the first and the last pixel."""
    inside = position.abs()
    return torch.where(inside < size, inside, 2 * (size - 1) - inside)


def scaler(options: Data, dtype: torch.dtype, device: torch.device) -> Scaler:
    """Return a function from images [B, *shape] of type `dtype` (uint8 or float32) to fresh float32 [B, *shape].

    The scaling strongly affects when networks stop early. Raises ConfigError for a scaling that does not suit the type:
    float32 images have no known range to divide by.
    """
    suitable = ("standard", "unit", "l2") if dtype == torch.uint8 else ("none", "l2")
    if options.scaling not in suitable:
        raise ConfigError.of("data.scaling", options.scaling, f"one of {', '.join(suitable)} for {dtype} images")
    if options.scaling == "standard":
        return _standard(options, device)
    scalers: dict[str, Scaler] = {"unit": to_pixels, "l2": _l2, "none": torch.clone}
    return scalers[options.scaling]


def check_pixels(name: str, dtype: torch.dtype) -> None:
    """Raise ConfigError where images of this type have no known range, and so no pixels in [0, 1]."""
    if dtype != torch.uint8:
        expected = "a data set of 8-bit images: pixels in [0, 1] are needed, and the range of float32 values is unknown"
        raise ConfigError.of("data", name, expected)


def to_pixels(images: Tensor) -> Tensor:
    """Convert uint8 images to fresh float32 in [0, 1]."""
    return images.float().div_(255)


def _l2(images: Tensor) -> Tensor:
    """Scale each image to norm 1 over all its pixels (Google's lottery-ticket code); an all-black image stays 0."""
    floats = images.float()
    norms = torch.linalg.vector_norm(floats.flatten(1), dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return floats / norms.view(-1, *[1] * (images.ndim - 1))


def _standard(options: Data, device: torch.device) -> Scaler:
    per_channel = (-1, *[1] * (len(options.shape) - 1))
    centre = torch.tensor([255 * mean for mean in options.mean], device=device).view(per_channel)
    factor = torch.tensor([1 / (255 * std) for std in options.std], device=device).view(per_channel)
    # (x/255 - mean)/std in two passes over the batch instead of three.
    return lambda images: images.float().sub_(centre).mul_(factor)
