"""Keep a ticket's pruned weights at zero in anyone's training: a wrapper of any torch optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lottery.errors import LotteryError
from lottery.ticket import Mask
from lottery.training.masking import MaskedStep


class MaskedOptimizer(Optimizer):
    """An optimizer under whose steps pruned weights stay exactly zero, whatever momentum, decay or clipping do.

    optimizer: any torch optimizer of the network's parameters. It can still be used by itself, with the same effect.
    network:   the network, on its device, or a module that contains it (compiled, DDP, a LightningModule)
    mask:      a `Mask`, or bool tensors by parameter name, true = kept

    Sets pruned weights to zero, and the optimizer's state there (momentum, moments). From then on the gradients of
    pruned weights are zeroed as `backward` adds them, so clipping sees kept weights only, and pruned weights are zeroed
    after each step. The wrapper is an `Optimizer`: learning-rate schedulers and GradScaler take it. `state_dict` has
    the mask's digest; `load_state_dict` raises LotteryError for that of another mask. `release()` ends the masking, as
    does the end of the object.

    Raises LotteryError, naming the tensor, where the mask does not fit the network.

    >>> network = torch.nn.Linear(3, 1)
    >>> mask = lottery.Mask({"weight": torch.tensor([[True, False, True]])})
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    >>> optimizer = lottery.MaskedOptimizer(optimizer, network, mask)
    >>> for _ in range(3):
    ...     network(torch.ones(4, 3)).sum().backward()
    ...     optimizer.step()
    >>> network.weight[0, 1].item()
    0.0
    """

    # A GradScaler then divides the gradients itself, instead of passing the scale to this object's fused step.
    _step_supports_amp_scaling = False

    def __init__(self, optimizer: Optimizer, network: nn.Module, mask: Mapping[str, Tensor]) -> None:
        self.optimizer = optimizer
        self.mask = mask if isinstance(mask, Mask) else Mask(mask)
        masked = MaskedStep(holder(network, self.mask), self.mask)
        zero_slots_(optimizer, masked)
        handles = [
            optimizer.register_step_pre_hook(lambda *_: masked.mask_gradients_()),
            optimizer.register_step_post_hook(lambda *_: masked.mask_weights_()),
            optimizer.register_load_state_dict_post_hook(lambda loaded: zero_slots_(loaded, masked)),
            *(hooked(weight, kept) for weight, kept in zip(masked.weights, masked.masks, strict=True)),
        ]
        self.release: Callable[[], object] = weakref.finalize(self, lambda: [handle.remove() for handle in handles])

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # not set yet, in a copy
            raise AttributeError(name)
        return getattr(self.optimizer, name)  # param_groups, state, defaults and an optimizer's own attributes

    def __repr__(self) -> str:
        return f"MaskedOptimizer({self.mask!r}, {self.optimizer!r})"

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Do a step of the optimizer under the mask."""
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and, as `mask`, the mask's digest. The plain optimizer can load it, too."""
        return {**self.optimizer.state_dict(), "mask": self.mask.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and zero it at pruned weights. Raises LotteryError where it is of another mask."""
        check_same(state_dict.get("mask", self.mask.digest), self.mask)
        self.optimizer.load_state_dict(state_dict)


def check_same(digest: str, mask: Mask) -> None:
    """Raise LotteryError where a training that is continued had another mask."""
    if digest != mask.digest:
        raise LotteryError(
            f"the checkpoint was trained under mask {digest[:12]}, and this is mask {mask.digest[:12]}: continue with "
            "the checkpoint's own mask, or load only the network's weights from it to begin a new training"
        )


def hooked(weight: Tensor, kept: Tensor) -> Any:
    """Zero the gradient of pruned entries whenever `backward` has added to it; return the hook's handle."""

    def mask_gradient(each: Tensor) -> None:
        assert each.grad is not None
        each.grad.mul_(kept)

    trained = weight.requires_grad
    weight.requires_grad_(True)  # a frozen weight takes no hook, and it may be trained later
    handle = weight.register_post_accumulate_grad_hook(mask_gradient)
    weight.requires_grad_(trained)
    return handle


@torch.no_grad()
def zero_slots_(optimizer: Optimizer, masked: MaskedStep) -> None:
    """Zero the optimizer's state of pruned entries: every tensor of a weight's state that has the weight's shape."""
    for weight, kept in zip(masked.weights, masked.masks, strict=True):
        for slot in optimizer.state.get(weight, {}).values():
            if isinstance(slot, Tensor) and slot.shape == weight.shape:
                slot.masked_fill_(kept == 0, 0.0)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters(remove_duplicate=False)}


def holder(module: nn.Module, mask: Mask) -> nn.Module:
    """Return the network that the mask fits: the module, or the only part of it that has all of the mask's tensors.

    Raises LotteryError, naming a tensor, where there is none, and where there are several.
    """
    parts = dict(module.named_modules())
    shapes = {path: _shapes(part) for path, part in parts.items()}
    misfits = {path: [name for name in mask if own.get(name) != mask.shapes[name]] for path, own in shapes.items()}
    fitting = [path for path, wrong in misfits.items() if not wrong]
    if not fitting:
        best = min(misfits, key=lambda path: (sum(name not in shapes[path] for name in mask), len(misfits[path])))
        name, own = misfits[best][0], shapes[best]
        flaw = f"which is {list(own[name])} in it" if name in own else "which it does not have"
        kind = type(parts[best]).__name__
        raise LotteryError(f"the mask does not fit {kind}: it prunes {name!r} {list(mask.shapes[name])}, {flaw}")
    first = next(iter(mask))
    if len({id(parts[path].get_parameter(first)) for path in fitting}) > 1:
        raise LotteryError(
            f"the mask fits several parts of {type(module).__name__}: {', '.join(fitting)}; pass the network itself"
        )
    return parts[fitting[0]]
