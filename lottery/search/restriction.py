"""Short restriction of lottery jackpots: of the weights that should change places, only a share does at each step.

Let T be the `TopK` mask of the scores and b the mask so far. The weights in T but not in b (C0: pruned, but scored
above the n_p-th smallest score) and those in b but not in T (C1) are as many, c. Of these ⌈c · ρ⌉ change places: the
highest-scored of C0 come in, the lowest-scored of C1 go out. ρ = 1 gives T, ρ = 0 leaves b as it is.

The released code (zyxxmu/lottery-jackpots) prepares ρ = (1 - progress)^4 and, commented out, the cosine, but rounds
ρ up to 1: what it runs is "none". Its C0 and C1 may differ in size where scores tie, and then nothing changes
places; here the order of `rules` decides between equal scores, so they never do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.errors import ConfigError, LotteryError, nearest
from lottery.search.top import Count, Top, highest, values_of

RESTRICTIONS: Mapping[str, Callable[[float], float]] = {
    "none": lambda progress: 1.0,
    "quartic": lambda progress: (1 - progress) ** 4,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


def schedule(restriction: str | float) -> Callable[[float], float]:
    """ρ by progress, both in [0, 1]: a name of RESTRICTIONS, or a constant. ConfigError for anything else."""
    if isinstance(restriction, str) and restriction in RESTRICTIONS:
        return RESTRICTIONS[restriction]
    if isinstance(restriction, int | float) and not isinstance(restriction, bool) and 0 <= restriction <= 1:
        return lambda progress: float(restriction)
    hint = nearest(restriction, RESTRICTIONS) if isinstance(restriction, str) else ""
    expected = f"one of {', '.join(RESTRICTIONS)}, or a constant in [0, 1]{hint}"
    raise ConfigError.of("method.short_restriction", restriction, expected)


class Swaps:
    """By tensor, a step towards its counts[i] highest scores, as far as the restriction lets it.

    The masks that it is given must keep counts[i] weights each, as they do after every call.
    """

    def __init__(self, counts: Sequence[int], restriction: str | float) -> None:
        self.kept: list[int] | None = list(counts)
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
    """Lead the mask a part of the way to the goal, which is overwritten; returns how many entries came in."""
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
    after[go[highest(values[go], go.size - number)[0]]] = True  # what stays of those that should go
    flat[at] = torch.from_numpy(after).to(flat)
    mask.copy_(goal)
    return number


def _different(a: Tensor, b: Tensor) -> Tensor:
    """Where the two differ, upwards. On the CPU by numpy, which takes a fifth of the time."""
    if a.is_cpu and a.dtype != torch.bfloat16:
        return torch.from_numpy(np.flatnonzero(a.numpy() != b.numpy()))
    return (a != b).nonzero().squeeze(1)
