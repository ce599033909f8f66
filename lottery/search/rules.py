"""Rules from scores to masks: the highest scores stay, exactly as many as the rule says. `Top` is the simplest rule.

Scores and masks are parallel lists of tensors, one for each tensor of weights; masks are 0.0 and 1.0, written in place.
Scores must be finite. Of equal scores the earlier entry (tensor order, then row-major index) is pruned first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.errors import ConfigError, LotteryError, nearest
from lottery.pruning.prune import highest
from lottery.pruning.structure import groups_to_remove, without_lowest
from lottery.search.top import Count, Top, values_of, write

_PAIRWISE = 16  # up to this size, comparing all pairs of a group is faster than sorting it


class Rule(Protocol):
    """The step of a search from scores to masks."""

    changed: list[NDArray[np.intp]] | None  # entries of each mask that the last call changed; None: unknown

    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        """Write the masks that follow from the scores; return how many entries came in, which is how many went out.

        progress: share of the search that is done, in [0, 1]. Nobody else may change the masks between two calls.
        """


class TopGroups:
    """The rule that keeps whole filters (dim 0) or input channels (dim 1) of convolutions: those of highest L2 norm.

    The norm is of a group's scores. Each tensor loses int((1 - density) · groups) groups (`groups_to_remove`).
    """

    def __init__(self, shapes: Mapping[str, torch.Size], density: float, dim: int) -> None:
        """Raise ConfigError where a layer is not a convolution, or the density leaves less than one of its groups."""
        self.dim = dim
        self.changed: list[NDArray[np.intp]] | None = None
        if other := next((name for name, shape in shapes.items() if len(shape) < 3), None):
            expected = f"convolutions only, which {other!r} is not; leave it out of what is pruned (prunable.exclude)"
            raise ConfigError.of("method.pattern", ("filter", "channel")[dim], expected)
        what = ("filters", "input channels")[dim]
        self.removed = [groups_to_remove(name, shape[dim], density, what) for name, shape in shapes.items()]

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        came: Count = 0
        for score, mask, gone in zip(scores, masks, self.removed, strict=True):
            keep = without_lowest(_group_norms(score, self.dim), gone)
            came += write(mask, keep.view([-1 if d == self.dim else 1 for d in range(mask.dim())]).expand_as(mask))
        return came


def _group_norms(scores: Tensor, dim: int) -> Tensor:
    """Return the L2 norm of each group [groups], added up in one order for all, so that equal groups tie."""
    dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
    norms = torch.linalg.vector_norm(scores.contiguous().flatten(2), dim=2, dtype=dtype)
    return torch.linalg.vector_norm(norms.transpose(0, dim).contiguous(), dim=1)


class NM:
    """The rule that keeps the n highest-scored of each m consecutive weights along the input dimension (N:M sparsity).

    A convolution's group is m consecutive input channels at one position of one filter.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], n: int, m: int) -> None:
        """Raise ConfigError unless n is in 1 … m and each layer's inputs can be divided into groups of m."""
        if not 0 < n <= m:
            raise ConfigError.of("method.pattern", f"{n}:{m}", "N:M with 0 < N <= M, such as 2:4")
        for name, shape in shapes.items():
            if len(shape) < 2 or shape[1] % m:
                inputs = shape[1] if len(shape) > 1 else 1
                expected = f"an M that divides the {inputs} inputs of {name!r}; or leave it out of what is pruned"
                raise ConfigError.of("method.pattern", f"{n}:{m}", f"{expected} (prunable.exclude)")
        self.n, self.m = n, m
        self.changed: list[NDArray[np.intp]] | None = None

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        came: Count = 0
        for score, mask in zip(scores, masks, strict=True):
            groups = score.reshape(score.shape[0], score.shape[1] // self.m, self.m, -1)
            keep = _pairwise(groups, self.n) if self.m <= _PAIRWISE else _sorted(groups, self.n)
            came += write(mask, keep.view(mask.shape))
        return came


def _pairwise(groups: Tensor, n: int) -> Tensor:
    """Return which entries along dim 2 have fewer than n others ahead of them; of equal entries the later is ahead."""
    columns = [column.contiguous() for column in groups.unbind(2)]
    before = [torch.full_like(column, place, dtype=torch.uint8) for place, column in enumerate(columns)]
    for i, j in itertools.combinations(range(len(columns)), 2):
        wins = _at_least(columns[j], columns[i])
        before[i] += wins
        before[j] -= wins
    return torch.stack(before, 2) < n


def _at_least(a: Tensor, b: Tensor) -> Tensor:
    """Return a >= b as 0 and 1 in uint8. On the CPU by numpy, whose comparisons take an eighth of the time."""
    if a.is_cpu and a.dtype != torch.bfloat16:
        return torch.from_numpy(np.greater_equal(a.numpy(), b.numpy()).view(np.uint8))
    return (a >= b).view(torch.uint8)


def _sorted(groups: Tensor, n: int) -> Tensor:
    lowest = torch.sort(groups, dim=2, stable=True).indices[:, :, : groups.shape[2] - n]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(2, lowest, False)


RESTRICTIONS: Mapping[str, Callable[[float], float]] = {
    "none": lambda progress: 1.0,
    "quartic": lambda progress: (1 - progress) ** 4,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


def schedule(restriction: str | float) -> Callable[[float], float]:
    """Return ρ by progress, both in [0, 1]. ConfigError unless `restriction` is in RESTRICTIONS or a constant."""
    if isinstance(restriction, str) and restriction in RESTRICTIONS:
        return RESTRICTIONS[restriction]
    if isinstance(restriction, int | float) and not isinstance(restriction, bool) and 0 <= restriction <= 1:
        return lambda progress: float(restriction)
    hint = nearest(restriction, RESTRICTIONS) if isinstance(restriction, str) else ""
    expected = f"one of {', '.join(RESTRICTIONS)}, or a constant in [0, 1]{hint}"
    raise ConfigError.of("method.short_restriction", restriction, expected)


class Swaps:
    """Short restriction of lottery jackpots: only a share of the weights due to change places does so in each step.

    T is the mask of the counts[i] highest scores of tensor i, b the mask so far. C0 are the weights in T but not in b
    (pruned, but scored above the n_p-th smallest score); C1 those in b but not in T. Both have c weights. Of these ⌈c ·
    ρ⌉ change places: the highest-scored of C0 come in, the lowest-scored of C1 go out. ρ = 1 gives T, ρ = 0 leaves b
    unchanged. The masks must keep counts[i] weights each, as they do after every call.

    The released code (zyxxmu/lottery-jackpots) prepares ρ = (1 - progress)^4 and, commented out, the cosine, but rounds
    ρ up to 1: it runs "none". There C0 and C1 may differ in size where scores tie, and then nothing changes places.
    """

    def __init__(self, counts: Sequence[int], restriction: str | float) -> None:
        self.changed: list[NDArray[np.intp]] | None = None
        self._share = schedule(restriction)
        self._top = Top(counts)

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        share = self._share(progress)
        self.changed = None
        if share == 0:
            return 0
        if share == 1:
            came = self._top(scores, masks)
            self.changed = self._top.changed
            return came
        goals = [torch.empty_like(mask, memory_format=torch.contiguous_format) for mask in masks]
        self._top(scores, goals)
        return sum(_swap(goal, score, mask, share) for goal, score, mask in zip(goals, scores, masks, strict=True))


def _swap(goal: Tensor, score: Tensor, mask: Tensor, share: float) -> int:
    """Move the mask a share of the way to the goal, which is overwritten; return how many entries came in."""
    flat = goal.view(-1)
    at = _different(flat, mask.flatten())
    values, comes = values_of(score.flatten()[at].cpu()), flat[at].cpu() > 0
    come, go = np.flatnonzero(comes), np.flatnonzero(~comes)
    if come.size != go.size:
        kept, expected = (int(each.sum(dtype=torch.float64)) for each in (mask, goal))
        raise LotteryError(f"the mask keeps {kept} weights, expected {expected}")
    number = math.ceil(come.size * share)
    after = np.zeros(values.size, dtype=np.bool_)
    after[come[highest(values[come], number)[0]]] = True
    after[go[highest(values[go], go.size - number)[0]]] = True  # the entries due to go that stay
    flat[at] = torch.from_numpy(after).to(flat)
    mask.copy_(goal)
    return number


def _different(a: Tensor, b: Tensor) -> Tensor:
    """Return where a and b differ, ascending. On the CPU by numpy, which takes a fifth of the time."""
    if a.is_cpu and a.dtype != torch.bfloat16:
        return torch.from_numpy(np.flatnonzero(a.numpy() != b.numpy()))
    return (a != b).nonzero().squeeze(1)
