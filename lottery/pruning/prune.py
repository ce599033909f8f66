"""From scores to a smaller mask: how many weights go, and which.

The framework's own rule (`count="exact"`) prunes n = round(rate * kept) weights, a half rounding to the even number,
and never one more or less: the stable order is (score, tensor order, flat index), so of equal scores the earlier
weight goes first, on every device. The other rules choose as a published code base does. On distinct scores they prune

    glth      round(rate * kept) + 1                google-research/lottery-ticket-hypothesis, by layer
    openlth   ceil(rate * (kept + ignored)) + 1     facebookresearch/open_lth, global
    renda     ceil(rate * (kept - 1))               lottery-ticket/rewinding-iclr20-public, a percentile, global
    synflow   floor(rate * kept)                    ganguli-lab/Synaptic-Flow
    globalmp  floor(rate * kept) - 1, at least 0    manasgupta-1/GlobalMP, global
    sap       floor(rate * kept)                    SAP (Diao et al. 2023), by layer, neuron or global

while scores equal to the cutoff all go (glth, openlth, synflow) or all stay (renda, globalmp, sap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lottery.errors import ConfigError, LotteryError
from lottery.pruning.prunable import matching
from lottery.ticket import Mask

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Cutoff:
    """How a published code base chooses: weights whose score lies below (`inclusive`: or at) a cutoff score go.

    The cutoff is the entry at `position(rate, kept, ignored)` of the kept scores sorted upwards, counted from 0,
    interpolated linearly at a fractional position. A negative position drops nothing, one past the end everything
    (where the original code raises).
    """

    position: Callable[[float, int, int], float]
    inclusive: bool


CUTOFFS: Mapping[str, Cutoff] = {
    "glth": Cutoff(lambda rate, kept, ignored: round(rate * kept), inclusive=True),
    "openlth": Cutoff(lambda rate, kept, ignored: math.ceil(rate * (kept + ignored)), inclusive=True),
    "renda": Cutoff(lambda rate, kept, ignored: rate * (kept - 1), inclusive=False),
    "synflow": Cutoff(lambda rate, kept, ignored: int(rate * kept) - 1, inclusive=True),
    "globalmp": Cutoff(lambda rate, kept, ignored: int(rate * kept) - 1, inclusive=False),
    "sap": Cutoff(lambda rate, kept, ignored: math.floor(rate * kept), inclusive=False),
}


def prune(
    mask: Mask,
    scores: Mapping[str, Tensor],
    rate: float,
    *,
    rates: Mapping[str, float] | None = None,
    scope: Scope = "global",
    count: str = "exact",
    ignored: int = 0,
) -> Mask:
    """Prune the fraction `rate` of the kept weights, those with the lowest scores; returns a subset of `mask`.

    rate:    in [0, 1]; 0 gives an equal mask, 1 an empty one
    rates:   fnmatch pattern of a layer or parameter -> its own rate, the first that fits; scope "layer" only
    scope:   "global" ranks all weights together, "layer" prunes each layer by its rate
    count:   "exact", or the name of a rule in this file's table; with each of them a rate of 0 prunes nothing
    ignored: how many convolution and linear weights are never pruned; only "openlth" counts them

    Weights that are already pruned never take part, whatever their scores. Scores of less than 32 bits are compared
    in float32. A layer may become empty (see `Mask.collapsed`). ConfigError for a rate out of range, a pattern that
    fits no layer, or options that contradict each other; LotteryError for scores that are missing, of another shape
    or not finite.
    """
    _check_fraction("rate", rate)
    if count != "exact" and count not in CUTOFFS:
        raise ConfigError.of("count", count, f"one of exact, {', '.join(CUTOFFS)}")
    if count == "openlth" and scope == "layer":
        raise ConfigError.of("scope", scope, "'global', the only one that count='openlth' has")

    def chosen(values: np.ndarray, layer: str) -> np.ndarray:
        fraction = layer_rates[layer]
        if fraction == 0:
            return np.zeros(values.size, dtype=bool)
        if count == "exact":
            return _lowest(values, round(fraction * values.size))
        return _below(values, CUTOFFS[count], fraction, ignored)

    layer_rates = _by_layer(mask, rate, rates, scope, "rates")
    return _without(mask, scores, scope, chosen)


def prune_to(
    mask: Mask,
    scores: Mapping[str, Tensor],
    density: float,
    *,
    densities: Mapping[str, float] | None = None,
    scope: Scope = "global",
) -> Mask:
    """Prune down to exactly round(density * prunable) kept weights (for each layer in scope "layer"), in one shot.

    density:   kept / prunable to reach, in [0, 1]
    densities: fnmatch pattern of a layer or parameter -> its own density, the first that fits; scope "layer" only

    Order, ties, scores and errors are those of `prune` with count "exact"; ConfigError also where the mask keeps
    less than it should be pruned to.
    """
    _check_fraction("density", density)

    def chosen(values: np.ndarray, layer: str) -> np.ndarray:
        size = mask.size if scope == "global" else mask.shapes[layer].numel()
        goal = round(targets[layer] * size)
        if goal > values.size:
            where = "the mask" if scope == "global" else layer
            raise ConfigError.of("density", targets[layer], f"at most {values.size / size:.6g}, what {where} keeps now")
        return _lowest(values, values.size - goal)

    targets = _by_layer(mask, density, densities, scope, "densities")
    return _without(mask, scores, scope, chosen)


def prune_to_counts(mask: Mask, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Mask:
    """Prune each layer down to exactly counts[name] weights. Order, ties, scores and errors as in `prune_to`."""

    def chosen(values: np.ndarray, layer: str) -> np.ndarray:
        if not 0 <= counts[layer] <= values.size:
            raise LotteryError(f"cannot keep {counts[layer]} weights of {layer!r}, which keeps {values.size} now")
        return _lowest(values, values.size - counts[layer])

    return _without(mask, scores, "layer", chosen)


def _check_fraction(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError.of(key, value, "a fraction in [0, 1]")


def _by_layer(
    mask: Mask, default: float, patterns: Mapping[str, float] | None, scope: str, key: str
) -> dict[str, float]:
    """The value of each layer: that of the first pattern that fits it, else the default."""
    if scope not in ("global", "layer"):
        raise ConfigError.of("scope", scope, "'global' or 'layer'")
    if patterns and scope == "global":
        raise ConfigError.of(key, dict(patterns), "nothing in scope 'global', where all layers are ranked together")
    values: dict[str, float] = {}
    for pattern, value in (patterns or {}).items():
        _check_fraction(f"{key}.{pattern}", value)
        for name in matching(pattern, mask, key):
            values.setdefault(name, value)
    return {name: values.get(name, default) for name in mask}


def _without(
    mask: Mask, scores: Mapping[str, Tensor], scope: str, chosen: Callable[[np.ndarray, str], np.ndarray]
) -> Mask:
    """`mask` less what `chosen(kept scores, first layer)` marks, for each group of layers that are ranked together."""
    layers = {name: kept.numpy() for name, kept in mask.items()}  # private copies, pruned in place below
    for group in [list(layers)] if scope == "global" else [[name] for name in layers]:
        values = np.concatenate([_kept_scores(name, scores, layers[name]) for name in group])
        stays = ~chosen(values, group[0])
        for name, kept in zip(group, np.split(stays, np.cumsum([mask.layer_kept[n] for n in group])[:-1]), strict=True):
            layers[name][layers[name]] = kept
    return Mask({name: torch.from_numpy(kept) for name, kept in layers.items()})


def _kept_scores(name: str, scores: Mapping[str, Tensor], kept: np.ndarray) -> np.ndarray:
    """The scores of the kept weights in row-major order, in float32 or float64."""
    if name not in scores:
        raise LotteryError(f"the criterion gave no scores for {name!r}")
    tensor = scores[name].detach().cpu()
    if tensor.shape != kept.shape:
        raise LotteryError(f"scores of {name!r}: got shape {list(tensor.shape)}, expected {list(kept.shape)}")
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.float64)
    values = tensor.numpy()[kept]
    if not np.isfinite(values).all():
        raise LotteryError(f"scores of {name!r}: {np.count_nonzero(~np.isfinite(values))} are not finite, cannot rank")
    return values


def _lowest(values: np.ndarray, n: int) -> np.ndarray:
    """True for exactly the n lowest values, the earlier of equal ones first. Selects, O(size), and does not sort."""
    if n == 0:
        return np.zeros(values.size, dtype=bool)
    threshold = np.partition(values, n - 1)[n - 1]
    lowest = values < threshold
    tied = np.flatnonzero(values == threshold)
    lowest[tied[: n - np.count_nonzero(lowest)]] = True
    return lowest


def _below(values: np.ndarray, cutoff: Cutoff, rate: float, ignored: int) -> np.ndarray:
    """True for the values that a code base's cutoff drops."""
    position = cutoff.position(rate, values.size, ignored)
    if position < 0 or position >= values.size:
        return np.full(values.size, position >= 0)
    low, high = math.floor(position), math.ceil(position)
    ranked = np.partition(values, [low, high])
    # In float64: an interpolated float32 could round to one of its neighbours, which would then change sides.
    threshold = np.float64(ranked[low]) + (position - low) * (np.float64(ranked[high]) - np.float64(ranked[low]))
    return values <= threshold if cutoff.inclusive else values < threshold
