"""Rules for `effective.py`: replace each operation by a sum over the entries that its result depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lottery.errors import LotteryError

# Operations element by element, or treated so (normalisation).
_SAME = """
    relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish sigmoid tanh softplus softsign logsigmoid hardtanh
    hardswish hardsigmoid hardshrink softshrink tanhshrink threshold dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_dropout feature_alpha_dropout batch_norm instance_norm group_norm layer_norm rms_norm local_response_norm
    normalize abs neg exp log log1p sqrt rsqrt pow square clamp clip to float double type_as detach data identity"""
_PRODUCTS = "add iadd radd sub isub rsub mul imul rmul multiply div truediv itruediv true_divide"
# Sums and rearrangements, which need no replacement.
_SUMS = """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum cumsum
    cat concat concatenate stack hstack vstack split split_with_sizes tensor_split chunk unbind select narrow getitem
    clone contiguous index_select gather take_along_dim reshape reshape_as flatten unflatten ravel permute transpose t T
    mT swapaxes movedim moveaxis squeeze unsqueeze expand expand_as repeat repeat_interleave tile roll flip rot90
    pixel_shuffle pixel_unshuffle channel_shuffle unfold fold broadcast_to"""
AS_IS = set(_SUMS.split())


def is_path(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def without_constants(value: Any) -> Any:
    """Return zeros in place of a tensor that does not depend on the input, since it carries no path."""
    if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
        return torch.zeros_like(value)
    return value


def unknown(what: str) -> LotteryError:
    return LotteryError(f"effective weights: the network uses {what}, through which no paths are known")


def _same(
    input: Tensor, *args: Any, memory_format: torch.memory_format = torch.preserve_format, **kwargs: Any
) -> Tensor:
    """Return a copy, since the network may write to the input or the result later."""
    return input.clone(memory_format=memory_format)


def _joined(one: Any, other: Any, *further: Any, **kwargs: Any) -> Tensor:
    """Replace a sum, difference, product or quotient: add the paths of all operands. Some operands may be numbers."""
    sides = [side if isinstance(side, Tensor) else torch.zeros(()) for side in (one, other, *further)]
    paths = [side for side in sides if side.requires_grad]
    shape = torch.broadcast_shapes(*(side.shape for side in sides))
    return torch.stack([side.expand(shape) for side in paths]).sum(0)


def _pooled(average: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Replace max pooling by average pooling: a path from every entry of the window."""

    def pooled(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Tensor:  # fmt: skip
        if {*tree_leaves(dilation)} != {1} or return_indices:
            raise unknown("max pooling with dilation or indices")
        return average(input, kernel_size, stride or kernel_size, padding, ceil_mode)

    return pooled


def _adaptive(average: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pooled(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        if return_indices:
            raise unknown("max pooling with indices")
        return average(input, output_size)

    return pooled


def _mixed(input: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """Replace softmax: each entry along the dimension leads to all others, except to closed ones (probability 0)."""
    mixed = input.sum(dim, keepdim=True).expand_as(input)
    return mixed if _closed(input) is None else _close(mixed, _closed(input))


def _masked_fill(input: Tensor, mask: Tensor, value: float) -> Tensor:
    """Close the filled entries: no path leads to them. With a low value, a softmax gives them a probability of 0."""
    if is_path(value) or value > -1e4:
        raise unknown("masked_fill by another value than -inf")
    return _close(input, mask)


def _close(input: Tensor, closed: Tensor) -> Tensor:
    """Set entries to zero where `closed` (which broadcasts) is True, and attach `closed` to the result."""
    found = input.masked_fill(closed, 0.0)
    found.closed = closed.expand_as(found)  # type: ignore[attr-defined]
    return found


def _closed(input: Tensor) -> Any:
    return getattr(input, "closed", None)


def _as_closed(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copied = _same(input, *args, **kwargs)
    return copied if _closed(input) is None else _close(copied, _closed(input))


def _interpolated(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **kwargs: Any
) -> Tensor:
    """Keep interpolation, a weighted sum: its weights are positive except in bicubic mode."""
    if mode == "bicubic":
        raise unknown("bicubic interpolation")
    return F.interpolate(input, size, scale_factor, mode, **kwargs)


def _matrix_product(one: Tensor, other: Tensor) -> Tensor:
    """Replace a matrix product: entry [i, k] depends on row i of `one`, and on column k of `other`.

    Entries of the column that face a closed entry of the row (attention's masks) are left out.
    """
    if min(one.dim(), other.dim()) < 2:
        raise unknown("matmul of vectors")
    columns = other.sum(-2, keepdim=True) if _closed(one) is None else (~_closed(one)).to(other) @ other
    return _joined(one.sum(-1, keepdim=True), columns)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Replace attention: entry [i, d] depends on query i, on the keys it may attend to, and on entry d of their values.

    It may not attend where the mask is False or at most -1e4. A mask computed from the input is added to the products.
    """
    query, key, value = (without_constants(each) for each in (query, key, value))
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    products = _joined(query.sum(-1, keepdim=True), key.sum(-1)[..., None, :])
    if is_causal:
        attn_mask = products.new_ones(products.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and not is_path(attn_mask):
        products = _close(products, ~attn_mask if attn_mask.dtype == torch.bool else attn_mask <= -1e4)
    elif attn_mask is not None:
        products = products + attn_mask
    return _matrix_product(_mixed(products, -1), value)


# Operations that must see constants, such as masks.
MASKED: Mapping[str, Callable[..., Tensor]] = {
    "scaled_dot_product_attention": _attention, "masked_fill": _masked_fill,
}  # fmt: skip
OTHERS: Mapping[str, Callable[..., Tensor]] = {
    **dict.fromkeys(_SAME.split(), _same), **dict.fromkeys(_PRODUCTS.split(), _joined),
    **dict.fromkeys(("dropout", "to", "float", "type_as"), _as_closed),
    **{f"max_pool{n}d": _pooled(getattr(F, f"avg_pool{n}d")) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive(getattr(F, f"adaptive_avg_pool{n}d")) for n in (1, 2, 3)},
    # reshape: the sums may have another memory layout than the network's tensors, which `view` would refuse.
    "view": lambda input, *shape: input.reshape(*shape), "view_as": lambda input, other: input.reshape(other.shape),
    "pad": lambda input, pad, mode="constant", value=None: F.pad(input, pad, mode),
    "amax": lambda input, dim=None, keepdim=False: input.sum(dim, keepdim),
    "norm": lambda input, p=None, dim=None, keepdim=False, dtype=None: input.sum(dim, keepdim),
    "interpolate": _interpolated, "softmax": _mixed, "log_softmax": _mixed,
    "matmul": _matrix_product, "bmm": _matrix_product,
    "addcmul": lambda input, one, other, value=1: _joined(input, one, other),
}  # fmt: skip
