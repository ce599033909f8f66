"""A unit that can leave a network: build the network and its states with and without the unit."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lottery.errors import ConfigError, cause
from lottery.state import State

TOLERANCE = 1e-5  # largest difference of two values taken as equal, relative to the largest value


@dataclass(frozen=True)
class Unit:
    """A residual branch with an identity shortcut, whose input and output shapes agree.

    name:    path of a module: the whole block, `stages.0.1`, or the main module of a branch, `blocks.3.attn`
    modules: paths of the modules that are replaced when the unit leaves, in the order of the forward pass
    whole:   True: `modules` is one block, which returns its input when its parameters are zero. False: they are a
             branch inside another module, and the branch is zero then
    tensors: names of the parameters and buffers that leave with the unit, in the order of the state_dict
    weights: the names among `tensors` that are convolution, linear or attention weights
    """

    name: str
    modules: tuple[str, ...]
    whole: bool
    tensors: tuple[str, ...]
    weights: tuple[str, ...]


class Replacement(nn.Identity):
    """A stand-in for a removed module: returns its first input, or zeros of that shape.

    With `pair` it returns (output, None), as `nn.MultiheadAttention` does.
    """

    def __init__(self, zero: bool, pair: bool) -> None:
        super().__init__()
        self.zero, self.pair = zero, pair

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = torch.zeros_like(input) if self.zero else input
        return (output, None) if self.pair else output


def remove_(network: nn.Module, units: Iterable[Unit]) -> None:
    """Remove the units, in place. The names of the other tensors stay the same."""
    for unit in units:
        for path in unit.modules:
            leaving = network.get_submodule(path)
            zero = path == unit.modules[-1] and not unit.whole
            _put_(network, path, Replacement(zero, isinstance(leaving, nn.MultiheadAttention)).train(leaving.training))


@contextmanager
def without(network: nn.Module, units: Iterable[Unit]) -> Iterator[None]:
    """Remove the units from the network while the context lasts."""
    units = list(units)
    own = {path: network.get_submodule(path) for unit in units for path in unit.modules}
    try:
        remove_(network, units)
        yield
    finally:
        for path, module in own.items():
            _put_(network, path, module)


def _put_(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def shallow(state: State, units: Iterable[Unit]) -> State:
    """Return the state of the shallow network: without the units' tensors. Tensors are shared, not copied."""
    gone = {name for unit in units for name in unit.tensors}
    return {name: tensor for name, tensor in state.items() if name not in gone}


def silenced(state: State, units: Iterable[Unit], parameters: Container[str]) -> State:
    """Return a copy of a dense network's state in which the units' parameters are zero, so that the units add nothing.

    `parameters`: names of the network's parameters; buffers keep their values.
    """
    gone = {name for unit in units for name in unit.tensors if name in parameters}
    return {name: torch.zeros_like(tensor) if name in gone else tensor.clone() for name, tensor in state.items()}


def dense_form(state: State, like: State, units: Iterable[Unit], parameters: Container[str]) -> State:
    """Return the state with which the dense network computes the same as the shallow network with `state`.

    The units' parameters are zero. Their buffers, and the order of names, come from `like`, a state of the dense
    network. Tensors of `state` are shared, not copied.
    """
    gone = {name for unit in units for name in unit.tensors}
    filled = silenced({name: like[name] for name in like if name in gone}, units, parameters)
    return {name: filled[name] if name in gone else state[name] for name in like}


def silence_(network: nn.Module, units: Iterable[Unit]) -> None:
    """Set the units' parameters to zero, in place."""
    gone = {name for unit in units for name in unit.tensors}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if name in gone:
            parameter.zero_()


def same(found: Any, expected: Tensor) -> bool:
    """Whether `found` is a tensor with the shape, type and (up to rounding) values of `expected`, all finite."""
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    largest = expected.abs().max()
    return bool(torch.isfinite(largest)) and bool((found - expected).abs().max() <= TOLERANCE * largest)


def draw_images(shape: tuple[int, ...], like: nn.Module) -> Tensor:
    """Return two random images, equal at each call, on the network's device and in its precision."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(next((p for p in like.parameters() if p.is_floating_point()), images))


def check_removal(network: nn.Module, units: Iterable[Unit], shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless the network without these units computes the same as with their parameters zero.

    Runs both on a private copy in evaluation mode, on random images of `shape` (C, H, W). `network` is unchanged.
    """
    units = list(units)
    wrong = _difference(network, units, shape)
    if wrong is None:
        return
    alone = ((unit.name, _difference(network, [unit], shape)) for unit in units)
    together = (", ".join(unit.name for unit in units), wrong)
    name, why = next(((name, why) for name, why in alone if why is not None), together)
    raise ConfigError(f"method.remove: {name} cannot leave {type(network).__name__}: {why}")


@torch.no_grad()
def _difference(network: nn.Module, units: list[Unit], shape: tuple[int, ...]) -> str | None:
    """Return how the network fails without the units, or None if it computes the expected logits."""
    copy = deepcopy(network).eval()
    images = draw_images(shape, copy)
    with torch.random.fork_rng(devices=[]):
        try:
            silence_(copy, units)
            expected = copy(images.clone())
            remove_(copy, units)
            found = copy(images)
        except Exception as error:
            return f"without it the network does not run: {cause(error)}"
    if not isinstance(expected, Tensor) or expected.ndim != 2 or len(expected) != len(images):
        return "the network does not give [N, classes] logits"
    if not torch.isfinite(expected).all():
        return "the network's logits are not finite"
    return None if same(found, expected) else "the network does not compute the same as with its parameters zero"
