"""Initialisers: how the weights of convolutions and linear layers, and the scales of batch normalisation, are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lottery.models.checks import one_of

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BN_SCALES = ("one", "uniform")


def glorot_normal_(weight: Tensor) -> None:
    """N(0, 2 / (fan_in + fan_out)): Glorot & Bengio 2010."""
    nn.init.xavier_normal_(weight)


def kaiming_normal_(weight: Tensor) -> None:
    """N(0, 2 / fan_in): He et al. 2015, for ReLU."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def signed_constant_(weight: Tensor) -> None:
    """± sqrt(2 / fan_in) with a fair coin for each sign: Ramanujan et al. 2020, section 3.3."""
    fan_in = weight[0].numel()
    signs = torch.randint(0, 2, weight.shape, device=weight.device) * 2 - 1
    with torch.no_grad():
        weight.copy_(signs * math.sqrt(2 / fan_in))


INITIALISERS: dict[str, Callable[[Tensor], None] | None] = {
    "default": None,
    "glorot_normal": glorot_normal_,
    "kaiming_normal": kaiming_normal_,
    "signed_constant": signed_constant_,
}


def check_names(init: str, bn_scale: str | None) -> None:
    """ConfigError unless both name something that `initialise_` knows."""
    one_of("model.init", init, INITIALISERS)
    if bn_scale is not None:
        one_of("model.bn_scale", bn_scale, _BN_SCALES)


def initialise_(network: nn.Module, init: str, bn_scale: str | None = None) -> None:
    """Redraw the network in module order, from torch's global CPU generator.

    init: "default" leaves the weights as their modules drew them; any other name redraws the weights of Linear and
        Conv layers, zeroes their biases, and sets BN to scale 1 and shift 0. Other parameters (embeddings, layer norm,
        `nn.MultiheadAttention`'s packed projection, transposed convolutions) keep what their modules drew.
    bn_scale: "one", "uniform" (U(0, 1), with shift 0), or None: as built, or 1 where `init` redraws.
    """
    check_names(init, bn_scale)
    draw_ = INITIALISERS[init]
    scale = bn_scale or (None if draw_ is None else "one")
    for module in network.modules():
        if isinstance(module, _WEIGHTED) and draw_ is not None:
            draw_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and scale is not None:
            nn.init.ones_(module.weight) if scale == "one" else nn.init.uniform_(module.weight)
            nn.init.zeros_(module.bias)
