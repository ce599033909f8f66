"""Which kept weights matter at all: those on a path of kept weights from an input to an output.

The network is run once on a graph level: every value says "a path leads here from the input" (0 or 1), and the
gradient going back says "a path leads from here to the output". A weight is effective where both hold. Each
operation is replaced by a sum over what its result depends on, and numbers are made 0 or 1 again around each layer; so
all that is compared are whole numbers of paths within one layer, and depth neither over- nor underflows, as it does
in SynFlow's products, nor do the signs of weights, ReLUs or the winner of a max-pooling window decide anything.

Exact, for the operations in this file, with these conventions:
- a convolution's weight is effective where it is at any position (padding is no input);
- products of two values (gates, attention) have paths from both factors; softmax mixes its dimension;
- biases, normalisation, tokens and other parameters are no input: what they alone feed is no path;
- normalisation is taken element by element, its statistics are no paths; nor does a scale of 0 cut one;
- it is structure that is counted: a unit whose ReLU is never active, or two paths that cancel, count as connected.
An operation that is not listed here, where a path leads through it, is a LotteryError, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lottery.errors import LotteryError
from lottery.ticket import Mask

_LAYERS = {"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))}
# Element by element, or as good as (normalisation).
_SAME = """
    relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish sigmoid tanh softplus softsign logsigmoid hardtanh
    hardswish hardsigmoid hardshrink softshrink tanhshrink threshold dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_dropout feature_alpha_dropout batch_norm instance_norm group_norm layer_norm rms_norm local_response_norm
    normalize abs neg exp log log1p sqrt rsqrt pow square clamp clip clone contiguous to float double type_as detach
    data identity"""
_PRODUCTS = "add iadd radd sub isub rsub mul imul rmul multiply div truediv itruediv true_divide"
# Sums and rearrangements, which are right as they are.
_SUMS = """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum cumsum
    cat concat concatenate stack hstack vstack split split_with_sizes tensor_split chunk unbind select narrow getitem
    index_select gather take_along_dim view view_as reshape reshape_as flatten unflatten ravel permute transpose t T mT
    swapaxes movedim moveaxis squeeze unsqueeze expand expand_as repeat repeat_interleave tile roll flip rot90
    pixel_shuffle pixel_unshuffle channel_shuffle unfold fold broadcast_to"""
_AS_IS = set(_SUMS.split())


def effective(network: nn.Module, mask: Mask, shape: tuple[int, ...]) -> Mask:
    """The kept weights that lie on a path from an input of this shape (one example, no batch) to an output.

    The network is not changed. LotteryError where it computes by something this file does not know.
    """
    device = next(network.parameters()).device
    parameters = {name: value.detach() for name, value in network.named_parameters(remove_duplicate=False)}
    weights = {name: kept.float().to(device).requires_grad_() for name, kept in mask.items()}
    if missing := [name for name in weights if name not in parameters]:
        raise LotteryError(f"the mask prunes {missing[0]!r}, which the network does not have")
    was_training = network.training
    network.eval()
    try:
        with torch.enable_grad(), _Paths():
            image = torch.ones(1, *shape, device=device, requires_grad=True)
            output = functional_call(network, parameters | weights, (image,), tie_weights=False)
        if not isinstance(output, Tensor):
            raise LotteryError(f"effective weights: the network gives {type(output).__name__}, expected a tensor")
        paths = torch.autograd.grad(output.sum(), list(weights.values()), allow_unused=True, materialize_grads=True)
    finally:
        network.train(was_training)
    found = zip(mask.items(), paths, strict=True)
    return Mask({name: kept & (count > 0.5).cpu() for (name, kept), count in found})


class _Binary(torch.autograd.Function):
    """0 or 1 again: whether value and gradient exceed their limits.

    What is 0 on paper is 0 exactly but for sums within a convolution, whose algorithms (Winograd) round: there the
    numbers are whole, and one half is the limit.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: float, limit_back: float) -> Tensor:
        ctx.limit_back = limit_back
        return (value > limit).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient > ctx.limit_back).to(gradient.dtype), None, None


