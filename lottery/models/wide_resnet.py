"""Wide residual networks with pre-activation (Zagoruyko & Komodakis 2016): WRN-28-10 and its family."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lottery.models.checks import blocks_a_stage, image_shape, positive, probability


class Block(nn.Module):
    """BN-ReLU-3x3 convolution, twice; the shortcut is `nn.Identity` exactly where the block keeps the shape."""

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
        stages = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * 2**stage * widen
            first = Block(inputs, outputs, 1 if stage == 0 else 2, dropout)
            stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1, dropout) for _ in range(blocks - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stages(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def wide_resnet(*, shape: tuple[int, ...], classes: int, depth: int, widen: int, dropout: float = 0.0) -> WideResNet:
    """WRN-`depth`-`widen` with `depth` = 6n + 4. [N, C, H, W] -> [N, classes] logits.

    WRN-28-10 has 36,479,194 parameters on 3-channel images and 10 classes (the paper's 36.5M).
    """
    blocks = blocks_a_stage(depth, extra=4)
    positive("model.widen", widen)
    probability("model.dropout", dropout)
    channels, _, _ = image_shape(shape, f"WideResNet-{depth}-{widen}")
    return WideResNet(channels, classes, blocks, widen, dropout)
