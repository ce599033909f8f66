"""Flips and shifted crops for a whole batch at a time, each image with its own draw, by one gather."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lottery.data.order import integers


class FlipCrop:
    """The field's augmentation of small images: pad by `crop` black pixels a side, cut out at random, mirror half.

    The padding is black before scaling, as torchvision's RandomCrop does it on images, not the mean after scaling.
    """

    def __init__(self, shape: tuple[int, ...], flip: bool, crop: int, device: torch.device) -> None:
        _, self._height, self._width = shape
        self._flip, self._crop, self._device = flip, crop, device
        shifts = torch.arange(2 * crop + 1, device=device)[:, None]
        # Row `dy` lists where the rows of a crop shifted by dy begin in the flattened padded image; the columns of a
        # crop shifted by dx are row `dx`, and row `2 crop + 1 + dx` once mirrored.
        self._rows = (shifts + torch.arange(self._height, device=device)) * (self._width + 2 * crop)
        columns = shifts + torch.arange(self._width, device=device)
        self._columns = torch.cat([columns, columns.flip(1)])

    def draw_(self, count: int, seed: int, epoch: int) -> None:
        """Draw for the `count` images of an epoch, in training order: a function of (seed, epoch) alone."""
        shifts = 2 * self._crop + 1
        dy = integers(count, shifts, seed, "augment", epoch, "dy")
        dx = integers(count, shifts, seed, "augment", epoch, "dx")
        if self._flip:
            dx = dx + shifts * integers(count, 2, seed, "augment", epoch, "flip")
        self._dy, self._dx = torch.from_numpy(dy).to(self._device), torch.from_numpy(dx).to(self._device)

    def __call__(self, images: Tensor, part: slice) -> Tensor:
        """Augment images [B, C, H, W] of any type, which are those of `part` of the epoch that was drawn."""
        batch, channels = images.shape[:2]
        rows, columns = self._rows[self._dy[part]], self._columns[self._dx[part]]
        pixels = (rows[:, :, None] + columns[:, None, :]).view(batch, 1, -1).expand(-1, channels, -1)
        return pad(images, [self._crop] * 4).flatten(2).gather(2, pixels).view(images.shape)
