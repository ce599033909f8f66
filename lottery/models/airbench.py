"""The network of airbench94 (Jordan 2024, arXiv 2404.00498): six convolutions behind a whitening of 2x2 patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lottery.models.checks import image_shape, positive

EPS = 5e-4  # added to the variances that are divided by
SPEED = 8  # SGD moves a bias 64 times as fast as other parameters


class Norm(nn.BatchNorm2d):
    """Batch normalisation of fixed scale, with a shift of `SPEED` times its bias.

    The shift's gradient has that factor, too. So under SGD the shift moves with SPEED² times the learning rate, and
    decays as everything else does: airbench's `bias_scaler`, without a second group in the optimizer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        statistics, shift = (self.running_mean, self.running_var), SPEED * self.bias
        return F.batch_norm(x, *statistics, self.weight, shift, self.training, self.momentum or 0.0, self.eps)


class Block(nn.Module):
    """3x3 convolution, 2x2 max-pool, normalisation, GELU; then convolution, normalisation, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = Norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = Norm(outputs)
        # The first filters pass their inputs on; of conv2, all do, whatever the seed.
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Airbench(nn.Module):
    """`whiten` (frozen filters, a trained bias), three `blocks`, the maximum over positions, `fc` without bias."""

    def __init__(self, channels: int, classes: int, widths: list[int]) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(channels, 2 * 4 * channels, 2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        ins = [self.whiten.out_channels, *widths]
        self.blocks = nn.Sequential(*(Block(i, o) for i, o in zip(ins, widths, strict=False)))
        self.fc = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.gelu(self.whiten(x)))
        return self.fc(x.amax((2, 3))) / 9

    @torch.no_grad()
    def start_from_(self, images: Tensor) -> None:
        """Set the whitening filters: the principal components of the images' 2x2 patches, each at variance 1, and ±."""
        size = self.whiten.weight[0].numel()
        moments, count = torch.zeros(size, size, dtype=torch.float64), 0
        for part in images.double().split(500):
            patches = F.unfold(part, 2).transpose(1, 2).reshape(-1, size)
            moments, count = moments + patches.T @ patches, count + len(patches)
        variances, components = torch.linalg.eigh(moments / count)
        filters = (components / (variances + EPS).sqrt()).T.flip(0)  # the component of largest variance first
        largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
        filters = filters * largest.sign()  # which of ± comes first is arbitrary in an eigenvector
        self.whiten.weight.copy_(torch.cat((filters, -filters)).view_as(self.whiten.weight))


def airbench(*, shape: tuple[int, ...], classes: int, width: int = 64) -> Airbench:
    """Build airbench94's network, with `width`, 4 `width` and 4 `width` channels. [N, C, H, W] -> [N, classes] logits.

    Before a training, `start_from_` sets its first layer from training images.
    """
    positive("model.width", width)
    channels, _, _ = image_shape(shape, "airbench", least=9)
    return Airbench(channels, classes, [width, 4 * width, 4 * width])
