"""Turn scores into a smaller mask: how many weights are pruned, and which.

The framework's own rule (`count="exact"`) prunes exactly n = round(rate * kept) weights (halves round to even). The
order is (score, tensor order, flat index), so of equal scores the earlier weight goes first, on every device. The other
rules choose as a published code base does. If all scores are distinct, they prune this many weights:

    glth      round(rate * kept) + 1                google-research/lottery-ticket-hypothesis, by layer
    openlth   ceil(rate * (kept + ignored)) + 1     facebookresearch/open_lth, global
    renda     ceil(rate * (kept - 1))               lottery-ticket/rewinding-iclr20-public, a percentile, global
    synflow   floor((1 - s) * kept), s = 1 - rate   ganguli-lab/Synaptic-Flow
    globalmp  floor(rate * kept) - 1, at least 0    manasgupta-1/GlobalMP, global
    sap       floor(rate * kept)                    SAP (Diao et al. 2023), by layer, neuron or global

Scores equal to the cutoff are all pruned (glth, openlth, synflow) or all kept (renda, globalmp, sap).
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

# Of more than LARGE values, fewer than one in FEW are ranked among those that a sample of about SAMPLE leaves.
LARGE, FEW, SAMPLE = 2**15, 8, 2**12


@dataclass(frozen=True)
class Cutoff:
    """The rule of a published code base: weights with a score below (`inclusive`: or at) a cutoff score are pruned.

    The cutoff is the entry at `position(rate, kept, ignored)`, counted from 0, of the kept scores sorted upwards,
    linearly interpolated. A negative position prunes nothing; one past the end (an error in the original) everything.
    """

    position: Callable[[float, int, int], float]
    inclusive: bool


def _synflow(rate: float, kept: int) -> int:
    """Return how many go. SynFlow's code takes the density s; in floats 1 - s may be below the rate (1 - 0.8 < 0.2)."""
    density = round(1 - rate, 12)  # as written by hand: 0.1, where 1 - 0.9 is 0.09999999999999998
    return int((1 - density) * kept)


