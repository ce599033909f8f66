"""How a mask follows from scores: the highest stay, exactly as many as the rule says.

Scores and masks are parallel lists of tensors, one for each tensor of weights; masks are 0.0 and 1.0, and written in
place. Scores must be finite. Of equal scores the earlier entry is pruned first (tensor order, then row-major index):
the order of `lottery.pruning.prune`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.errors import ConfigError
from lottery.search.top import Count, Top, write

_PAIRWISE = 16  # up to so many, comparing all pairs of a group is faster than sorting it


class Rule(Protocol):
    """What a search does with its scores after each step."""

    kept: list[int] | None  # entries that each tensor keeps; None where only their sum is fixed
    changed: list[NDArray[np.intp]] | None  # which entries of each mask the last call changed; None: not known

    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        """Write the masks that follow from the scores; returns how many entries came in, as many as went out.

        progress: the share of the search that is done, in [0, 1]. Between two calls nobody else changes the masks.
        """


class TopK:
    """Of tensor i the counts[i] highest scores stay."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.kept: list[int] | None = list(counts)
        self.changed: list[NDArray[np.intp]] | None = None
        self._top = Top(counts)

    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        came = self._top(scores, masks)
        self.changed = self._top.changed
        return came


class TopKGlobal:
    """The `count` highest scores of all tensors together stay."""

    def __init__(self, count: int) -> None:
        self.kept: list[int] | None = None
        self.changed: list[NDArray[np.intp]] | None = None
        self._top = Top(count)

    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        came = self._top(scores, masks)
        self.changed = self._top.changed
        return came


class TopGroups:
    """Whole filters (dim 0) or whole input channels (dim 1) of convolutions stay: those of highest L2 norm of scores.

    Each tensor loses int((1 - density) · groups) of its groups, rounded as if the density were exact.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], density: float, dim: int) -> None:
        """ConfigError where a layer is no convolution, or has so few groups that the density leaves less than one."""
        self.dim = dim
        self.changed: list[NDArray[np.intp]] | None = None
        self.removed = [_removed(name, shape, density, dim) for name, shape in shapes.items()]
        self.kept: list[int] | None = [
            shape.numel() // shape[dim] * (shape[dim] - gone)
            for shape, gone in zip(shapes.values(), self.removed, strict=True)
        ]

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        came: Count = 0
        for score, mask, gone in zip(scores, masks, self.removed, strict=True):
            norms = _group_norms(score, self.dim)
            keep = torch.ones_like(norms, dtype=torch.bool)
            keep.index_fill_(0, torch.sort(norms, stable=True).indices[:gone], False)
            came += write(mask, keep.view([-1 if d == self.dim else 1 for d in range(mask.dim())]).expand_as(mask))
        return came


def _removed(name: str, shape: torch.Size, density: float, dim: int) -> int:
    pattern = ("filter", "channel")[dim]
    if len(shape) < 3:
        expected = f"convolutions only, which {name!r} is not; leave it out of what is pruned (prunable.exclude)"
        raise ConfigError.of("method.pattern", pattern, expected)
    groups, what = shape[dim], ("filters", "input channels")[dim]
    if density * groups < 1 - 1e-5:  # so that the least density passes as the message rounds it
        raise ConfigError.of("method.density", density, f"at least {1 / groups:.6g}: {name!r} has {groups} {what}")
    return int((1 - density) * groups + 1e-9)  # 1 - 0.8 is a little less than 0.2: of 5 groups, 1 should go


def _group_norms(scores: Tensor, dim: int) -> Tensor:
    """The L2 norm of each group [groups], added up in the same order for each: equal groups tie."""
    dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
    norms = torch.linalg.vector_norm(scores.contiguous().flatten(2), dim=2, dtype=dtype)
    return torch.linalg.vector_norm(norms.transpose(0, dim).contiguous(), dim=1)


class NM:
    """Of each m consecutive weights along the input dimension the n highest-scored stay (N:M sparsity).

    A group of a convolution lies in m consecutive input channels at one position of one filter.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], n: int, m: int) -> None:
        """ConfigError where n is not in 1 … m, or a layer's inputs cannot be divided into groups of m."""
        if not 0 < n <= m:
            raise ConfigError.of("method.pattern", f"{n}:{m}", "N:M with 0 < N <= M, such as 2:4")
        for name, shape in shapes.items():
            if len(shape) < 2 or shape[1] % m:
                inputs = shape[1] if len(shape) > 1 else 1
                expected = f"an M that divides the {inputs} inputs of {name!r}; or leave it out of what is pruned"
                raise ConfigError.of("method.pattern", f"{n}:{m}", f"{expected} (prunable.exclude)")
        self.n, self.m = n, m
        self.changed: list[NDArray[np.intp]] | None = None
        self.kept: list[int] | None = [shape.numel() // m * n for shape in shapes.values()]

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        came: Count = 0
        for score, mask in zip(scores, masks, strict=True):
            groups = score.reshape(score.shape[0], score.shape[1] // self.m, self.m, -1)
            keep = _pairwise(groups, self.n) if self.m <= _PAIRWISE else _sorted(groups, self.n)
            came += write(mask, keep.view(mask.shape))
        return came


def _pairwise(groups: Tensor, n: int) -> Tensor:
    """Which entries along dim 2 have fewer than n others before them; a later one goes before an equal earlier one."""
    columns = [column.contiguous() for column in groups.unbind(2)]
    before = [torch.full_like(column, place, dtype=torch.uint8) for place, column in enumerate(columns)]
    for i, j in itertools.combinations(range(len(columns)), 2):
        wins = _at_least(columns[j], columns[i])
        before[i] += wins
        before[j] -= wins
    return torch.stack(before, 2) < n


def _at_least(a: Tensor, b: Tensor) -> Tensor:
    """a >= b as 0 and 1 in uint8. On the CPU by numpy, whose comparisons take an eighth of the time."""
    if a.is_cpu and a.dtype != torch.bfloat16:
        return torch.from_numpy(np.greater_equal(a.numpy(), b.numpy()).view(np.uint8))
    return (a >= b).view(torch.uint8)


def _sorted(groups: Tensor, n: int) -> Tensor:
    lowest = torch.sort(groups, dim=2, stable=True).indices[:, :, : groups.shape[2] - n]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(2, lowest, False)
