"""The input of criteria that score the units of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lottery.errors import ConfigError

if TYPE_CHECKING:
    from lottery.data.dataset import Batch
    from lottery.layers.removal import Unit

PIECE = 50  # most images in one forward pass, which holds the features of all units for all its images


@dataclass(frozen=True)
class UnitScoring:
    """The network at the moment of scoring. A criterion may change everything in here.

    units:     the candidates by name, in the order of the forward pass
    network:   returns a private copy with the present weights, on the training device, in training mode
    without:   returns a private copy in evaluation mode from which the named unit has been removed
    sample:    returns that many training images of each class, not augmented, and their labels, always the same ones;
               their order is random, and every beginning is balanced
    generator: the random stream for criteria that draw numbers, on the CPU
    shape:     shape of one image
    """

    units: Mapping[str, Unit]
    network: Callable[[], nn.Module]
    without: Callable[[str], nn.Module]
    sample: Callable[[int], Batch]
    generator: torch.Generator
    shape: tuple[int, ...]


def settled_(network: nn.Module) -> nn.Module:
    """Put the network into evaluation mode, except batch normalisation that still has its initial running statistics.

    That normalises by its batch: at initialisation there are no other statistics, and a deep residual network without
    normalisation doubles its features' variance with every block.
    """
    for module in network.eval().modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.train(not module.running_mean.any() and bool((module.running_var == 1).all()))
    return network


def pieces(images: Tensor) -> tuple[Tensor, ...]:
    """Split the images into parts of at most `PIECE`, whose sizes differ by at most one."""
    return images.tensor_split(ceil(len(images) / PIECE))


def check_one_of(option: str, got: Any, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless the value of the criterion's option is allowed."""
    if got not in allowed:
        raise ConfigError.of(f"method.criterion.{option}", got, f"one of {', '.join(allowed)}")
