"""In which order the weights of each layer are pruned, and the mask that keeps those which go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.errors import LotteryError
from lottery.ticket import Mask


@dataclass(frozen=True)
class Ranking:
    """What pruning has said of the weights so far.

    mask:   what is left
    gone:   for each layer [n], flattened: when a weight was pruned (0 = first of its layer); what is left has -1
    scores: for each layer [n], flattened: the scores by which it was last pruned
    """

    mask: Mask
    gone: Mapping[str, NDArray[np.int64]]
    scores: Mapping[str, NDArray[np.float64]]

    @classmethod
    def begin(cls, mask: Mask) -> Ranking:
        """Before anything is pruned; LotteryError where that is no longer so."""
        if mask.kept < mask.size:
            raise LotteryError("the order of pruning is known only from the dense network on")
        return cls(mask, {name: np.full(shape.numel(), -1, np.int64) for name, shape in mask.shapes.items()}, {})

    def pruned(self, after: Mask, scores: Mapping[str, Tensor]) -> Ranking:
        """The ranking once `scores` have pruned the mask down to `after`. Weights that go together go by score."""
        gone, values = {}, {}
        for name, left in after.items():
            values[name] = scores[name].detach().cpu().double().numpy().ravel()
            gone[name] = _numbered(self.gone[name], np.flatnonzero(self.mask[name] & ~left), values[name])
        return Ranking(after, gone, values)

    def order(self) -> dict[str, NDArray[np.int64]]:
        """Each layer's weights by the order in which they went or would go: a permutation of 0 … n-1, flattened."""
        found = {}
        for name, left in self.mask.items():
            values = self.scores.get(name, np.zeros(left.numel()))
            found[name] = _numbered(self.gone[name], np.flatnonzero(left), values)
        return found

    def inverted(self) -> Mask:
        """As many weights in each layer as are left now, but those that go first (Frankle et al. 2021, "invert")."""
        counts = self.mask.layer_kept
        return Mask(
            {
                name: torch.from_numpy(order < counts[name]).reshape(self.mask.shapes[name])
                for name, order in self.order().items()
            }
        )


def _numbered(gone: NDArray[np.int64], indices: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """`gone`, with these weights numbered on by their scores, the earlier of equal ones first."""
    numbered, first = gone.copy(), int(gone.max(initial=-1)) + 1
    numbered[indices[np.argsort(scores[indices], kind="stable")]] = np.arange(first, first + len(indices))
    return numbered
