"""Allocations: distribute a global density over the layers, as densities and as exact whole numbers of weights.

Most give a layer the density min(1, ε · raw): raw is computed from the layer's shape, and ε makes the kept weights add
up to density · N. A layer above 1 stays dense and the others share the rest, repeated to the fixed point (Evci et al.
2020, RigL). Clamping alone would keep fewer weights than requested.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from lottery.errors import ConfigError, LotteryError
from lottery.pruning.prune import prune_to
from lottery.pruning.scoring import Criterion
from lottery.record.names import mask_file
from lottery.ticket import Mask

Shapes = Mapping[str, Sequence[int]]
Densities = dict[str, float]


@dataclass(frozen=True)
class Budget:
    """The input of an allocation.

    shapes:  the prunable weights in the order of the network, [out, in] or [out, in, *kernel]
    density: kept / prunable to reach over all layers, in (0, 1]
    scores:  returns a criterion's score of every weight of the dense network
    network: the weights of all layers, prunable or not, in that order; empty means `shapes`
    """

    shapes: Shapes
    density: float
    scores: Callable[[Criterion], Mapping[str, Tensor]]
    network: Shapes = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights of each layer."""
        return _sizes(self.shapes)

    @property
    def classifier(self) -> list[str]:
        """The network's last layer, if it is linear and prunable; else an empty list."""
        last = list(self.network or self.shapes)[-1:]
        return [name for name in last if len(self.shapes.get(name, ())) == 2]

    @property
    def first_convolution(self) -> list[str]:
        """The network's first convolution, if it exists and is prunable; else an empty list."""
        first = [name for name, shape in (self.network or self.shapes).items() if len(shape) > 2][:1]
        return [name for name in first if name in self.shapes]


Allocation = Callable[[Budget], Densities]
"""Returns each layer's density in [0, 1]; times the layers' sizes they add up to density · N, or to that rounded."""


def uniform(budget: Budget) -> Densities:
    """Give every layer the same density."""
    return dict.fromkeys(budget.shapes, budget.density)


def erdos_renyi(budget: Budget) -> Densities:
    """Return Erdős-Rényi densities: raw = (in + out) / (in · out), from channels only (Mocanu et al. 2018, SET)."""
    return _shared(budget, {name: _sum_over_product(shape[:2]) for name, shape in budget.shapes.items()})


def erk(budget: Budget) -> Densities:
    """Return ERK densities: raw = (in + out + kernel sides) / (in · out · kernel area) (Evci et al. 2020, RigL)."""
    return _shared(budget, {name: _sum_over_product(shape) for name, shape in budget.shapes.items()})


def balanced(budget: Budget) -> Densities:
    """Keep an equal number of weights in every layer; layers that have fewer stay dense."""
    return _shared(budget, {name: 1 / size for name, size in budget.sizes.items()})


def erk_plus(budget: Budget) -> Densities:
    """Return ERK densities with a dense classifier, at the other layers' expense (Liu et al. 2022, on ImageNet).

    The classifier is the network's last layer; where that is not linear, or never pruned, this is ERK.
    """
    raw = {name: _sum_over_product(shape) for name, shape in budget.shapes.items()}
    return _shared(budget, raw, dict.fromkeys(budget.classifier, 1.0))


def uniform_plus(budget: Budget, classifier: float = 0.2) -> Densities:
    """Keep the first convolution dense and the classifier at least at density `classifier`; the rest gets one density.

    Gale et al. 2019. The rest shares what these two leave of the budget, which is kept exactly. The classifier is the
    network's last layer if that is linear. A layer that is never pruned takes nothing from the budget.
    """
    if not 0 <= classifier <= 1:
        raise ConfigError.of("method.allocation.classifier", classifier, "a density in [0, 1]")
    fixed = dict.fromkeys(budget.first_convolution, 1.0)
    fixed |= dict.fromkeys(budget.classifier, max(budget.density, classifier))
    return _shared(budget, dict.fromkeys(budget.shapes, 1.0), fixed)


def from_criterion(budget: Budget, criterion: Criterion) -> Densities:
    """Return the layer densities of the mask that a criterion chooses globally: SNIP-ratio, GraSP-ratio, LAMP, …"""
    if not callable(criterion):
        raise ConfigError.of("method.allocation.criterion", criterion, "a criterion, such as allocation=snip_ratio has")
    full = Mask.ones({name: torch.Size(shape) for name, shape in budget.shapes.items()})
    return prune_to(full, budget.scores(criterion), budget.density).layer_density


def from_mask(budget: Budget, path: str) -> Densities:
    """Return the layer densities of a saved mask, scaled to the budget; layers that are empty in it stay empty.

    Only its densities count, so the mask may come from a wider network, but it must cover the same layers.
    """
    if not Path(path).is_file():
        raise ConfigError.of("method.allocation.path", path, f"the file of a mask, such as {mask_file(3)}")
    saved = Mask.load(path)
    if other := sorted(set(saved) ^ set(budget.shapes)):
        raise ConfigError.of("method.allocation.path", path, f"a mask of the same layers; {other[0]!r} is in one only")
    return _shared(budget, saved.layer_density, dict.fromkeys(saved.collapsed, 0.0))


