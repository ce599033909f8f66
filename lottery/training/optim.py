"""Optimizers, and their state as flat named tensors (no pickle)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lottery.config import Optim
from lottery.errors import LotteryError


def build_optimizer(options: Optim, network: nn.Module) -> torch.optim.Optimizer:
    """A fused SGD, Adam or AdamW over all trainable parameters, in the order of `named_parameters`."""
    params = [p for p in network.parameters() if p.requires_grad]
    if options.name == "sgd":
        return torch.optim.SGD(
            params,
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
            fused=True,
        )
    cls = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    betas = (options.betas[0], options.betas[1])
    return cls(params, lr=options.lr, betas=betas, eps=options.eps, weight_decay=options.weight_decay, fused=True)


def names(network: nn.Module) -> list[str]:
    """The names of the parameters that the optimizer holds, in its order."""
    return [name for name, p in network.named_parameters() if p.requires_grad]


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `PARAMETER/SLOT` tensors on the CPU; empty before the first step."""
    flat: dict[str, Tensor] = {}
    for name, parameter in zip(names(network), optimizer.param_groups[0]["params"], strict=True):
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                flat[f"{name}/{slot}"] = torch.as_tensor(value).detach().cpu().clone()
    return flat


def load_optimizer_state_(optimizer: torch.optim.Optimizer, network: nn.Module, flat: Mapping[str, Tensor]) -> None:
    """Put `optimizer_state`'s tensors back. Raises LotteryError for a parameter that the network does not have."""
    params = dict(zip(names(network), optimizer.param_groups[0]["params"], strict=True))
    for key, value in flat.items():
        name, _, slot = key.rpartition("/")
        if name not in params:
            raise LotteryError(f"optimizer state: {name} is no parameter of this network")
        parameter = params[name]
        if value.dim():
            # In the parameter's own memory format: fused optimizers walk both in memory order, and check nothing.
            placed = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:
            placed = value.to(parameter.device, copy=True)  # the step counter, which they keep beside the parameter
        optimizer.state[parameter][slot] = placed
