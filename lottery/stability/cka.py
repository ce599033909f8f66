"""Linear centred kernel alignment (CKA) of features: how alike two layers represent the same images.

CKA(X, Y) = HSIC(X, Y) / √(HSIC(X, X) HSIC(Y, Y)) is 1 for equal features, and unchanged by rotation, scaling or shift
of either. HSIC is estimated without bias (Song et al. 2012, equation 5) from the n images of each minibatch, and
averaged over the minibatches (Nguyen et al. 2021, section 3). So the result does not depend on the batch size, up to
noise, and only one batch is held at a time. For unrelated features the estimate scatters around 0 and may be negative;
the biased CKA of Kornblith et al. 2019 is positive there, about 0.1 for 50 images of 8 features. With many more images
than that, such as the three-regime study's test data, the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lottery.errors import LotteryError, nearest
from lottery.stability.precision import precise

COLUMNS = 4096  # features centred at a time, in float64


def gram(features: Tensor) -> Tensor:
    """Return the U-centred kernel of features [n, ...] of n ≥ 4 images: float64 [n, n], with zeros on the diagonal.

    <U-centred K, U-centred L> / (n (n - 3)) is the unbiased HSIC (Székely & Rizzo 2014, section 3). Features are
    centred first, which changes only the rounding.
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
    """Return X X' of the centred features X: float64 [n, n]."""
    kernel: Tensor | None = None
    for part in map(precise, features.detach().flatten(1).split(COLUMNS, dim=1)):
        centred = part - part.mean(0)
        kernel = centred @ centred.T if kernel is None else kernel.addmm_(centred, centred.T)
    assert kernel is not None  # split returns at least one part
    return kernel


def linear_cka(x: Tensor, y: Tensor) -> float | None:
    """Return the biased CKA (Kornblith et al. 2019) over all images at once; None where x or y is equal for all images.

    CKA = |X'Y|² / (|X'X| |Y'Y|) of the centred features, by n-by-n kernels where there are fewer images than features.
    """
    if max(x[0].numel(), y[0].numel()) > len(x):
        k, m = inner_products(x), inner_products(y)
        between, sizes = (k * m).sum(), k.norm() * m.norm()
    else:
        a, b = (z - z.mean(0) for z in (precise(z.detach().flatten(1)) for z in (x, y)))
        between, sizes = (a.T @ b).square().sum(), (a.T @ a).norm() * (b.T @ b).norm()
    return float(between / sizes) if sizes > 0 else None


class CKA:
    """The minibatch estimator of CKA. Each of `pairs` names a layer of one network and a layer of another."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.batches = 0
        self._sums = {pair: torch.zeros(3, dtype=torch.float64) for pair in pairs}

    def add(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        """Add one batch: the kernels (`gram`) of both networks' layers on it."""
        n = len(next(iter(ours.values())))
        for one, other in self._sums:
            k, m = ours[one], theirs[other]
            sums = torch.stack([(k * m).sum(), (k * k).sum(), (m * m).sum()]) / (n * (n - 3))
            self._sums[one, other] = self._sums[one, other].to(sums.device) + sums
        self.batches += 1

    def result(self) -> dict[tuple[str, str], float | None]:
        """Return the CKA of each pair; None if a layer's features are equal for all images, or no batch was added."""
        found: dict[tuple[str, str], float | None] = {}
        for pair, sums in self._sums.items():
            between, ours, theirs = sums.tolist()
            found[pair] = between / (sqrt(ours) * sqrt(theirs)) if ours > 0 and theirs > 0 else None
        return found


@torch.no_grad()
def seen(
    network: nn.Module, layers: Sequence[str], images: Tensor, reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return `reduce(output)` of each of these modules for a batch, computed before later code overwrites the output.

    Features themselves are not kept. Runs in evaluation mode and restores the network's mode. A module that runs
    several times contributes the sum (of kernels: that of its features side by side). LotteryError for a name that no
    module has, a module that does not run, and an output that is not one tensor.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    if unknown := [name for name in layers if name not in modules or not name]:
        raise LotteryError(f"layers: the network has no module {unknown[0]!r}{nearest(unknown[0], modules)}")
    found: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise LotteryError(f"layers: {name} puts out {type(output).__name__}, expected a tensor")
        reduced = reduce(output)
        found[name] = found[name] + reduced if name in found else reduced

    with ExitStack() as stack:
        stack.callback(network.train, network.training)
        network.eval()
        for name in layers:
            stack.enter_context(modules[name].register_forward_hook(partial(see, name)))
        network(images)
    if missing := [name for name in layers if name not in found]:
        raise LotteryError(f"layers: the forward pass does not use {missing[0]}")
    return found
