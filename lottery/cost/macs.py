"""Multiply-adds of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def multiply_adds(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer for one image, zeros included: layer -> how many.

    Of an `nn.MultiheadAttention`, whose forward pass calls no layers, the projections: its `in_proj` and `out_proj`.
    """
    found: dict[str, int] = {}

    def add(name: str, count: int) -> None:
        found[name] = found.get(name, 0) + count

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def after(module: Any, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Any) -> None:
            if isinstance(module, nn.MultiheadAttention):
                given = [*inputs, *(named[each] for each in ("query", "key", "value") if each in named)]
                add(f"{name}.in_proj", sum(each.numel() * module.embed_dim for each in given[:3]))
                add(f"{name}.out_proj", given[0].numel() * module.embed_dim)
                return
            swept = inputs[0] if isinstance(module, _ConvTransposeNd) else output
            channels = swept.shape[-1] if isinstance(module, nn.Linear) else swept.shape[1]
            add(name, swept.numel() // channels * module.weight.numel())

        return module.register_forward_hook(after, with_kwargs=True)

    kinds = _ConvNd | nn.Linear | nn.MultiheadAttention
    handles = [watch(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    try:
        with _plain_attention():
            network(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def counted(network: nn.Module, images: Tensor) -> int:
    """Multiply-adds for one image of all that torch's counter knows, attention too: half of its operations."""
    with _plain_attention(), FlopCounterMode(display=False) as counter:
        network(images[:1])
    return counter.get_total_flops() // 2


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without torch's fused kernel for `nn.MultiheadAttention` in evaluation mode, which its counter does not know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
