"""Linear centred kernel alignment of features: how alike two layers represent the same images.

CKA(X, Y) = HSIC(X, Y) / √(HSIC(X, X) HSIC(Y, Y)); 1 for equal features, the same after rotation, scaling or shift of
either. From n images HSIC is estimated without bias (Song et al. 2012, equation 5) in each minibatch and averaged over
the batches (Nguyen et al. 2021, section 3), so that the result does not depend on the batch size, up to noise, and no
more than one batch is ever held. The estimate of unrelated features scatters around 0 and may be negative; the
biased CKA of Kornblith et al. 2019 is positive there, by .1 for 50 images of 8 features. Of many more images than that,
as the three-regime study takes it of test data, the two agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt

import torch
from torch import Tensor

from lottery.errors import LotteryError
from lottery.stability.precision import precise

COLUMNS = 4096  # features that are centred at a time, in float64


def gram(features: Tensor) -> Tensor:
    """K - K's U-centring: float64 [n, n], from features [n, ...] of n ≥ 4 images, with zeros on the diagonal.

    <U-centred K, U-centred L> / (n (n - 3)) is the unbiased HSIC (Székely & Rizzo 2014, section 3). Features are
    centred first, which changes nothing but the rounding.
    """
    n = len(features)
    if n < 4:
        raise LotteryError(f"CKA: a batch of {n} images, expected at least 4")
    kernel = inner_products(features)
    kernel.fill_diagonal_(0)
    rows = kernel.sum(1, keepdim=True)
    kernel -= (rows + rows.T) / (n - 2)
    kernel += rows.sum() / ((n - 1) * (n - 2))
    return kernel.fill_diagonal_(0)


def inner_products(features: Tensor) -> Tensor:
    """X X' of the centred features X: float64 [n, n]."""
    columns = features.detach().flatten(1)
    kernel: Tensor | None = None
    for part in map(precise, columns.split(COLUMNS, dim=1)):
        centred = part - part.mean(0)
        kernel = centred @ centred.T if kernel is None else kernel.addmm_(centred, centred.T)
    assert kernel is not None  # split gives at least one part
    return kernel


class CKA:
    """The minibatch estimator for all pairs of a layer of one network and a layer of another.

    `pairs` names them; by default layers of the same name are compared.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = list(pairs)
        self.batches = 0
        self._sums: dict[tuple[str, str], Tensor] = {}

    def add(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        """The grams (`gram`) of both networks' layers on the same batch."""
        n = len(next(iter(ours.values())))
        for one, other in self.pairs:
            k, m = ours[one], theirs[other]
            sums = torch.stack([(k * m).sum(), (k * k).sum(), (m * m).sum()]) / (n * (n - 3))
            so_far = self._sums.get((one, other))
            self._sums[one, other] = sums if so_far is None else so_far + sums
        self.batches += 1

    def result(self) -> dict[tuple[str, str], float | None]:
        """CKA of each pair; None where a layer gives all images the same features, or no batch was added."""
        found: dict[tuple[str, str], float | None] = {}
        for pair in self.pairs:
            between, ours, theirs = self._sums[pair].tolist() if pair in self._sums else (0.0, 0.0, 0.0)
            found[pair] = between / (sqrt(ours) * sqrt(theirs)) if ours > 0 and theirs > 0 else None
        return found
