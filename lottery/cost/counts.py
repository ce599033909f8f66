"""Costs that are counted: multiply-adds of a forward pass, and the memory of a training step."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

LOG = logging.getLogger("lottery")


@torch.no_grad()
def multiply_adds(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Count the multiply-adds of each convolution and linear layer for one image, zeros included: layer -> number.

    `nn.MultiheadAttention`, whose forward pass calls no layers, counts by its projections `in_proj` and `out_proj`.
    """
    found: Counter[str] = Counter()

    def add(name: str, module: Any, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            given = [*inputs, *(named[each] for each in ("query", "key", "value") if each in named)]
            found[f"{name}.in_proj"] += sum(each.numel() * module.embed_dim for each in given[:3])
            found[f"{name}.out_proj"] += given[0].numel() * module.embed_dim
            return
        swept = inputs[0] if isinstance(module, _ConvTransposeNd) else output
        channels = swept.shape[-1] if isinstance(module, nn.Linear) else swept.shape[1]
        found[name] += swept.numel() // channels * module.weight.numel()

    with _plain_attention(), ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, _ConvNd | nn.Linear | nn.MultiheadAttention):
                stack.enter_context(module.register_forward_hook(partial(add, name), with_kwargs=True))
        network(images[:1])
    return dict(found)


@torch.no_grad()
def counted(network: nn.Module, images: Tensor) -> int | None:
    """Count the multiply-adds of all matrix products, attention included, for one image: half of torch's FLOP count.

    Returns None, with a warning, where the network has a costly operation that neither torch nor this file can count.
    """
    costly: dict[str, Any] = {}

    class Watch(TorchDispatchMode):
        """A recorder of operations on several tensors that may be costly: by name, or because they are not torch's own.

        It runs below torch's counter, which decomposes composed operations, and so sees the operations that really run.
        """

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = sum(isinstance(value, Tensor) for value in args)
            if given > 1 and (func.namespace not in ("aten", "prims") or COSTLY.search(func._schema.name)):
                costly[func._schema.name.replace("::", ".")] = func._overloadpacket
            return func(*args, **(kwargs or {}))

    with _plain_attention(), Watch(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        network(images[:1])
    uncounted = [name for name, packet in costly.items() if packet not in counter.flop_registry]
    if uncounted:
        LOG.warning("cost_macs_all is null: the cost of %s is not known", ", ".join(sorted(uncounted)))
        return None
    return counter.get_total_flops() // 2


@torch.no_grad()
def attends(network: nn.Module, images: Tensor) -> bool:
    """Whether the network calls torch's own attention, which torch 2.14 does not count on a CPU."""
    called = set()

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with _plain_attention(), Calls():
        network(images[:1])
    return "scaled_dot_product_attention" in called


COSTLY = re.compile(r"attention|(?<!co)mm|(mv|dot)$|conv(?!ert)|rnn|lstm|gru|linear|cdist|transformer")


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Count two products per head: queries · keys, and these · values. Masked ones count, as in torch's formulas."""
    *heads, queries, width = query
    return 2 * prod(heads) * queries * key[-2] * (width + value[-1])


def _vector(matrix: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


# Operations that torch 2.14 does not count, by shapes: two operations per multiply-add.
FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mv: _vector,
    torch.ops.aten.dot: _vector,
    torch.ops.aten.addmv: lambda added, matrix, vector, **_: _vector(matrix),
    torch.ops.aten.addbmm: lambda added, one, other, **_: 2 * prod(one) * other[-1],
}


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Disable torch's fused kernel for `nn.MultiheadAttention` in evaluation mode; torch's counter does not know it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def training_memory(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return the bytes in use at the end of a forward pass in training.

    They are parameters, gradients, momentum, buffers and the tensors saved for the backward pass, each storage once.
    torch's own count of a GPU's peak would include its kernels' workspaces; this count is equal on every device.
    """
    images = images.clone()  # a view would count the memory of the whole batch that it is part of
    saved: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with ExitStack() as stack:
        stack.callback(network.train, network.training)
        network.train()
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        F.cross_entropy(network(images), labels)
    parameters, buffers = (sum(each.nbytes for each in group) for group in (network.parameters(), network.buffers()))
    return 3 * parameters + buffers + sum(saved.values())
