"""Conv-2, 4 and 6, the small VGG-like networks of Frankle & Carbin 2019, fig. 2; Conv-8 of Ramanujan et al. 2020."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lottery.errors import ConfigError
from lottery.models.checks import image_shape, probability


def conv(*, shape: tuple[int, ...], classes: int, blocks: int, dropout: float = 0.0) -> nn.Sequential:
    """Build `blocks` (1 to 4) pairs of 3x3 convolutions, each with a 2x2 max-pool, then `fc1`, `fc2` (256), `output`.

    `conv1`, `conv2`, … have 64, 64, 128, 128, 256, 256, 512, 512 channels, padding 1 and biases. The paper does not say
    where its dropout of 0.5 is; here it follows each hidden linear layer. [N, C, H, W] -> [N, classes] logits.
    """
    if isinstance(blocks, bool) or blocks not in (1, 2, 3, 4):
        raise ConfigError.of("model.blocks", blocks, "1, 2, 3 or 4 (Conv-2, Conv-4, Conv-6, Conv-8)")
    probability("model.dropout", dropout)
    channels, height, width = image_shape(shape, f"Conv-{2 * blocks}", least=2**blocks)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block in range(blocks):
        for number in (2 * block + 1, 2 * block + 2):
            layers[f"conv{number}"] = nn.Conv2d(channels, 64 * 2**block, 3, padding=1)
            layers[f"relu{number}"] = nn.ReLU()
            channels = 64 * 2**block
        layers[f"pool{block + 1}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    features = channels * (height // 2**blocks) * (width // 2**blocks)
    for number in (1, 2):
        layers[f"fc{number}"] = nn.Linear(features, 256)
        layers[f"fc_relu{number}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        features = 256
    layers["output"] = nn.Linear(features, classes)
    return nn.Sequential(layers)
