"""Initialisers: how the weights of convolutions and linear layers, and the scales of batch normalisation, are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lottery.models.checks import one_of

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def kaiming_fan_out_(weight: Tensor) -> None:
    """Draw convolutions from N(0, 2 / fan_out), linear layers from N(0, 0.01²): torchvision's VGG, and GraSP's code."""
    if weight.ndim == 2:
        nn.init.normal_(weight, std=0.01)
    else:
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def signed_constant_(weight: Tensor) -> None:
    """Set weights to ± sqrt(2 / fan_in), each sign by a fair coin: Ramanujan et al. 2020, section 3.3."""
    fan_in = weight[0].numel()
    signs = torch.randint(0, 2, weight.shape, device=weight.device) * 2 - 1
    with torch.no_grad():
        weight.copy_(signs * math.sqrt(2 / fan_in))


INITIALISERS: dict[str, Callable[[Tensor], object] | None] = {
    "default": None,
    "glorot_normal": nn.init.xavier_normal_,  # N(0, 2 / (fan_in + fan_out)): Glorot & Bengio 2010
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),  # N(0, 2 / fan_in): He et al. 2015
    "kaiming_fan_out": kaiming_fan_out_,
    "signed_constant": signed_constant_,
}


def check_names(init: str, bn_scale: str | None) -> None:
    """Raise ConfigError unless `initialise_` knows both names."""
    one_of("model.init", init, INITIALISERS)
    if bn_scale is not None:
        one_of("model.bn_scale", bn_scale, ("one", "uniform"))


def initialise_(network: nn.Module, init: str, bn_scale: str | None = None) -> None:
    """Draw the network's weights anew, module by module, from torch's global CPU generator.

    init:     "default" leaves the weights as their modules drew them. Any other name redraws the weights of Linear and
              Conv layers, zeroes their biases, and sets BN to scale 1 and shift 0. Other parameters (embeddings, layer
              norm, `nn.MultiheadAttention`'s packed projection, transposed convolutions) stay as drawn.
    bn_scale: "one", "uniform" (U(0, 1), with shift 0), or None: as built, or 1 where `init` redraws
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
