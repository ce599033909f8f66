"""Effective weights: kept weights on a path of kept weights from an input to an output.

The network runs once on its graph. Each value is 1 where a path from the input leads to it, else 0; each gradient is 1
where a path leads on to the output, else 0. A weight is effective where both are 1. Each operation is replaced by a sum
over the entries that its result depends on, and numbers are set back to 0 or 1 around each layer. So only whole numbers
of paths within one layer are compared: nothing over- or underflows with depth, as SynFlow's products do, and the signs
of weights, ReLUs and the winner of a max-pooling window do not matter.

The result is exact for the operations in `dependence.py`; others on a path raise LotteryError. The conventions:
- a convolution's weight is effective if it is at any position (padding is not an input);
- products of two values (gates, attention) have paths from both factors; softmax mixes its dimension;
- biases, normalisation, tokens and other parameters are not inputs: no path starts there;
- normalisation works element by element: its statistics are no paths, and a scale of 0 does not cut one;
- structure alone counts: a unit whose ReLU is never active is connected, and so are two paths that cancel;
- masked (causal) attention has no paths from entries that it may not look at;
- checkpointed parts run again in the backward pass by these rules, with `use_reentrant=False` (True is refused).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lottery.errors import LotteryError
from lottery.stability.dependence import AS_IS, MASKED, OTHERS, is_path, unknown, without_constants
from lottery.ticket import Mask

_LAYERS = {"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))}


def effective(network: nn.Module, mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Return the kept weights on a path from an input of this shape (one example, no batch) to an output.

    The network's weights and mode are unchanged. Raises LotteryError for operations that `dependence.py` does not know.
    """
    device = next(network.parameters()).device
    parameters = {name: value.detach() for name, value in network.named_parameters(remove_duplicate=False)}
    weights = {name: kept.float().to(device).requires_grad_() for name, kept in mask.items()}
    if missing := [name for name in weights if name not in parameters]:
        raise LotteryError(f"the mask prunes {missing[0]!r}, which the network does not have")
    with ExitStack() as stack, torch.enable_grad(), _Paths():
        stack.callback(network.train, network.training)
        network.eval()
        image = torch.ones(1, *shape, device=device, requires_grad=True)
        values = {f"network.{name}": value for name, value in (parameters | weights).items()}
        functional_call(_ThereAndBack(network), values, (image,), tie_weights=False)
    counts = {name: torch.zeros(()) if weight.grad is None else weight.grad for name, weight in weights.items()}
    return Mask({name: kept & (counts[name] > 0.5).cpu() for name, kept in mask.items()})


class _ThereAndBack(nn.Module):
    """The forward and backward pass in one call, so that checkpointed parts find the mode and the weights in both."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> None:
        output = self.network(image)
        if not isinstance(output, Tensor):
            raise LotteryError(f"effective weights: the network gives {type(output).__name__}, expected a tensor")
        if output.requires_grad:
            # Call the engine itself: torch.autograd.backward would disable the mode.
            engine = torch.autograd.Variable._execution_engine
            total = output.sum()
            engine.run_backward((total,), (torch.ones_like(total),), False, False, (), True, accumulate_grad=True)


class _Binary(torch.autograd.Function):
    """A function that sets values above `limit` and gradients above `limit_back` to 1, and all others to 0.

    Only convolutions, whose algorithms (Winograd) round, may give small numbers in place of 0. The exact results there
    are whole numbers, so the limit is one half.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: float, limit_back: float) -> Tensor:
        ctx.limit_back = limit_back
        return (value > limit).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient > ctx.limit_back).to(gradient.dtype), None, None


class _Paths(TorchFunctionMode):
    """A mode in which torch's functions follow paths. A tensor requires a gradient where a path leads to it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not any(is_path(value) for value in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        name = _name(func)
        if not torch.is_grad_enabled() and any(isinstance(v, Tensor) for v in tree_leaves(func(*args, **kwargs))):
            raise unknown(f"{name} without gradients (by torch.no_grad, or checkpointing with use_reentrant=True)")
        if name in _LAYERS:
            return _layer(func, *args, **kwargs)
        written_to = args[0] if func.__name__.endswith("_") and not func.__name__.endswith("__") else None
        if name in MASKED and written_to is None:
            return MASKED[name](*args, **kwargs)
        args, kwargs = tree_map(without_constants, (args, kwargs))
        if name in AS_IS:
            return func(*args, **kwargs)
        if name in OTHERS and kwargs.pop("out", None) is None:
            result = OTHERS[name](*args, **kwargs)
            return result if written_to is None else written_to.copy_(result)
        result = func(*args, **kwargs)
        if result is None or any(is_path(value) for value in tree_leaves(result)):  # it wrote or returned a tensor
            raise unknown(name)
        return result


def _name(func: Callable[..., Any]) -> str:
    """Return `add` for torch.add, Tensor.__add__ and Tensor.add_; `T` for the property of this name."""
    name = func.__name__
    if name == "__get__":
        name = func.__self__.__name__  # type: ignore[attr-defined]
    return name.strip("_")


def _layer(func: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any,
           **kwargs: Any) -> Tensor:  # fmt: skip
    """Run a convolution or linear layer without bias; a layer without a mask counts as dense."""
    weight = weight if weight.requires_grad else torch.ones_like(weight)
    return _Binary.apply(func(_Binary.apply(input, 0.0, 0.5), weight, None, *args, **kwargs), 0.5, 0.0)
