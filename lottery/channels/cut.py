"""Channels of a layer: which layers have channels, how many, and how some are cut out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Exactly these classes: a subclass may compute its weight from the parameter (weight standardisation).
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def mixes_channels(module: Any) -> bool:
    """Whether the module is a linear layer or an ungrouped convolution: its output channels mix its input channels."""
    return type(module) in LAYERS and getattr(module, "groups", 1) == 1


def is_depthwise(module: Any) -> bool:
    return type(module) in LAYERS and 1 < module.groups == module.in_channels == module.out_channels


def has_channels(module: Any) -> bool:
    return mixes_channels(module) or is_depthwise(module) or isinstance(module, _BatchNorm)


def layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that `cut_` can cut, with their names, in the network's order."""
    return ((name, module) for name, module in network.named_modules() if has_channels(module))


def widths(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of output and input channels of a module from `layers`."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, _BatchNorm):
        return module.num_features, module.num_features
    return module.out_channels, module.in_channels  # type: ignore[return-value]


def cut_(module: nn.Module, outs: Collection[int], ins: Collection[int]) -> None:
    """Remove these output and input channels, in place. Normalisation and depthwise convolutions ignore `ins`."""
    kept_outs, kept_ins = (
        torch.tensor([i for i in range(width) if i not in gone], dtype=torch.long)
        for width, gone in zip(widths(module), (outs, ins), strict=True)
    )
    mixes = mixes_channels(module)
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.dim():  # num_batches_tracked is a scalar
            kept = tensor.detach()[kept_outs]
            kept = kept[:, kept_ins] if mixes and name == "weight" else kept
            setattr(module, name, nn.Parameter(kept) if isinstance(tensor, nn.Parameter) else kept)
    count = len(kept_outs)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = count, len(kept_ins)
    elif isinstance(module, _BatchNorm):
        module.num_features = count
    elif mixes:
        module.out_channels, module.in_channels = count, len(kept_ins)  # type: ignore[assignment]
    else:
        module.out_channels = module.in_channels = module.groups = count  # type: ignore[assignment]
