"""What a criterion may look at when it scores the units that can leave a network."""

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
    from lottery.layers.units import Unit

PIECE = 50  # images in one forward pass, at most: the features of all units are held for so many


@dataclass(frozen=True)
class UnitScoring:
    """The network at the moment of scoring. What a criterion is given is its own: it may change it.

    units:     the candidates by name, in the order of the forward pass
    network:   gives a private copy with the present weights, on the training device, in training mode
    without:   gives a private copy in evaluation mode from which this unit has been removed
    sample:    gives that many training images of each class, not augmented, and their labels, in a random order in
               which every beginning is balanced; the same ones at each call
    generator: the stream for criteria that draw random numbers, on the CPU
    shape:     of one image
    """

    units: Mapping[str, Unit]
    network: Callable[[], nn.Module]
    without: Callable[[str], nn.Module]
    sample: Callable[[int], Batch]
    generator: torch.Generator
    shape: tuple[int, ...]


UnitCriterion = Callable[[UnitScoring], dict[str, float]]
"""Gives each unit a finite score; the units with the lowest scores leave first."""


def settled_(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, except for batch normalisation whose running statistics nothing has changed yet.

    That normalises by the images it is given: at initialisation there are no other statistics, and a deep residual
    network that does not normalise doubles its features' variance with every block.
    """
    for module in network.eval().modules():
        if isinstance(module, _BatchNorm):
            module.train(_untouched(module))
    return network


def _untouched(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())


def pieces(images: Tensor) -> tuple[Tensor, ...]:
    """The images in parts of at most `PIECE`, whose sizes differ by one at most."""
    return images.tensor_split(ceil(len(images) / PIECE))


def check_one_of(option: str, got: Any, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless the criterion's option is one of these."""
    if got not in allowed:
        raise ConfigError.of(f"method.criterion.{option}", got, f"one of {', '.join(allowed)}")
