"""The CIFAR residual networks of He et al. 2016, section 4.2: ResNet-20, 32, 44, 56, 110 and narrower or wider ones.

And ResNet-18, made for ImageNet, with the stem that the field gives it on small images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lottery.models.checks import blocks_a_stage, image_shape, one_of, positive


class Pad(nn.Module):
    """The shortcut without parameters ("option A"): every second pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class Projection(nn.Module):
    """The shortcut with a 1x1 convolution and batch normalisation ("option B")."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is `nn.Identity` exactly where the block keeps the shape."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = Pad(outputs - inputs, stride)
        else:
            self.shortcut = Projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """`conv1`, `stages` of so many blocks with width, 2 width, 4 width ... channels, global average pooling, `fc`."""

    def __init__(self, channels: int, classes: int, blocks: Sequence[int], width: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        inputs = width
        for stage, number in enumerate(blocks):
            outputs = width * 2**stage
            first = Block(inputs, outputs, 1 if stage == 0 else 2, shortcut)
            stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1, shortcut) for _ in range(number - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def resnet(
    *, shape: tuple[int, ...], classes: int, depth: int, width: int = 16, shortcut: str = "projection"
) -> ResNet:
    """The network of `depth` = 6n + 2 layers. [N, C, H, W] -> [N, classes] logits.

    `shortcut` is what joins stages: "projection" (1x1 convolution with BN; 2,560 weights at width 16) or "pad".
    With projections ResNet-20 has 270,896 convolution and linear weights on 3-channel images and 10 classes.
    """
    blocks = blocks_a_stage(depth, extra=2)
    positive("model.width", width)
    one_of("model.shortcut", shortcut, ("projection", "pad"))
    channels, _, _ = image_shape(shape, f"ResNet-{depth}")
    return ResNet(channels, classes, [blocks] * 3, width, shortcut)


def resnet18(*, shape: tuple[int, ...], classes: int, width: int = 64) -> ResNet:
    """ResNet-18 for small images: a 3x3 first convolution, no pooling after it. [N, C, H, W] -> [N, classes] logits.

    Four stages of two blocks with projections: 11,164,352 convolution and linear weights on 3-channel images and 10
    classes.
    """
    positive("model.width", width)
    channels, _, _ = image_shape(shape, "ResNet-18")
    return ResNet(channels, classes, [2] * 4, width, "projection")
