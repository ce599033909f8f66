"""Choose the highest scores exactly and fast, call after call, as every search does after each step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.errors import LotteryError
from lottery.pruning.prune import highest

_BLOCK = 2**17  # scores compared at a time, few enough to stay in the processor's cache
_BAND = 1 / 256  # the band grows while it holds less than this share of the scores

Count = int | Tensor  # a number; a tensor where reading it back would make an accelerator wait


class Top:
    """The rule that keeps the highest scores: `count` over all tensors, or counts[i] in tensor i.

    Scores change little from step to step. So on the CPU only the scores in a band around the last threshold are
    ranked: while the threshold lies in the band, all above it stay and all below it go. Once the threshold has left the
    band, all scores are ranked. The result is bit-identical to ranking all, also after a restart.
    """

    def __init__(self, count: int | Sequence[int]) -> None:
        self.together = isinstance(count, int)
        self.counts = [count] if isinstance(count, int) else list(count)
        self.changed: list[NDArray[np.intp]] | None = None  # entries of each mask that the last call changed, ascending
        self._left: list[tuple[Any, int]] = []  # (weak reference, version) of the masks written last
        self._bands = [(np.inf, 0.0)] * len(self.counts)  # (threshold, half width) of each; inf: none yet
        self._kept, self._near, self._turned = _flags(0), _flags(0), _flags(0)

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], masks: Sequence[Tensor], progress: float = 0.0) -> Count:
        """Write the masks; `progress` is ignored. Returns how many entries came in.

        LotteryError where there are fewer scores than should stay, or where ranking on the CPU finds NaN.
        """
        sizes = [score.numel() for score in scores]
        parts = [sum(sizes)] if self.together else sizes
        for count, size in zip(self.counts, parts, strict=True):
            if not 0 <= count <= size:
                raise LotteryError(f"cannot keep {count} weights of {size}")
        if not all(score.is_cpu for score in scores):
            return self._on_accelerator(scores, masks)
        starts = [0, *itertools.accumulate(sizes)]
        if self._kept.size < starts[-1]:
            self._kept, self._near, self._turned = (_flags(starts[-1]) for _ in range(3))
            np.concatenate([values_of(mask) == 1 for mask in masks], out=self._kept[: starts[-1]])
        looked_at, now = self._rank([values_of(score) for score in scores], starts)
        other = self._kept[looked_at] != now
        changed, came = looked_at[other], now[other]
        self._kept[changed] = came
        self._write(masks, starts, changed)
        return int(np.count_nonzero(came))

    def _rank(self, values: Sequence[NDArray], starts: Sequence[int]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the entries that may have changed, ascending, and which of them stay."""
        near = self._find_near(values, starts)
        was = self._kept[near]
        now = self._turned[near] != was
        bounds = [0, starts[-1]] if self.together else starts
        cuts = np.searchsorted(near, bounds).tolist()
        missed = []
        for i, (threshold, _) in enumerate(self._bands):
            own = slice(cuts[i], cuts[i + 1])
            places, stay = near[own], now[own]
            ranked = _at(values, starts, places) if self.together else values[i][places - starts[i]]
            band = np.flatnonzero((ranked >= self._bounds(i)[0]) & ~stay)
            # Entries that are not in `near` stay as they were.
            missing = int(np.count_nonzero(was[own])) - int(np.count_nonzero(stay))
            if threshold == np.inf or not 0 <= missing <= band.size:
                missed.append(i)
                continue
            stay[band], reached = highest(ranked[band], missing)
            self._follow(i, reached if missing else threshold, band.size < (bounds[i + 1] - bounds[i]) * _BAND)
        for i in reversed(missed):
            stay, reached = highest(np.concatenate(values) if self.together else values[i], self.counts[i])
            near = np.concatenate([near[: cuts[i]], np.arange(bounds[i], bounds[i + 1]), near[cuts[i + 1] :]])
            now = np.concatenate([now[: cuts[i]], stay, now[cuts[i + 1] :]])
            self._follow(i, reached, narrow=False)
        return near, now

    def _find_near(self, values: Sequence[NDArray], starts: Sequence[int]) -> NDArray[np.intp]:
        """Return the entries in their band, or on another side of it than at the last call, ascending.

        `_turned` marks those that are above the band and were not kept, or were kept and are not above.
        """
        for i, (tensor, start) in enumerate(zip(values, starts, strict=False)):
            low, high = self._bounds(0 if self.together else i)
            for at in range(0, tensor.size, _BLOCK):
                block = tensor[at : at + _BLOCK]
                part = slice(start + at, start + at + block.size)
                np.greater_equal(block, low, out=self._near[part])
                np.greater(block, high, out=self._turned[part])
        near, turned, kept = (flags.view(np.uint64) for flags in (self._near, self._turned, self._kept))  # by eight
        near ^= turned  # was: at or above the lower bound; now: within the band
        turned ^= kept  # was: above the band; now: turned
        near |= turned
        return np.flatnonzero(self._near)

    def _bounds(self, i: int) -> tuple[float, float]:
        """Return the ends of the band, rounded to float32, so that tensors of all types have one band."""
        threshold, width = self._bands[i]
        return float(np.float32(threshold - width)), float(np.float32(threshold + width))

    def _follow(self, i: int, threshold: float, narrow: bool) -> None:
        """Centre the band on the threshold; its half width is at least four times the threshold's last move."""
        before, width = self._bands[i]
        moved = abs(threshold - before) if np.isfinite(before) and np.isfinite(threshold) else 0.0
        self._bands[i] = float(threshold), max(4 * moved, width * (1.5 if narrow else 0.7))

    def _write(self, masks: Sequence[Tensor], starts: Sequence[int], changed: NDArray[np.intp]) -> None:
        """Write the masks, or only their changes where they are as the last call left them."""
        following = len(masks) == len(self._left) and all(
            left() is mask and version == mask._version and mask.is_contiguous() and mask.dtype != torch.bfloat16
            for mask, (left, version) in zip(masks, self._left, strict=True)
        )
        if following:
            cuts = np.searchsorted(changed, starts).tolist()
            self.changed = [changed[a:b] - start for a, b, start in zip(cuts, cuts[1:], starts, strict=False)]
            for mask, start, places in zip(masks, starts, self.changed, strict=False):
                mask.view(-1).numpy()[places] = self._kept[places + start]
        else:
            self.changed = None
            for mask, start in zip(masks, starts, strict=False):
                put(mask, self._kept[start : start + mask.numel()])
        self._left = [(ref(mask), mask._version) for mask in masks]

    def _on_accelerator(self, scores: Sequence[Tensor], masks: Sequence[Tensor]) -> Count:
        self.changed = None
        if self.together:
            return _by_threshold(scores, masks, self.counts[0])
        layers = zip(self.counts, scores, masks, strict=True)
        return sum(_by_threshold([score], [mask], count) for count, score, mask in layers)