def counts(densities: Mapping[str, float], shapes: Shapes, density: float, minimum: int = 1) -> dict[str, int]:
    """Convert densities to whole numbers of kept weights per layer that add up to exactly round(density · N).

    Every layer keeps at least `minimum` weights (or all it has); where a share lies outside, the other layers make up
    for it in proportion. Shares are rounded down; the rest goes to the largest remainders, of equal ones to the earlier
    layer. ConfigError where the minimum makes the density impossible, LotteryError for densities off the budget.
    """
    if not 0 < density <= 1:
        raise ConfigError.of("method.density", density, "a fraction of the weights, above 0 and at most 1")
    sizes = np.array(list(_sizes(shapes).values()), dtype=float)
    low = np.minimum(sizes, minimum)
    total = round(density * int(sizes.sum()))
    if total < low.sum():
        lowest = f"at least {low.sum() / sizes.sum():.4g}, what {minimum} in every layer"
        raise ConfigError.of("method.density", density, f"{lowest} (of {len(sizes)}) make")
    for name in shapes:
        if not 0 <= densities.get(name, math.nan) <= 1:
            raise LotteryError(f"the allocation gave {name!r} the density {densities.get(name)}, expected 0 to 1")
    shares, goal = np.array([densities[name] for name in shapes]) * sizes, density * float(sizes.sum())
    if abs(shares.sum() - goal) > 0.5 + 1e-6 * goal:
        raise LotteryError(f"the allocation keeps {shares.sum():.6g} weights, expected {goal:.6g}")
    if abs(shares.sum() - total) > 0.5 + 1e-6 or (shares < low).any() or (shares > sizes).any():
        shares = _bounded(shares, low, sizes, total)
    found = np.floor(shares)
    order = np.argsort((found - shares).round(6), kind="stable")  # rounded: equal remainders tie on every machine
    found[order[: total - int(found.sum())]] += 1
    return {name: int(count) for name, count in zip(shapes, found, strict=True)}


def drawn(counts: Mapping[str, int], shapes: Shapes, generator: Generator) -> Mask:
    """Draw a mask with exactly `counts[name]` kept weights per layer, all choices of positions being equally likely.

    Takes one permutation per layer from `generator` (CPU), in the order of `shapes`. LotteryError for a wrong count.
    """
    kept = {}
    for name, size in _sizes(shapes).items():
        if not 0 <= counts[name] <= size:
            raise LotteryError(f"cannot keep {counts[name]} weights of {name!r}, which has {size}")
        bits = torch.zeros(size, dtype=torch.bool)
        bits[torch.randperm(size, generator=generator)[: counts[name]]] = True
        kept[name] = bits.view(torch.Size(shapes[name]))
    return Mask(kept)


def _sizes(shapes: Shapes) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


def _sum_over_product(sides: Sequence[int]) -> float:
    return sum(sides) / math.prod(sides)


def _shared(budget: Budget, raw: Mapping[str, float], fixed: Mapping[str, float] | None = None) -> Densities:
    """Return densities min(1, ε · raw) that use up the budget, beside layers whose density is fixed."""
    fixed = fixed or {}
    sizes, total = budget.sizes, sum(budget.sizes.values())
    rest = [name for name in sizes if name not in fixed]
    size = np.array([sizes[name] for name in rest], dtype=float)
    taken = sum(share * sizes[name] for name, share in fixed.items())
    left = budget.density * total - taken
    if not rest and abs(left) <= 1e-9 * total:
        return dict(fixed)
    if fixed and not 0 < left <= size.sum() + 1e-9 * total:
        named = ", ".join(f"{name} at {share:.4g}" for name, share in fixed.items())
        lowest, highest = taken / total, (taken + size.sum()) / total
        expected = f"more than {lowest:.4g} and at most {highest:.4g}" if rest else f"{lowest:.4g}"
        raise ConfigError.of("method.density", budget.density, f"{expected}: the allocation fixes {named}")
    shares = _bounded(size * [raw[name] for name in rest], np.zeros(len(rest)), size, left)
    found = dict(zip(rest, (shares / size).tolist(), strict=True)) | dict(fixed)
    return {name: found[name] for name in sizes}


def _bounded(shares: np.ndarray, low: np.ndarray, high: np.ndarray, total: float) -> np.ndarray:
    """Return ε · shares, clipped between `low` and `high`, with the ε for which they add up to `total`.

    The sum is a piecewise linear function of ε that never falls, and bends where a layer reaches one of its bounds.
    """
    shares = np.maximum(shares, 1e-9)  # so a layer with share 0 gets weights only if all others are full

    def clipped(scale: float) -> np.ndarray:
        return np.clip(scale * shares, low, high)

    bends = np.unique(np.concatenate(([0.0], low / shares, high / shares)))
    after = min(max(bisect_left(bends, total, key=lambda bend: clipped(bend).sum()), 1), len(bends) - 1)
    ends = bends[after - 1 : after + 1]
    return clipped(float(np.interp(total, [clipped(end).sum() for end in ends], ends)))
