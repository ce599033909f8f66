"""Optimizers, and their state as flat named tensors (no pickle)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lottery.config import Optim
from lottery.errors import LotteryError


def build_optimizer(options: Optim, network: nn.Module) -> torch.optim.Optimizer:
    """Build a fused SGD, Adam or AdamW over all trainable parameters, in the order of `named_parameters`."""
    params = [p for p in network.parameters() if p.requires_grad]
    common: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay, "fused": True}
    if options.name == "sgd":
        return torch.optim.SGD(params, momentum=options.momentum, nesterov=options.nesterov, **common)
    cls = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return cls(params, betas=(options.betas[0], options.betas[1]), eps=options.eps, **common)


def names(network: nn.Module) -> list[str]:
    """Return the names of the parameters that the optimizer holds, in its order."""
    return [name for name, p in network.named_parameters() if p.requires_grad]


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as `PARAMETER/SLOT` tensors on the CPU; empty before the first step."""
    flat: dict[str, Tensor] = {}
    for name, parameter in zip(names(network), optimizer.param_groups[0]["params"], strict=True):
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                flat[f"{name}/{slot}"] = torch.as_tensor(value).detach().cpu().clone()
    return flat


def load_optimizer_state_(optimizer: torch.optim.Optimizer, network: nn.Module, flat: Mapping[str, Tensor]) -> None:
    """Load the tensors of `optimizer_state`. Raises LotteryError for a parameter that the network does not have."""
    params = dict(zip(names(network), optimizer.param_groups[0]["params"], strict=True))
    for key, value in flat.items():
        name, _, slot = key.rpartition("/")
        if name not in params:
            raise LotteryError(f"optimizer state: {name} is no parameter of this network")
        parameter = params[name]
        if value.dim():  # in the parameter's memory format, as in `laid_as`
            placed = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:
            placed = value.to(parameter.device, copy=True)  # the step counter, on the parameter's device
        optimizer.state[parameter][slot] = placed


def laid_as(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient in its parameter's memory format, which fused optimizers rely on and do not check."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


@torch.no_grad()
def stepped(
    optimizer: torch.optim.Optimizer, moved: Iterable[Tensor], gradients: Iterable[Tensor], rate: float
) -> None:
    """Do one optimizer step with these gradients at this learning rate, and drop the gradients."""
    for parameter, gradient in zip(moved, gradients, strict=True):
        parameter.grad = laid_as(gradient, parameter)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
