"""How a mask follows from scores: the highest stay, exactly as many as the rule says.

Scores and masks are parallel lists of tensors, one for each tensor of weights; masks are 0.0 and 1.0, and written in
place. Scores must be finite. Of equal scores the earlier entry is pruned first (tensor order, then row-major index):
the order of `lottery.pruning.prune`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.errors import ConfigError, LotteryError

_PAIRWISE = 16  # up to so many, comparing all pairs of a group is faster than sorting it
_SMALL = 2048  # of so few scores all are ranked: it is as fast
_BLOCK = 2**15  # scores that are looked at twice while they are in the processor's cache
_BAND = 1 / 256  # the band grows while less than this share of the scores lies in it


Count = int | Tensor  # a number, on an accelerator one that is not read back


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
        self._tops = [Top(count) for count in counts]

    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        came = sum(top([score], [mask]) for top, score, mask in zip(self._tops, scores, masks, strict=True))
        self.changed = all_changed(self._tops)
        return came


class TopKGlobal:
    """The `count` highest scores of all tensors together stay."""

    def __init__(self, count: int) -> None:
        self.kept: list[int] | None = None
        self.changed: list[NDArray[np.intp]] | None = None
        self._top = Top(count)

    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float) -> Count:
        return self._top(scores, masks)


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
            came += _write(mask, keep.view([-1 if d == self.dim else 1 for d in range(mask.dim())]).expand_as(mask))
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
            came += _write(mask, keep.view(mask.shape))
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


class Top:
    """The `count` highest entries of some tensors, ranked together, call after call.

    Scores move little from one step to the next. So on the CPU only those in a band around the last threshold are
    ranked: as long as the threshold still lies in there, whatever is above the band stays and whatever is below goes.
    Where it has left the band, all are ranked. The result is the same, bit by bit, and so after a restart.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.changed: NDArray[np.intp] | None = None  # the entries that the last call changed; None: not known
        self._left: list[tuple[Any, int]] = []  # the masks that were written last, as they were left
        self._threshold = np.inf  # the band is empty at first, and misses
        self._width = 0.0
        self._keep = np.empty(0, dtype=np.bool_)  # what was written last
        self._next = np.empty(0, dtype=np.bool_)
        self._band = np.empty(0, dtype=np.bool_)

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor]) -> Count:
        """Write the masks; returns how many entries came in.

        LotteryError where there are fewer than `count` scores, or some are not finite.
        """
        size = sum(score.numel() for score in scores)
        self.changed = None
        if not 0 <= self.count <= size:
            raise LotteryError(f"cannot keep {self.count} weights of {size}")
        if self.count in (0, size):
            return sum(_write(mask, torch.full_like(mask, self.count > 0, dtype=torch.bool)) for mask in masks)
        if not all(score.is_cpu for score in scores):
            return _by_threshold(scores, masks, size - self.count)
        if self._keep.size != size:
            self._keep = np.concatenate([values_of(mask) for mask in masks]) == 1
            self._next, self._band = np.empty(size, dtype=np.bool_), np.empty(size, dtype=np.bool_)
        before, self._keep, self._next = self._keep, self._next, self._keep
        values = [values_of(score) for score in scores]
        self._rank(values[0] if len(values) == 1 else np.concatenate(values))
        changed = np.flatnonzero(np.not_equal(self._keep, before, out=self._band))
        if len(masks) == 1 and self._is_as_left(masks[0]):
            masks[0].view(-1).numpy()[changed] = self._keep[changed]
            self.changed = changed
        else:
            start = 0
            for mask in masks:
                _put(mask, self._keep[start : start + mask.numel()])
                start += mask.numel()
        self._left = [(ref(mask), mask._version) for mask in masks]
        return int(np.count_nonzero(self._keep[changed]))

    def _is_as_left(self, mask: Tensor) -> bool:
        """Whether only what has changed needs writing: it is the very mask that was written last, and in one piece."""
        same = [left() is mask and version == mask._version for left, version in self._left]
        return same == [True] and mask.is_contiguous() and mask.dtype != torch.bfloat16

    def _rank(self, values: NDArray) -> None:
        """Put into `_keep` which of the values [n] stay."""
        keep, band = self._keep, self._band
        low, high = self._threshold - self._width, self._threshold + self._width
        for start in range(0, values.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            np.greater(values[block], high, out=keep[block])
            np.greater_equal(values[block], low, out=band[block])
        places = np.flatnonzero(np.not_equal(band, keep, out=band))
        missing = self.count - int(np.count_nonzero(keep))
        if 0 <= missing <= places.size and values.size > _SMALL:
            ranked = values[places]
        else:
            keep.fill(False)
            places, ranked, missing = np.arange(values.size), values, self.count
        if missing:
            chosen, high = highest(ranked, missing)
            keep[places[chosen]] = True
        self._follow(float(high), ranked.size < values.size * _BAND)

    def _follow(self, threshold: float, narrow: bool) -> None:
        """Centre the band on the threshold, as wide as four of its last moves, or so wide that few scores are in it."""
        moved = abs(threshold - self._threshold) if np.isfinite(self._threshold) else 0.0
        self._width = max(4 * moved, self._width * (1.5 if narrow else 0.7))
        self._threshold = threshold


def all_changed(tops: Sequence[Top]) -> list[NDArray[np.intp]] | None:
    """What each of them changed, mask by mask; None where that is not known of all."""
    found = [top.changed for top in tops if top.changed is not None]
    return found if len(found) == len(tops) else None


def highest(values: NDArray, n: int) -> tuple[NDArray[np.intp], float]:
    """Where the n highest values lie, of equal ones the later, and the lowest of them (inf for none). Does not sort."""
    if n == 0:
        return np.empty(0, dtype=np.intp), np.inf
    cut = values.size - n
    threshold = np.partition(values, cut)[cut]
    above = np.flatnonzero(values > threshold)
    tied = np.flatnonzero(values == threshold)
    if not above.size < n <= above.size + tied.size:
        raise LotteryError("scores are not finite, cannot rank")
    return np.concatenate([above, tied[above.size + tied.size - n :]]), threshold


def values_of(scores: Tensor) -> NDArray:
    """The scores in row-major order [n], in float32 or float64; on the CPU in the tensor's memory where that is so."""
    scores = scores.detach()
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    return scores.contiguous().view(-1).numpy()


def _write(mask: Tensor, keep: Tensor) -> Count:
    """mask ← keep; returns how many entries came in."""
    came = torch.count_nonzero(keep & (mask == 0))
    _put(mask, keep)
    return came


def _put(mask: Tensor, keep: Tensor | NDArray[np.bool_]) -> None:
    """mask ← keep, in row-major order. On the CPU by numpy, which converts bool in a sixth of the time."""
    if mask.is_cpu and mask.dtype != torch.bfloat16:
        np.copyto(mask.detach().numpy(), np.asarray(keep).reshape(mask.shape))
    else:
        mask.copy_(torch.as_tensor(keep).view(mask.shape))


def _by_threshold(scores: Sequence[Tensor], masks: Sequence[Tensor], pruned: int) -> Count:
    """The same for pruned > 0 on an accelerator: nothing is read back, so nothing waits, and nothing is sorted."""
    ranked = torch.cat([score.flatten() for score in scores])
    threshold = ranked.kthvalue(pruned).values
    keep, tied = ranked > threshold, ranked == threshold
    missing = ranked.numel() - pruned - keep.sum()
    keep |= tied & (tied.flip(0).cumsum(0).flip(0) <= missing)  # of equal ones the later stay
    parts = keep.split([mask.numel() for mask in masks])
    return sum(_write(mask, part.view(mask.shape)) for mask, part in zip(masks, parts, strict=True))