class _Paths(TorchFunctionMode):
    """Inside, torch's functions follow paths. A tensor that requires a gradient is one that the input leads to."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not any(_is_path(value) for value in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        name = _name(func)
        if name in _LAYERS:
            return _layer(func, *args, **kwargs)
        written_to = args[0] if func.__name__.endswith("_") and not func.__name__.endswith("__") else None
        args, kwargs = tree_map(_without_constants, (args, kwargs))
        if name in _AS_IS:
            return func(*args, **kwargs)
        if name in _OTHERS and "out" not in kwargs:
            result = _OTHERS[name](*args, **kwargs)
            return result if written_to is None else written_to.copy_(result)
        result = func(*args, **kwargs)
        if result is None or any(_is_path(value) for value in tree_leaves(result)):  # it wrote to a tensor, or made one
            raise _unknown(name)
        return result


def _name(func: Callable[..., Any]) -> str:
    """`add` for torch.add, Tensor.__add__ and Tensor.add_; `T` for the property of this name."""
    name = func.__name__
    if name == "__get__":
        name = func.__self__.__name__  # type: ignore[attr-defined]
    return name.strip("_")


def _is_path(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _without_constants(value: Any) -> Any:
    """Numbers that the input does not lead to are no paths: 0."""
    if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
        return torch.zeros_like(value)
    return value


def _layer(func: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any,
           **kwargs: Any) -> Tensor:  # fmt: skip
    """A convolution or linear layer: without bias, and dense where its weights are not masked."""
    weight = weight if weight.requires_grad else torch.ones_like(weight)
    return _Binary.apply(func(_Binary.apply(input, 0.0, 0.5), weight, None, *args, **kwargs), 0.5, 0.0)


def _unknown(what: str) -> LotteryError:
    return LotteryError(f"effective weights: the network uses {what}, through which no paths are known")


def _same(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A copy, since the network may go on to write to one of the two."""
    return input.clone()


def _joined(one: Any, other: Any, **kwargs: Any) -> Tensor:
    """A sum, difference, product or quotient: paths from both sides, of which one may be a number."""
    sides = [side if isinstance(side, Tensor) else torch.zeros(()) for side in (one, other)]
    paths = [side for side in sides if side.requires_grad]
    shape = torch.broadcast_shapes(*(side.shape for side in sides))
    return torch.stack([side.expand(shape) for side in paths]).sum(0)


def _pooled(average: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Max pooling as average pooling: a path from everything in the window."""

    def pooled(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Tensor:  # fmt: skip
        if {*tree_leaves(dilation)} != {1} or return_indices:
            raise _unknown("max pooling with dilation or indices")
        return average(input, kernel_size, stride or kernel_size, padding, ceil_mode)

    return pooled


def _adaptive(average: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pooled(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        if return_indices:
            raise _unknown("max pooling with indices")
        return average(input, output_size)

    return pooled


def _pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    return F.pad(input, pad, mode)


def _mixed(input: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """Softmax: every entry of the dimension leads to every other."""
    return input.sum(dim, keepdim=True).expand_as(input)


def _maximum(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return input.sum(dim, keepdim)


def _matrix_product(one: Tensor, other: Tensor) -> Tensor:
    """Entry [i, k] depends on row i of the one and on column k of the other, at least two-dimensional, matrix."""
    if min(one.dim(), other.dim()) < 2:
        raise _unknown("matmul of vectors")
    return _joined(one.sum(-1, keepdim=True), other.sum(-2, keepdim=True))


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Entry [i, d] depends on query i, on all keys, and on entry d of all values."""
    rows = _joined(query.sum(-1, keepdim=True), key.sum((-2, -1), keepdim=True))
    return _joined(rows, value.sum(-2, keepdim=True))


_OTHERS: Mapping[str, Callable[..., Tensor]] = {
    **dict.fromkeys(_SAME.split(), _same), **dict.fromkeys(_PRODUCTS.split(), _joined),
    "max_pool1d": _pooled(F.avg_pool1d), "max_pool2d": _pooled(F.avg_pool2d), "max_pool3d": _pooled(F.avg_pool3d),
    "adaptive_max_pool1d": _adaptive(F.adaptive_avg_pool1d),
    "adaptive_max_pool2d": _adaptive(F.adaptive_avg_pool2d),
    "adaptive_max_pool3d": _adaptive(F.adaptive_avg_pool3d),
    "pad": _pad, "softmax": _mixed, "log_softmax": _mixed, "amax": _maximum,
    "matmul": _matrix_product, "bmm": _matrix_product, "scaled_dot_product_attention": _attention,
}  # fmt: skip
