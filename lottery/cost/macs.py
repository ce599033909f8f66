"""Multiply-adds of a forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def multiply_adds(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer for one image, zeros included: layer -> how many."""
    found: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            swept = inputs[0] if isinstance(module, _ConvTransposeNd) else output
            channels = swept.shape[-1] if isinstance(module, nn.Linear) else swept.shape[1]
            found[name] = found.get(name, 0) + swept.numel() // channels * module.weight.numel()  # type: ignore[operator]

        return module.register_forward_hook(after)

    modules = [(name, each) for name, each in network.named_modules() if isinstance(each, _ConvNd | nn.Linear)]
    handles = [watch(name, module) for name, module in modules]
    try:
        network(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def counted(network: nn.Module, images: Tensor) -> int:
    """Multiply-adds for one image of all that torch's counter knows, attention too: half of its operations."""
    with FlopCounterMode(display=False) as counter:
        network(images[:1])
    return counter.get_total_flops() // 2
