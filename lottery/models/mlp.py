"""Fully-connected networks: LeNet-300-100 and other sizes. Inputs of any shape are flattened."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lottery.errors import ConfigError
from lottery.models.checks import positive


def mlp(*, shape: tuple[int, ...], classes: int, hidden: Sequence[int]) -> nn.Sequential:
    """Build ReLU layers `fc1`, `fc2`, … of the given sizes, then `output`. [N, *shape] -> [N, classes] logits."""
    if isinstance(hidden, str | int):
        raise ConfigError.of("model.hidden", hidden, "a list of layer sizes such as [300,100]")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = math.prod(shape)
    for number, size in enumerate(hidden, start=1):
        positive("model.hidden", size)
        layers[f"fc{number}"] = nn.Linear(inputs, size)
        layers[f"relu{number}"] = nn.ReLU()
        inputs = size
    layers["output"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)


def lenet_300_100(*, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Build LeNet-300-100 (LeCun et al. 1998): `fc1`, `fc2`, `output`; 266,200 weights on 28x28 images, 10 classes."""
    return mlp(shape=shape, classes=classes, hidden=(300, 100))
