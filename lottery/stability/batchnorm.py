"""Batch normalisation's running statistics, estimated anew for a state."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lottery.state import State


def normalised(network: nn.Module) -> dict[str, _BatchNorm]:
    """The batch normalisations that keep running statistics, by module name; none: nothing to recompute."""
    return {
        name: module
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@torch.no_grad()
def recomputed(network: nn.Module, state: State, images: Iterable[Tensor]) -> State:
    """`state` with running statistics that are the plain means, over the batches, of each batch's mean and variance.

    Normalisation goes over the batch while they are estimated; all else (dropout) is in evaluation mode, and the
    images should not be augmented. As torch's `swa_utils.update_bn`, but for the dropout. Network and `state`
    are left as they were; what else the state holds is shared with the result, not copied.
    """
    layers = normalised(network)
    modes = {name: module.training for name, module in network.named_modules()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    fresh = dict(state)
    for name in layers:
        for statistic, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
            key = f"{name}.{statistic}" if name else statistic
            fresh[key] = torch.full_like(state[key], value)
    network.eval()
    try:
        for layer in layers.values():
            layer.train()
            layer.momentum = None  # the plain mean, not the exponential one
        for batch in images if layers else ():
            functional_call(network, fresh, (batch,), tie_weights=False)
    finally:
        for name, layer in layers.items():
            layer.momentum = momenta[name]
        for name, module in network.named_modules():
            module.training = modes[name]
    return fresh
