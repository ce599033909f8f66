"""Linear mode connectivity: loss and error on the line between networks, and the barrier (Frankle et al. 2020).

Barriers depend on batch normalisation: running statistics are either interpolated along the line, or estimated anew at
each point (`recomputed`). Frankle et al. 2020 do the former as far as is known; Garipov et al. 2018 and the
three-regime study do the latter. Never compare barriers across the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from math import isnan
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lottery.errors import ConfigError, LotteryError
from lottery.stability.precision import precise
from lottery.state import State

if TYPE_CHECKING:
    from lottery.data.dataset import Batch

Score = tuple[float, float]
"""Mean loss, and error in [0, 1]."""


def between(one: State, other: State, alpha: float) -> State:
    """Return (1 - alpha) one + alpha other, with alpha in [0, 1], for parameters and running statistics.

    Entries that are not floating-point (counters) are copied from the nearer end. At alpha 0 and 1 the result is
    bit-identical to that end. Values that both ends share stay at any alpha, so weights that both have pruned are 0.
    Raises LotteryError for states that do not match.
    """
    check_alike([one, other])
    return {
        name: torch.lerp(a, other[name], alpha)
        if a.is_floating_point()
        else (a if alpha < 0.5 else other[name]).clone()
        for name, a in one.items()
    }


@dataclass(frozen=True, eq=False)
class LinearPath:
    """Networks joined by straight lines, with `points` evenly spaced points on each line, including its two ends.

    Two adjacent lines share one point.
    """

    ends: Sequence[State]
    points: int = 30

    def __post_init__(self) -> None:
        if len(self.ends) < 2:
            raise LotteryError(f"a path: got {len(self.ends)} networks, expected at least 2")
        if self.points < 2:
            raise ConfigError.of("points", self.points, "a number ≥ 2, both ends included")
        check_alike(self.ends)

    def states(self) -> Iterator[State]:
        """Yield the state of each point, computed on demand, on the device of the ends."""
        lines, steps = len(self.ends) - 1, self.points - 1
        for k in range(lines * steps + 1):
            line = min(k // steps, lines - 1)
            yield between(self.ends[line], self.ends[line + 1], (k - line * steps) / steps)


def check_alike(states: Sequence[State]) -> None:
    """Raise LotteryError, naming the first difference, unless all states have the same names, shapes and types."""
    first = states[0]
    for state in states[1:]:
        for name in (*first, *state):
            if name not in first or name not in state:
                raise LotteryError(f"networks of different architectures: only one of them has {name!r}")
            a, b = first[name], state[name]
            if a.shape != b.shape or a.dtype != b.dtype:
                shapes = f"{list(a.shape)} {a.dtype} and {list(b.shape)} {b.dtype}"
                raise LotteryError(f"networks of different architectures: {name!r} is {shapes}")


@dataclass(frozen=True)
class Interpolation:
    """Loss and error at the points of a path; each line has `points` points, including both ends."""

    loss: list[float]
    error: list[float]
    points: int

    def barriers(self, what: Literal["loss", "error"]) -> list[float]:
        """Return the barrier of each line."""
        values = self.loss if what == "loss" else self.error
        return [barrier(values[k : k + self.points]) for k in range(0, len(values) - 1, self.points - 1)]


def barrier(values: Sequence[float]) -> float:
    """Return max(values) - (first + last) / 2, for values along a line from one end to the other.

    This is at least half the difference of the ends, so never negative. NaN between the ends counts as infinitely high.
    The barrier is NaN where a value at an end is not finite.
    """
    top = max(float("inf") if isnan(value) else value for value in values)
    return top - (values[0] + values[-1]) / 2


def highest(barriers: Sequence[float]) -> float:
    """Return the largest barrier, or NaN where any of them is NaN."""
    return float("nan") if any(map(isnan, barriers)) else max(barriers)


def along(path: LinearPath, measure: Callable[[Sequence[State]], Sequence[Score]], at_once: int = 30) -> Interpolation:
    """Measure the points of the path, up to `at_once` states at a time, which share one pass over the data."""
    states, found = path.states(), list[Score]()
    while group := list(islice(states, at_once)):
        found += measure(group)
    loss, error = zip(*found, strict=True)
    return Interpolation(list(loss), list(error), path.points)


@torch.no_grad()
def scores(network: nn.Module, states: Sequence[State], batches: Iterable[Batch]) -> list[Score]:
    """Return the mean cross-entropy (nats) and the error in [0, 1] of each state, in evaluation mode.

    States, network and batches lie on one device; sums stay there and are read once. The network's mode is restored.
    """
    sums: Tensor | None = None
    count = 0
    with ExitStack() as stack:
        stack.callback(network.train, network.training)
        network.eval()
        for images, labels in batches:
            logits = (functional_call(network, state, (images,), tie_weights=False) for state in states)
            tallied = torch.stack([_tally(of, labels) for of in logits])
            sums = tallied if sums is None else sums + tallied
            count += len(labels)
    if sums is None:
        raise ValueError("scores: no batches")
    return [(loss / count, error / count) for loss, error in sums.tolist()]


def _tally(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return precise(torch.stack((loss, (logits.argmax(1) != labels).sum())))


def states_at_once(state: State, budget: int = 256 * 2**20) -> int:
    """Return how many such states fit into `budget` bytes, at least one. 256 MiB hold 251 LeNets or two ResNet-50."""
    return max(1, budget // max(1, sum(tensor.nbytes for tensor in state.values())))


def normalised(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch normalisations that keep running statistics, by module name."""
    return {
        name: module
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@torch.no_grad()
def recomputed(network: nn.Module, state: State, images: Iterable[Tensor]) -> State:
    """Return `state` with new running statistics: the plain means, over the batches, of each batch's mean and variance.

    Meanwhile batch normalisation uses the batch's statistics, and all else (dropout) is in evaluation mode. Apart from
    the dropout this is torch's `swa_utils.update_bn`. The images should not be augmented. Network and `state` are
    unchanged; the result shares the state's other tensors.
    """
    layers = normalised(network)
    fresh = dict(state)
    for name in layers:
        for statistic, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
            key = f"{name}.{statistic}" if name else statistic
            fresh[key] = torch.full_like(state[key], value)
    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(setattr, module, "training", module.training)
        network.eval()
        for layer in layers.values():
            stack.callback(setattr, layer, "momentum", layer.momentum)
            layer.train()
            layer.momentum = None  # the plain mean, not the exponential one
        for batch in images if layers else ():
            functional_call(network, fresh, (batch,), tie_weights=False)
    return fresh