def _flags(size: int) -> NDArray[np.bool_]:
    """Return `size` times False, padded to a multiple of eight."""
    return np.zeros(-(-size // 8) * 8, dtype=np.bool_)


def _at(values: Sequence[NDArray], starts: Sequence[int], places: NDArray[np.intp]) -> NDArray:
    """Return the values at these ascending places of all tensors, concatenated."""
    cuts = np.searchsorted(places, starts).tolist()
    parts = zip(values, starts, cuts, cuts[1:], strict=False)
    return np.concatenate([tensor[places[a:b] - start] for tensor, start, a, b in parts])


def values_of(scores: Tensor) -> NDArray:
    """Return the scores in row-major order [n], in float32 or float64, without a copy where possible."""
    scores = scores.detach()
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    return scores.contiguous().view(-1).numpy()


def write(mask: Tensor, keep: Tensor) -> Count:
    """Set the mask to `keep`; return how many entries came in."""
    came = torch.count_nonzero(keep & (mask == 0))
    put(mask, keep)
    return came


def put(mask: Tensor, keep: Tensor | NDArray[np.bool_]) -> None:
    """Set the mask to `keep`, in row-major order. On the CPU by numpy, which converts bool in a sixth of the time."""
    if mask.is_cpu and mask.dtype != torch.bfloat16:
        np.copyto(mask.detach().numpy(), np.asarray(keep).reshape(mask.shape))
    else:
        mask.copy_(torch.as_tensor(keep).view(mask.shape))


def _by_threshold(scores: Sequence[Tensor], masks: Sequence[Tensor], count: int) -> Count:
    """Keep the highest of all scores together, on an accelerator: nothing is read back (no waiting) or sorted."""
    pruned = sum(score.numel() for score in scores) - count
    if count == 0 or pruned == 0:
        return sum(write(mask, torch.full_like(mask, count > 0, dtype=torch.bool)) for mask in masks)
    ranked = torch.cat([score.flatten() for score in scores])
    threshold = ranked.kthvalue(pruned).values
    keep, tied = ranked > threshold, ranked == threshold
    missing = ranked.numel() - pruned - keep.sum()
    keep |= tied & (tied.flip(0).cumsum(0).flip(0) <= missing)  # of equal scores the later stay
    parts = keep.split([mask.numel() for mask in masks])
    return sum(write(mask, part.view(mask.shape)) for mask, part in zip(masks, parts, strict=True))
