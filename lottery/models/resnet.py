"""CIFAR residual networks (He et al. 2016, section 4.2), any depth 6n + 2 and width; ResNet-18 for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lottery.models.checks import blocks_a_stage, image_shape, one_of, positive


class Pad(nn.Module):
    """The shortcut without parameters ("option A"): every second pixel, and zeros in the new channels."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is `nn.Identity` exactly if the block keeps the shape."""

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
        else:  # 1x1 convolution and batch normalisation ("option B")
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def stages(
    inputs: int, widths: Sequence[int], blocks: Sequence[int], block: Callable[[int, int, int], nn.Module]
) -> nn.Sequential:
    """Build stages of blocks by `block(inputs, outputs, stride)`. All stages but the first begin with stride 2."""
    made = []
    for stage, (outputs, count) in enumerate(zip(widths, blocks, strict=True)):
        first = block(inputs, outputs, 1 if stage == 0 else 2)
        made.append(nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(count - 1))))
        inputs = outputs
    return nn.Sequential(*made)


class ResNet(nn.Module):
    """`conv1`, a stage per entry of `blocks` with width, 2 width, 4 width, … channels, global average pooling, `fc`."""

    def __init__(self, channels: int, classes: int, blocks: Sequence[int], width: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width * 2**stage for stage in range(len(blocks))]
        self.stages = stages(width, widths, blocks, partial(BasicBlock, shortcut=shortcut))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def resnet(
    *, shape: tuple[int, ...], classes: int, depth: int, width: int = 16, shortcut: str = "projection"
) -> ResNet:
    """Build the network of `depth` = 6n + 2 layers. [N, C, H, W] -> [N, classes] logits.

    `shortcut` joins stages: "projection" (1x1 convolution with BN; 2,560 weights at width 16) or "pad". With
    projections, ResNet-20 has 270,896 convolution and linear weights on 3-channel images and 10 classes.
    """
    blocks = blocks_a_stage(depth, extra=2)
    positive("model.width", width)
    one_of("model.shortcut", shortcut, ("projection", "pad"))
    channels, _, _ = image_shape(shape, f"ResNet-{depth}")
    return ResNet(channels, classes, [blocks] * 3, width, shortcut)


def resnet18(*, shape: tuple[int, ...], classes: int, width: int = 64) -> ResNet:
    """Build ResNet-18 for small images, with a 3x3 stem and no pooling after it. [N, C, H, W] -> [N, classes] logits.

    Four stages of two blocks, with projections: 11,164,352 convolution and linear weights (3 channels, 10 classes).
    """
    positive("model.width", width)
    channels, _, _ = image_shape(shape, "ResNet-18")
    return ResNet(channels, classes, [2] * 4, width, "projection")
