"""VGG for small images: Simonyan & Zisserman's convolutions with batch normalisation, one or three linear layers."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lottery.errors import ConfigError
from lottery.models.checks import image_shape, positive

# Convolutions in each of the five groups; the groups have 1, 2, 4, 8 and 8 times `width` channels.
_GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(*, shape: tuple[int, ...], classes: int, depth: int, width: int = 64) -> nn.Sequential:
    """Build VGG-11, 13, 16 or 19: `conv1`/`bn1`, …, `fc`. [N, C, H, W], at least 16x16 pixels -> [N, classes] logits.

    2x2 max-pooling follows each of the first four groups, and global average pooling the last, as in Frankle & Carbin
    2019, fig. 2. `depth` is the original network's, which counts three fully-connected layers. The convolutions have no
    bias, which the normalisation after them would cancel.
    """
    layers = _convolutions(shape, depth, width, pooled=1)
    layers["fc"] = nn.Linear(8 * width, classes)
    return nn.Sequential(layers)


def vgg_mlp(*, shape: tuple[int, ...], classes: int, depth: int, width: int = 64, hidden: int = 256) -> nn.Sequential:
    """Build `vgg` with average pooling to 2x2 pixels last, and three linear layers: `fc1`, `fc2`, `fc`.

    These are the CIFAR networks of BiP's released code (Zhang et al. 2022): 15,302,848 weights at depth 16, 10 classes.
    """
    positive("model.hidden", hidden)
    layers = _convolutions(shape, depth, width, pooled=2)
    inputs = 4 * 8 * width
    for number in (1, 2):
        layers[f"fc{number}"] = nn.Linear(inputs, hidden)
        layers[f"relu_fc{number}"] = nn.ReLU()
        inputs = hidden
    layers["fc"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)


def _convolutions(shape: tuple[int, ...], depth: int, width: int, pooled: int) -> OrderedDict[str, nn.Module]:
    """Build the groups of convolutions with pooling after each, the last to `pooled` x `pooled` pixels, and flatten."""
    if depth not in _GROUPS:
        raise ConfigError.of("model.depth", depth, "11, 13, 16 or 19")
    positive("model.width", width)
    channels, _, _ = image_shape(shape, f"VGG-{depth}", least=16)  # four poolings must leave a pixel
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for group, (convolutions, factor) in enumerate(zip(_GROUPS[depth], (1, 2, 4, 8, 8), strict=True), start=1):
        for _ in range(convolutions):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, width * factor, 3, padding=1, bias=False)
            layers[f"bn{number}"] = nn.BatchNorm2d(width * factor)
            layers[f"relu{number}"] = nn.ReLU()
            channels = width * factor
        layers[f"pool{group}"] = nn.MaxPool2d(2) if group < 5 else nn.AdaptiveAvgPool2d(pooled)
    layers["flatten"] = nn.Flatten()
    return layers
