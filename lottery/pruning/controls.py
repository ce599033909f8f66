"""Control masks: as many weights per layer as the ticket keeps, at other places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.errors import LotteryError
from lottery.ticket import Mask


def shuffled(mask: Mask, seed: int, filters: bool = False) -> Mask:
    """Permute the mask's positions uniformly inside each layer, so that every layer keeps as many weights.

    With `filters`, for masks of whole filters, filters are permuted. This is both the "random sparsity" control of
    Frankle & Carbin 2019 (App. E: a fresh mask with these per-layer counts, placed uniformly) and the "shuffle" of
    Frankle et al. 2021: permuting a mask draws uniformly among the masks of its counts. For two controls use two seeds.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = {name: kept if filters else kept.view(-1) for name, kept in mask.items()}
    permuted = {name: part[torch.randperm(len(part), generator=generator)] for name, part in parts.items()}
    return Mask({name: part.view(mask.shapes[name]) for name, part in permuted.items()})


@dataclass(frozen=True)
class Ranking:
    """What pruning has shown about the weights so far; arrays are flattened, [n] for each layer.

    mask:   the weights that are left
    gone:   when a weight was pruned (0 = first in its layer); -1 if it is left
    scores: the scores by which a weight was last ranked
    """

    mask: Mask
    gone: Mapping[str, NDArray[np.int64]]
    scores: Mapping[str, NDArray[np.float64]]

    @classmethod
    def begin(cls, mask: Mask) -> Ranking:
        """Return the ranking of a dense network. Raises LotteryError where the mask has pruned something already."""
        if mask.kept < mask.size:
            raise LotteryError("the order of pruning is known only from the dense network on")
        return cls(mask, {name: np.full(shape.numel(), -1, np.int64) for name, shape in mask.shapes.items()}, {})

    def pruned(self, after: Mask, scores: Mapping[str, Tensor]) -> Ranking:
        """Return the ranking after `scores` have pruned the mask to `after`; weights pruned together go by score."""
        gone, values = {}, {}
        for name, left in after.items():
            values[name] = scores[name].detach().cpu().double().numpy().ravel()
            gone[name] = _numbered(self.gone[name], np.flatnonzero(self.mask[name] & ~left), values[name])
        return Ranking(after, gone, values)

    def order(self) -> dict[str, NDArray[np.int64]]:
        """Return when each weight of a layer was or would be pruned: a permutation of 0 … n-1, flattened."""
        found = {}
        for name, left in self.mask.items():
            values = self.scores.get(name, np.zeros(left.numel()))
            found[name] = _numbered(self.gone[name], np.flatnonzero(left), values)
        return found

    def inverted(self) -> Mask:
        """Keep as many weights per layer as are left now, but those pruned first (Frankle et al. 2021, "invert")."""
        counts, shapes = self.mask.layer_kept, self.mask.shapes
        first = {name: torch.from_numpy(order < counts[name]) for name, order in self.order().items()}
        return Mask({name: kept.reshape(shapes[name]) for name, kept in first.items()})


def _numbered(gone: NDArray[np.int64], indices: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return `gone` with these weights numbered onwards by score; of equal scores the earlier weight comes first."""
    numbered, first = gone.copy(), int(gone.max(initial=-1)) + 1
    numbered[indices[np.argsort(scores[indices], kind="stable")]] = np.arange(first, first + len(indices))
    return numbered
