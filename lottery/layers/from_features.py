"""Criteria that look at a unit's features: what goes into it, and what comes out after the addition.

Features are [N, C, H, W] maps, [N, H, W, C] ones, [N, tokens, C] of transformers, or [N, C]. With `of`="branch" it is
their change by the unit, output - input, that is looked at; "output" is the default. Jordao et al. name the criteria
and neither the sample nor the place in a block where they look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lottery.errors import ConfigError, LotteryError
from lottery.layers.scoring import UnitScoring, check_one_of, pieces, settled_
from lottery.layers.units import features
from lottery.stability.cka import CKA, gram
from lottery.stability.precision import precise

ROUNDING = 1e-6  # of float32 features, as a share of the largest
Which = Literal["output", "branch"]


def expect_abs(at: UnitScoring, per_class: int = 10, of: Which = "output") -> dict[str, float]:
    """The mean absolute activation over images, channels and positions, ≥ 0 (expectABS).

    `per_class` images of each class. Tan & Motani 2020 (DropNet) score nodes and filters so.
    """
    return _mean(at, per_class, of, lambda unit, x: x.abs().flatten(1).mean(1))


def hrank(at: UnitScoring, per_class: int = 5, of: Which = "output", relative: bool = True) -> dict[str, float]:
    """The mean rank of the feature maps, over images and channels (Lin et al. 2020, HRank, for filters).

    The [H, W] map of each channel; of tokens the one matrix [tokens, C]. `relative`: as a share of the full rank,
    in [0, 1], so that stages of smaller maps do not score lower for their size alone; else in [0, min(H, W)].
    """

    def rank(unit: str, x: Tensor) -> Tensor:
        maps = _matrices(unit, _channels_first(x, at.shape))
        share = min(maps.shape[-2:]) if relative else 1
        return torch.linalg.matrix_rank(maps).double().mean(1) / share

    return _mean(at, per_class, of, rank)


def cka(at: UnitScoring, per_class: int = 10) -> dict[str, float]:
    """1 - linear CKA of what goes into the unit and what comes out: 0 where it changes nothing but the scale.

    `per_class` images of each class, CKA estimated without bias (`lottery.stability.cka`).
    """
    if len(at.sample(per_class)[1]) < 4:
        raise ConfigError.of("method.criterion.per_class", per_class, "at least 4 images in all")
    found = CKA((unit, unit) for unit in at.units)
    for passed in _passes(at, per_class):
        inputs = {unit: gram(x) for unit, (x, _) in passed.items()}
        found.add(inputs, {unit: gram(x) for unit, (_, x) in passed.items()})
    alike = {unit: value for (unit, _), value in found.result().items()}
    return {unit: 1 - _known(unit, value) for unit, value in alike.items()}


def pls(at: UnitScoring, per_class: int = 10, components: int = 2, of: Which = "output") -> dict[str, float]:
    """The mean importance (VIP, ≥ 0) of the unit's features in a partial least squares regression of the labels.

    One regression, on the features of all units, each channel averaged over its positions, of `per_class` images of
    each class against their one-hot labels. Jordao et al. 2018 ("Pruning Deep Neural Networks using Partial Least
    Squares") score filters so.
    """
    check_one_of("of", of, ("output", "branch"))
    _, labels = at.sample(per_class)
    pooled: dict[str, list[Tensor]] = {unit: [] for unit in at.units}
    for unit, x in _features(at, per_class, of):
        pooled[unit].append(precise(_pooled(_channels_first(x, at.shape))).cpu())
    columns = {unit: torch.cat(parts).numpy() for unit, parts in pooled.items()}
    targets = torch.nn.functional.one_hot(labels.cpu()).double().numpy()
    vip = importance(np.concatenate(list(columns.values()), axis=1), targets, components)
    ends = np.cumsum([x.shape[1] for x in columns.values()])[:-1]
    return {unit: float(part.mean()) for unit, part in zip(columns, np.split(vip, ends), strict=True)}


def importance(x: np.ndarray, y: np.ndarray, components: int) -> np.ndarray:
    """VIP of each of the p columns of x [n, p] in the regression of y [n, q] on so many components: float64 [p].

    √(p Σ_a s_a w_a² / Σ_a s_a), with the unit weight vector w_a of component a and the sum of squares s_a that it
    explains of y; its mean square is 1 (Wold et al. 2001). What is only rounding (a column that is constant but for it,
    a component when x has no further ones) counts for nothing: standardised, it would count as much as anything.
    """
    from sklearn.cross_decomposition import PLSRegression

    most = min(x.shape)
    if not 1 <= components <= most:
        raise ConfigError.of("method.criterion.components", components, f"1 to {most} (the images or the features)")
    centred = x - x.mean(0)
    centred[:, np.abs(centred).max(0) <= ROUNDING * np.abs(x).max(0)] = 0
    if not centred.any():
        raise LotteryError("method.criterion: pls: the units' features are the same for all images")
    fitted = PLSRegression(components).fit(centred, y)
    sizes = np.square(fitted.x_scores_).sum(0)
    sizes[sizes <= ROUNDING**2 * sizes.max()] = 0
    explained = sizes * np.square(fitted.y_loadings_).sum(0)
    return np.sqrt(x.shape[1] * (np.square(fitted.x_weights_) @ explained) / explained.sum())


def _passes(at: UnitScoring, per_class: int) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Input and output of each unit, for a part of the images at a time."""
    images, _ = at.sample(per_class)
    network = settled_(at.network())
    for part in pieces(images):
        yield features(network, at.units, part)


def _features(at: UnitScoring, per_class: int, of: Which) -> Iterator[tuple[str, Tensor]]:
    """What is looked at of each unit, for a part of the images at a time."""
    check_one_of("of", of, ("output", "branch"))
    for passed in _passes(at, per_class):
        for unit, (before, after) in passed.items():
            yield unit, after - before if of == "branch" else after


def _mean(at: UnitScoring, per_class: int, of: Which, measure: Callable[[str, Tensor], Tensor]) -> dict[str, float]:
    """The mean over images of `measure(unit, features)`, which gives a number an image."""
    values: dict[str, list[Tensor]] = {unit: [] for unit in at.units}
    for unit, x in _features(at, per_class, of):
        values[unit].append(precise(measure(unit, x)))
    return {unit: float(torch.cat(parts).mean()) for unit, parts in values.items()}


def _known(unit: str, value: float | None) -> float:
    if value is None:
        raise LotteryError(f"method.criterion: cka: the features of unit {unit!r} are the same for all images")
    return value


def _channels_first(x: Tensor, image: tuple[int, ...]) -> Tensor:
    """[N, C, H, W] also from [N, H, W, C], which is told by the proportions of the image; others as they are."""
    if x.ndim != 4 or len(image) != 3:
        return x
    _, height, width = image
    first, last = (a * width == b * height for a, b in (x.shape[2:], x.shape[1:3]))
    return x.movedim(3, 1) if last and not first else x


def _pooled(x: Tensor) -> Tensor:
    """[N, C]: the mean over positions or tokens."""
    return x.flatten(2).mean(2) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def _matrices(unit: str, x: Tensor) -> Tensor:
    """[N, number, rows, columns]."""
    if x.ndim not in (3, 4):
        shape = list(x.shape[1:])
        raise LotteryError(f"method.criterion: hrank: unit {unit!r} gives {shape}, expected feature maps or tokens")
    return x if x.ndim == 4 else x.unsqueeze(1)
