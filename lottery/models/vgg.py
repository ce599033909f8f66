"""VGG for small images: Simonyan & Zisserman's convolutions with batch normalisation, global pooling and one `fc`."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lottery.errors import ConfigError
from lottery.models.checks import image_shape, positive

# Convolutions in each of the five groups; the groups have 1, 2, 4, 8 and 8 times `width` channels.
_GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_SMALLEST = 16  # four poolings must leave a pixel


def vgg(*, shape: tuple[int, ...], classes: int, depth: int, width: int = 64) -> nn.Sequential:
    """VGG-11, 13, 16 or 19: `conv1`/`bn1`, …, `fc`. [N, C, H, W], at least 16x16 pixels -> [N, classes] logits.

    A 2x2 max-pool follows each of the first four groups, and global average pooling the last, as in Frankle & Carbin
    2019, fig. 2. The depth is the original network's, which counts three fully-connected layers. The convolutions
    have no bias, which the normalisation after them would cancel.
    """
    if depth not in _GROUPS:
        raise ConfigError.of("model.depth", depth, "11, 13, 16 or 19")
    positive("model.width", width)
    channels, height, breadth = image_shape(shape, f"VGG-{depth}")
    if min(height, breadth) < _SMALLEST:
        raise ConfigError(
            f"model: VGG-{depth} needs at least {_SMALLEST}x{_SMALLEST} pixels, the data have {height}x{breadth}"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for group, (convolutions, factor) in enumerate(zip(_GROUPS[depth], (1, 2, 4, 8, 8), strict=True), start=1):
        for _ in range(convolutions):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, width * factor, 3, padding=1, bias=False)
            layers[f"bn{number}"] = nn.BatchNorm2d(width * factor)
            layers[f"relu{number}"] = nn.ReLU()
            channels = width * factor
        layers[f"pool{group}"] = nn.MaxPool2d(2) if group < 5 else nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
