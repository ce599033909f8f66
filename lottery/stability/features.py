"""What layers of a network put out, seen by hooks and reduced at once, so that no features are held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lottery.errors import LotteryError, nearest


@torch.no_grad()
def seen(
    network: nn.Module, layers: Sequence[str], images: Tensor, reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """`reduce(output)` of these modules for a batch, at the moment of the output (what follows may overwrite it).

    In evaluation mode; `network` is left as it was. A module that runs several times contributes the sum (for grams:
    of its features side by side). LotteryError for a name that no module has, for a module that does not run, and
    for an output that is not one tensor.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    if unknown := [name for name in layers if name not in modules or not name]:
        raise LotteryError(f"layers: the network has no module {unknown[0]!r}{nearest(unknown[0], modules)}")
    found: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise LotteryError(f"layers: {name} puts out {type(output).__name__}, expected a tensor")
        reduced = reduce(output)
        found[name] = found[name] + reduced if name in found else reduced

    was_training = network.training
    handles = [modules[name].register_forward_hook(partial(see, name)) for name in layers]
    network.eval()
    try:
        network(images)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in found]:
        raise LotteryError(f"layers: the forward pass does not use {missing[0]}")
    return found
