"""Wide residual networks with pre-activation (Zagoruyko & Komodakis 2016), such as WRN-28-10."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lottery.models.checks import blocks_a_stage, image_shape, positive, probability
from lottery.models.resnet import stages


class PreActivationBlock(nn.Module):
    """BN-ReLU-3x3 convolution, twice; the shortcut is `nn.Identity` exactly if the block keeps the shape."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.keeps_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if self.keeps_shape else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.dropout(F.relu(self.bn2(self.conv1(activated))))
        # An identity passes the raw input on; a projection starts from the activated one, as in the authors' network.
        return self.conv2(out) + self.shortcut(x if self.keeps_shape else activated)


class WideResNet(nn.Module):
    """`conv1`, three `stages` of blocks with 16, 32 and 64 times `widen` channels, `bn`, global pooling, `fc`."""

    def __init__(self, channels: int, classes: int, blocks: int, widen: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.stages = stages(16, widths, [blocks] * 3, partial(PreActivationBlock, dropout=dropout))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stages(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def wide_resnet(*, shape: tuple[int, ...], classes: int, depth: int, widen: int, dropout: float = 0.0) -> WideResNet:
    """Build WRN-`depth`-`widen` with `depth` = 6n + 4. [N, C, H, W] -> [N, classes] logits.

    WRN-28-10 has 36,479,194 parameters on 3-channel images and 10 classes (36.5M in the paper).
    """
    blocks = blocks_a_stage(depth, extra=4)
    positive("model.widen", widen)
    probability("model.dropout", dropout)
    channels, _, _ = image_shape(shape, f"WideResNet-{depth}-{widen}")
    return WideResNet(channels, classes, blocks, widen, dropout)
