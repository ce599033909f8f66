"""Networks for tests of the training, small enough for a step of a millisecond."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from lottery.pruning.prunable import weight_shapes


def convolutional(*, shape: tuple[int, ...], classes: int, dropout: float = 0.25) -> nn.Sequential:
    """Two convolutions with batch normalisation, dropout, and a linear layer: 644 weights on 1x8x8 images."""
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 4, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(4),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(4, 8, 3, padding=1, stride=2),
            bn2=nn.BatchNorm2d(8),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(dropout),
            fc=nn.Linear(8 * (height // 4) * (width // 4), classes),
        )
    )


class Partial(nn.Module):
    """A network with one prunable layer that is frozen and one that its forward pass does not use."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(inputs, 8)
        self.unused = nn.Linear(8, 8)
        self.output = nn.Linear(8, classes)
        self.frozen.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(torch.relu(self.frozen(images.flatten(1))))


def all_weights(network: nn.Module) -> int:
    """How many convolution, linear and attention weights there are, prunable or not."""
    return sum(shape.numel() for shape in weight_shapes(network).values())
