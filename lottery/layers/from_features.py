"""Criteria that score a unit by its features: its input, and its output after the addition.

Features have the shape [N, C, H, W], [N, H, W, C], [N, tokens, C] (transformers) or [N, C]. `of="output"` (the default)
looks at the output, as Jordao's public code does; `of="branch"` looks at output - input. A configuration without an
option uses the function's default; conf/layer_criterion sets every option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lottery.errors import ConfigError, LotteryError
from lottery.layers.scoring import UnitScoring, check_one_of, pieces, settled_
from lottery.layers.trace import features, last_input
from lottery.stability.cka import CKA, gram, linear_cka
from lottery.stability.precision import precise

ROUNDING = 1e-6  # rounding error of float32 features, relative to the largest
Which = Literal["output", "branch"]
Measure = Callable[[str, Tensor], Tensor]


def expect_abs(at: UnitScoring, per_class: int = 10, of: Which = "output") -> dict[str, float]:
    """Score each unit by its mean absolute activation over images, channels and positions, ≥ 0 (expectABS).

    Uses `per_class` images of each class. Tan & Motani 2020 (DropNet) score nodes and filters this way.
    """
    return _mean(at, per_class, of, lambda unit, x: x.abs().flatten(1).mean(1))


def hrank(at: UnitScoring, per_class: int = 5, of: Which = "output", relative: bool = True) -> dict[str, float]:
    """Score each unit by the mean rank of its feature maps, as HRank scores filters (Lin et al. 2020).

    The mean is over images and maps: each channel's [H, W], or the one matrix [tokens, C]. Scores lie in [0, min(H,
    W)]. `relative` divides by the full rank (giving [0, 1]), so small maps do not score low for their size alone.
    """

    def rank(unit: str, x: Tensor) -> Tensor:
        if x.ndim not in (3, 4):
            shape = list(x.shape[1:])
            raise LotteryError(f"method.criterion: hrank: unit {unit!r} gives {shape}, expected feature maps or tokens")
        maps = _channels_first(x, at.shape) if x.ndim == 4 else x.unsqueeze(1)
        share = min(maps.shape[-2:]) if relative else 1
        return torch.linalg.matrix_rank(maps).double().mean(1) / share

    return _mean(at, per_class, of, rank)


def cka(at: UnitScoring, per_class: int = 10, of: Literal["network", "unit"] = "unit") -> dict[str, float]:
    """Score each unit by 1 - linear CKA, on the features of `per_class` images of each class.

    `of="network"` compares the inputs of the network's last layer with and without the unit, by the biased CKA of
    Kornblith et al. 2019, as Jordao's public code does. `of="unit"` compares the unit's input and output by the
    unbiased estimate (`lottery.stability.cka`); the score is 0 where the unit changes only the scale.
    """
    check_one_of("of", of, ("network", "unit"))
    images, _ = at.sample(per_class)
    if len(images) < 4:
        raise ConfigError.of("method.criterion.per_class", per_class, "at least 4 images in all")
    alike = _alike_without(at, images) if of == "network" else _alike_across(at, images)
    scores = {}
    for unit, value in alike.items():
        if value is None:
            raise LotteryError(f"method.criterion: cka: the features of unit {unit!r} are the same for all images")
        scores[unit] = 1 - value
    return scores


def _alike_across(at: UnitScoring, images: Tensor) -> dict[str, float | None]:
    """Return the unbiased CKA of each unit's input and output."""
    found = CKA((unit, unit) for unit in at.units)
    for passed in _passes(at, images):
        inputs, outputs = ({unit: gram(pair[side]) for unit, pair in passed.items()} for side in (0, 1))
        found.add(inputs, outputs)
    return {unit: value for (unit, _), value in found.result().items()}


def _alike_without(at: UnitScoring, images: Tensor) -> dict[str, float | None]:
    """Return the biased CKA of the last layer's inputs with and without each unit."""

    def inputs(network: nn.Module) -> Tensor:
        settled_(network)
        return torch.cat([last_input(network, part) for part in pieces(images)])

    whole = inputs(at.network())
    return {unit: linear_cka(whole, inputs(at.without(unit))) for unit in at.units}


def pls(
    at: UnitScoring,
    per_class: int = 10,
    components: int = 2,
    of: Which = "output",
    pool: Literal["max", "mean"] = "mean",
) -> dict[str, float]:
    """Score each unit by its features' mean importance (VIP, ≥ 0) in a partial least squares regression of the labels.

    One regression covers the features of all units: `per_class` images of each class against their one-hot labels.
    `pool` over a channel's positions: "max", as in Jordao's public code, or "mean". Jordao et al. 2018 ("Pruning Deep
    Neural Networks using Partial Least Squares") score filters this way.
    """
    check_one_of("of", of, ("output", "branch"))
    check_one_of("pool", pool, ("max", "mean"))
    _, labels = at.sample(per_class)
    pooled = _measured(at, per_class, of, lambda unit, x: _pooled(_channels_first(x, at.shape), pool))
    columns = {unit: x.cpu().numpy() for unit, x in pooled.items()}
    targets = torch.nn.functional.one_hot(labels.cpu()).double().numpy()
    vip = importance(np.concatenate(list(columns.values()), axis=1), targets, components)
    ends = np.cumsum([x.shape[1] for x in columns.values()])[:-1]
    return {unit: float(part.mean()) for unit, part in zip(columns, np.split(vip, ends), strict=True)}


def importance(x: np.ndarray, y: np.ndarray, components: int) -> np.ndarray:
    """Return the VIP of each column of x [n, p] in the regression of y [n, q] on `components` components: float64 [p].

    VIP = √(p Σ_a s_a w_a² / Σ_a s_a), with the unit weight vector w_a of component a and the sum of squares s_a of y
    that it explains; the mean square is 1 (Wold et al. 2001). Columns that are constant up to rounding and components
    beyond the rank of x are ignored: standardising would raise their rounding errors to full size.
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


def _passes(at: UnitScoring, images: Tensor) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    network = settled_(at.network())
    return (features(network, at.units, part) for part in pieces(images))


def _measured(at: UnitScoring, per_class: int, of: Which, measure: Measure) -> dict[str, Tensor]:
    """Return `measure(unit, features)` of each unit for all images: float64 [N, ...]."""
    check_one_of("of", of, ("output", "branch"))
    found: dict[str, list[Tensor]] = {unit: [] for unit in at.units}
    for passed in _passes(at, at.sample(per_class)[0]):
        for unit, (before, after) in passed.items():
            found[unit].append(precise(measure(unit, after - before if of == "branch" else after)))
    return {unit: torch.cat(parts) for unit, parts in found.items()}


def _mean(at: UnitScoring, per_class: int, of: Which, measure: Measure) -> dict[str, float]:
    return {unit: float(values.mean()) for unit, values in _measured(at, per_class, of, measure).items()}


def _channels_first(x: Tensor, image: tuple[int, ...]) -> Tensor:
    """Convert [N, H, W, C], recognised by the image's proportions, to [N, C, H, W]; leave other shapes unchanged."""
    if x.ndim != 4 or len(image) != 3:
        return x
    _, height, width = image
    first, last = (a * width == b * height for a, b in (x.shape[2:], x.shape[1:3]))
    return x.movedim(3, 1) if last and not first else x


def _pooled(x: Tensor, by: str) -> Tensor:
    if x.ndim not in (3, 4):
        return x
    positions, along = (x.flatten(2), 2) if x.ndim == 4 else (x, 1)
    return positions.amax(along) if by == "max" else positions.mean(along)
