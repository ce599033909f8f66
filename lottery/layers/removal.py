"""A unit of a network, what it means that it leaves, and states with and without it."""

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

TOLERANCE = 1e-5  # of values, relative to the largest


@dataclass(frozen=True)
class Unit:
    """A residual branch with an identity shortcut, whose input and output shapes agree.

    name:    of a module: the whole block, `stages.0.1`, or the main one of a branch, `blocks.3.attn`
    modules: paths of what is replaced when it leaves, in the order of the forward pass
    whole:   `modules` is one block, which gives its input when its parameters are zero; else they are a branch in the
             forward pass of another module, and it is the branch that is zero then
    tensors: names of the parameters and buffers that leave with it, in the order of the state_dict
    weights: those of them that are convolution, linear or attention weights
    """

    name: str
    modules: tuple[str, ...]
    whole: bool
    tensors: tuple[str, ...]
    weights: tuple[str, ...]


class Passing(nn.Identity):
    """Gives its first input, whatever the module in its place was called with. `pair`: and None, as attention does."""

    def __init__(self, pair: bool = False) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (input, None) if self.pair else input


class Nothing(Passing):
    """Gives zeros of its first input's shape."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(torch.zeros_like(input))


def remove_(network: nn.Module, units: Iterable[Unit]) -> None:
    """Really take the units out, in place. The names of the other tensors stay the same."""
    for unit in units:
        for path in unit.modules:
            leaving = network.get_submodule(path)
            kind = Nothing if path == unit.modules[-1] and not unit.whole else Passing
            module = kind(pair=isinstance(leaving, nn.MultiheadAttention))
            _put_(network, path, module.train(leaving.training))


@contextmanager
def without(network: nn.Module, units: Iterable[Unit]) -> Iterator[None]:
    """The network without the units, as long as the context lasts."""
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
    """The state of the network without the units; of the dense one's, or its own. Tensors are shared, not copied."""
    gone = {name for unit in units for name in unit.tensors}
    return {name: tensor for name, tensor in state.items() if name not in gone}


def silenced(state: State, units: Iterable[Unit], parameters: Container[str]) -> State:
    """A private copy of a dense network's state in which the units give nothing: their parameters are zero.

    `parameters`: the names of the network's parameters; buffers stay as they are.
    """
    gone = {name for unit in units for name in unit.tensors if name in parameters}
    return {name: torch.zeros_like(tensor) if name in gone else tensor.clone() for name, tensor in state.items()}


def dense_form(state: State, like: State, units: Iterable[Unit], parameters: Container[str]) -> State:
    """The dense network's state that computes the same as the shallow network's `state`.

    The units' parameters are zero, their buffers those of `like`, a state of the dense network, whose order of names
    the result has. Tensors of `state` are shared, not copied.
    """
    gone = {name for unit in units for name in unit.tensors}
    filled = silenced({name: like[name] for name in like if name in gone}, units, parameters)
    return {name: filled[name] if name in gone else state[name] for name in like}


def silence_(network: nn.Module, unit: Unit) -> None:
    """Set the unit's parameters to zero, in place."""
    own = dict(network.named_parameters(remove_duplicate=False))
    for name in unit.tensors:
        if name in own:
            own[name].zero_()


def same(found: Any, expected: Tensor) -> bool:
    """A tensor of the same shape and kind and, to rounding, the same finite values."""
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    largest = expected.abs().max()
    return bool(torch.isfinite(largest)) and bool((found - expected).abs().max() <= TOLERANCE * largest)


def draw_images(shape: tuple[int, ...], like: nn.Module) -> Tensor:
    """Two random images, always the same ones, where the network is and of its precision."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(next((p for p in like.parameters() if p.is_floating_point()), images))


def check_removal(network: nn.Module, units: Iterable[Unit], shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless the network without these units computes the same as with their parameters zero.

    Runs both, on a private copy in evaluation mode, on random images of `shape` (C, H, W). `network` stays as it is.
    """
    units = list(units)
    broken = _difference(network, units, shape)
    if broken is None:
        return
    alone = ((unit.name, _difference(network, [unit], shape)) for unit in units)
    first = next(((name, why) for name, why in alone if why is not None), None)
    name, why = first or (", ".join(unit.name for unit in units), broken)
    raise ConfigError(f"method.remove: {name} cannot leave {type(network).__name__}: {why}")


@torch.no_grad()
def _difference(network: nn.Module, units: list[Unit], shape: tuple[int, ...]) -> str | None:
    """What is wrong with the network without the units; None if nothing."""
    copy = deepcopy(network).eval()
    images = draw_images(shape, copy)
    with torch.random.fork_rng(devices=[]):
        try:
            for unit in units:
                silence_(copy, unit)
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
