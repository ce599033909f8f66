"""The options of each model family, typed for Hydra (group `schema/model`). Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Common:
    """The options that `build` itself reads. A family's other options are passed to its factory."""

    _target_: str = "???"  # dotted path of factory(*, shape, classes, **options)
    # default (as the library draws it) | glorot_normal | kaiming_normal | kaiming_fan_out | signed_constant
    init: str = "default"
    weights: str | None = None  # a local .safetensors, or a .pth/.pt that holds nothing but tensors
    drop_head: bool = False  # do not load the file's classifier; the network keeps its freshly drawn one


@dataclass
class _Normalised(_Common):
    """A family with batch normalisation."""

    bn_scale: str | None = "one"  # one | uniform (U(0, 1), as OpenLTH draws it) | null (as built)


@dataclass
class LeNet(_Common):
    _target_: str = "lottery.models.mlp.lenet_300_100"


@dataclass
class MLP(_Common):
    _target_: str = "lottery.models.mlp.mlp"
    hidden: list[int] = field(default_factory=lambda: [100, 100])


@dataclass
class Conv(_Common):
    _target_: str = "lottery.models.conv.conv"
    blocks: int = 1  # pairs of 3x3 convolutions with 64, 128, 256, 512 channels: 1 to 4
    dropout: float = 0.0  # after each hidden fully-connected layer, in [0, 1)


@dataclass
class ResNet(_Normalised):
    _target_: str = "lottery.models.resnet.resnet"
    depth: int = 20  # 6n + 2
    width: int = 16  # channels of the first stage; the next ones have twice and four times as many
    shortcut: str = "projection"  # projection | pad


@dataclass
class ResNet18(_Normalised):
    _target_: str = "lottery.models.resnet.resnet18"
    width: int = 64  # channels of the first stage; each next one has twice as many


@dataclass
class VGG(_Normalised):
    _target_: str = "lottery.models.vgg.vgg"
    depth: int = 16  # 11, 13, 16, 19
    width: int = 64  # channels of the first convolution


@dataclass
class VGGMLP(VGG):
    _target_: str = "lottery.models.vgg.vgg_mlp"
    hidden: int = 256  # outputs of the first and the second linear layer


@dataclass
class WideResNet(_Normalised):
    _target_: str = "lottery.models.wide_resnet.wide_resnet"
    depth: int = 28  # 6n + 4
    widen: int = 10
    dropout: float = 0.0  # between the two convolutions of a block, in [0, 1)


@dataclass
class Airbench(_Common):
    _target_: str = "lottery.models.airbench.airbench"
    width: int = 64  # channels of the first block; the other two have four times as many


@dataclass
class Timm(_Normalised):
    _target_: str = "lottery.models.zoo.from_timm"
    bn_scale: str | None = None
    name: str = "resnet18"
    pretrained: bool = False  # downloads: the only option here that uses the network
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of the library's constructor


@dataclass
class TorchVision(Timm):
    _target_: str = "lottery.models.zoo.from_torchvision"


SCHEMAS: dict[str, type[_Common]] = {
    "lenet": LeNet,
    "mlp": MLP,
    "conv": Conv,
    "resnet": ResNet,
    "resnet18": ResNet18,
    "vgg": VGG,
    "vgg_mlp": VGGMLP,
    "wide_resnet": WideResNet,
    "airbench": Airbench,
    "timm": Timm,
    "torchvision": TorchVision,
}
