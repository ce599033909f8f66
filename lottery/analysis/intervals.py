"""Intervals and tests of the mean of few independent values. Numbers only; torch-free."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lottery.errors import ConfigError

CONFIDENCE = 0.95
RESAMPLES = 5000
NAN = float("nan")
ROUNDING = 1e-9  # resampled means this close, relative to the range of the values, count as equal


class Interval(NamedTuple):
    """Both ends of an interval; NaN for fewer than two values."""

    low: float
    high: float


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Return Student's interval of the mean: mean ± t * s / sqrt(n), where s has n - 1 in the denominator."""
    values = _finite(values)
    if len(values) < 2:
        return Interval(NAN, NAN)
    from scipy.special import stdtrit  # slow to import, and most tables have one seed

    half = stdtrit(len(values) - 1, (1 + _share(confidence)) / 2) * _standard_error(values)
    return Interval(float(values.mean() - half), float(values.mean() + half))


def bootstrap_interval(
    values: ArrayLike,
    confidence: float = CONFIDENCE,
    *,
    method: str = "bca",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the bootstrap interval of the mean, from `resamples` draws with replacement, repeatable by `seed`.

    method: "percentile", or "bca", which corrects for bias and skewness (Efron & Tibshirani 1993, "An Introduction to
        the Bootstrap", section 14.3). Both lie within the range of the values, and are too narrow for few values.
    """
    if method not in ("bca", "percentile"):
        raise ConfigError.of("method", method, "bca or percentile")
    values = _finite(values)
    if len(values) < 2:
        return Interval(NAN, NAN)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = values[drawn].mean(axis=1)
    levels = np.array([1 - _share(confidence), 1 + confidence]) / 2
    if method == "bca":
        levels = _bca_levels(values, means, levels)
    low, high = np.quantile(means, levels)
    return Interval(float(low), float(high))


def _bca_levels(values: np.ndarray, means: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the quantiles of the resampled means at which the BCa interval ends; acceleration by the jackknife."""
    away = values - values.mean()
    spread, rounding = (away**2).sum() ** 1.5, ROUNDING * np.ptp(values)
    below, at_most = (means < values.mean() - rounding).mean(), (means <= values.mean() + rounding).mean()
    half_of_ties = (below + at_most) / 2
    if spread == 0 or not 0 < half_of_ties < 1:
        return levels
    from scipy.special import ndtr, ndtri

    bias, acceleration = ndtri(half_of_ties), (away**3).sum() / (6 * spread)
    shifted = bias + ndtri(levels)
    return ndtr(bias + shifted / (1 - acceleration * shifted))


def holm(p: ArrayLike) -> np.ndarray:
    """Adjust p-values for their number, so that the chance of any false rejection at a bound is at most the bound.

    Holm 1979, "A simple sequentially rejective multiple test procedure". NaN stays NaN and does not count as a test.
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def p_above(values: ArrayLike, bound: float) -> float:
    """Return the p-value of a one-sided t test that the true mean is above `bound`; NaN for n < 2."""
    values = _finite(values)
    if len(values) < 2:
        return NAN
    above, error = values.mean() - bound, _standard_error(values)
    if error == 0:
        return 0.0 if above > 0 else 1.0
    from scipy.special import stdtr

    return float(stdtr(len(values) - 1, -above / error))


def _finite(values: ArrayLike) -> np.ndarray:
    """Return the values that are not NaN."""
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


def _standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean: exactly 0 if all values are equal, despite rounding."""
    return 0.0 if (values == values[0]).all() else float(values.std(ddof=1) / np.sqrt(len(values)))


def _share(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError.of("confidence", confidence, "a number between 0 and 1, such as 0.95")
    return confidence