CUTOFFS: Mapping[str, Cutoff] = {
    "glth": Cutoff(lambda rate, kept, ignored: round(rate * kept), inclusive=True),
    "openlth": Cutoff(lambda rate, kept, ignored: math.ceil(rate * (kept + ignored)), inclusive=True),
    "renda": Cutoff(lambda rate, kept, ignored: rate * (kept - 1), inclusive=False),
    "synflow": Cutoff(lambda rate, kept, ignored: _synflow(rate, kept) - 1, inclusive=True),
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
    """Prune the fraction `rate` of the kept weights, those with the lowest scores. Returns a subset of `mask`.

    rate:    in [0, 1]; 0 gives an equal mask, 1 an empty one
    rates:   fnmatch pattern of a layer or parameter -> its own rate; the first that fits counts; scope "layer" only
    scope:   "global" ranks all weights together, "layer" prunes each layer by its rate
    count:   "exact", or a rule in this file's table; with any of these a rate of 0 prunes nothing
    ignored: number of convolution and linear weights that are never pruned; only "openlth" counts them

    Weights that are already pruned never take part, whatever their scores. Scores of less than 32 bits are compared in
    float32. A layer may become empty (see `Mask.collapsed`). Raises ConfigError for a rate out of range, a pattern that
    fits no layer, or contradictory options; LotteryError for scores that are missing, of another shape or not finite.
    """
    _check_fraction("rate", rate)
    if count != "exact" and count not in CUTOFFS:
        raise ConfigError.of("count", count, f"one of exact, {', '.join(CUTOFFS)}")
    if count == "openlth" and scope == "layer":
        raise ConfigError.of("scope", scope, "'global', the only one that count='openlth' has")

    layer_rates = _by_layer(mask, rate, rates, scope)

    def stays(values: np.ndarray, layer: str) -> np.ndarray:
        fraction = layer_rates[layer]
        if fraction == 0 or count == "exact":
            return highest(values, values.size - round(fraction * values.size))[0]
        return _above(values, CUTOFFS[count], fraction, ignored)

    return _pruned(mask, scores, scope, stays)


def prune_to(mask: Mask, scores: Mapping[str, Tensor], density: float) -> Mask:
    """Prune down to exactly round(density * prunable) kept weights in one shot, all layers ranked together.

    density: kept / prunable to reach, in [0, 1], at most the mask's (ConfigError)

    Order, ties, scores and errors are those of `prune` with count "exact".
    """
    _check_fraction("density", density)
    goal = round(density * mask.size)
    if goal > mask.kept:
        raise ConfigError.of("density", density, f"at most {mask.density:.6g}, what the mask keeps now")
    return _pruned(mask, scores, "global", lambda values, _: highest(values, goal)[0])


def prune_to_counts(mask: Mask, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Mask:
    """Prune each layer down to exactly counts[name] weights. Order, ties, scores and errors are those of `prune_to`."""
    for layer, kept in mask.layer_kept.items():
        if not 0 <= counts[layer] <= kept:
            raise LotteryError(f"cannot keep {counts[layer]} weights of {layer!r}, which keeps {kept} now")
    return _pruned(mask, scores, "layer", lambda values, layer: highest(values, counts[layer])[0])


def highest(values: np.ndarray, n: int) -> tuple[np.ndarray, float]:
    """Return a mask of the n highest values (of equal ones the later), and the lowest of these (inf if n is 0).

    Selects in O(size) without sorting. Raises LotteryError for NaN.
    """
    if n == 0:
        return np.zeros(values.size, dtype=np.bool_), np.inf
    if values.size > LARGE and FEW * n < values.size and (few := _some_higher(values, n)).size >= n:
        stay = np.zeros(values.size, dtype=np.bool_)
        among, threshold = highest(values[few], n)
        stay[few[among]] = True
        return stay, threshold
    cut = values.size - n
    threshold = np.partition(values, cut)[cut]
    stay = values >= threshold
    surplus = int(np.count_nonzero(stay)) - n
    if surplus:
        tied = np.flatnonzero(values == threshold)
        if not 0 < surplus < tied.size:
            raise LotteryError("scores are not finite, cannot rank")
        stay[tied[:surplus]] = False
    return stay, float(threshold)


def _some_higher(values: np.ndarray, n: int) -> np.ndarray:
    """Return the places of all values above a bound that about 2 n of them exceed; none where a value is NaN."""
    if np.isnan(values).any():
        return np.zeros(0, dtype=np.intp)
    sample = np.sort(values[:: values.size // SAMPLE])
    beyond = 2 * n * sample.size // values.size + 32
    return np.flatnonzero(values > sample[max(0, sample.size - beyond)])


def _check_fraction(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError.of(key, value, "a fraction in [0, 1]")


def _by_layer(mask: Mask, rate: float, rates: Mapping[str, float] | None, scope: str) -> dict[str, float]:
    if scope not in ("global", "layer"):
        raise ConfigError.of("scope", scope, "'global' or 'layer'")
    if rates and scope == "global":
        raise ConfigError.of("rates", dict(rates), "nothing in scope 'global', where all layers are ranked together")
    values: dict[str, float] = {}
    for pattern, value in (rates or {}).items():
        _check_fraction(f"rates.{pattern}", value)
        for name in matching(pattern, mask, "rates"):
            values.setdefault(name, value)
    return {name: values.get(name, rate) for name in mask}


def _pruned(
    mask: Mask, scores: Mapping[str, Tensor], scope: str, stays: Callable[[np.ndarray, str], np.ndarray]
) -> Mask:
    """Keep the weights where `stays(scores of kept weights, first layer)`, called once per group of layers, is True."""
    layers = {name: kept.numpy() for name, kept in mask.items()}  # private copies, pruned in place below
    counts = mask.layer_kept
    for group in [list(layers)] if scope == "global" else [[name] for name in layers]:
        values = np.concatenate([_kept_scores(name, scores, layers[name]) for name in group])
        ends = np.cumsum([counts[name] for name in group])[:-1]
        for name, kept in zip(group, np.split(stays(values, group[0]), ends), strict=True):
            layers[name][layers[name]] = kept
    return Mask({name: torch.from_numpy(kept) for name, kept in layers.items()})


def _kept_scores(name: str, scores: Mapping[str, Tensor], kept: np.ndarray) -> np.ndarray:
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


def _above(values: np.ndarray, cutoff: Cutoff, rate: float, ignored: int) -> np.ndarray:
    position = cutoff.position(rate, values.size, ignored)
    if position < 0 or position >= values.size:
        return np.full(values.size, position < 0)
    low, high = math.floor(position), math.ceil(position)
    ranked = np.partition(values, [low, high])
    # In float64: an interpolated float32 could round to a neighbour, and move that to the other side of the cutoff.
    threshold = np.float64(ranked[low]) + (position - low) * (np.float64(ranked[high]) - np.float64(ranked[low]))
    return values > threshold if cutoff.inclusive else values >= threshold
