"""Distances and PQ indices in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lottery.errors import ConfigError, LotteryError
from lottery.stability.weights import distance, least_density, pq_by_layer, pq_index

KEPT = {"w": np.array([True, True])}


def between(one: list[float], other: list[float]) -> tuple[float, float | None, float]:
    found = distance({"w": np.array(one)}, {"w": np.array(other)}, {"w": np.ones(len(one), bool)})
    assert found is not None
    return found.l2, found.angle, found.sign_changes


@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_angle_of_45_degrees_whatever_the_scale(scale: float) -> None:
    """T2.6."""
    assert between([1, 0], [scale, scale])[1] == pytest.approx(45)


@pytest.mark.parametrize(("other", "angle"), [([2.0, 4.0], 0), ([-1.0, -2.0], 180), ([2.0, -1.0], 90)])
def test_parallel_opposite_and_orthogonal(other: list[float], angle: float) -> None:
    assert between([1, 2], other)[1] == pytest.approx(angle, abs=1e-12)


def test_distances_of_a_3_4_5_triangle_and_signs() -> None:
    assert between([0, 4], [3, 0])[0] == 5
    assert between([1, -1, 0, 2], [2, 1, 0, -2])[2] == 0.5
    assert between([1, 0], [1, 1])[2] == 0.5  # from zero to a sign is a change


def test_a_copy_lies_at_distance_zero_exactly() -> None:
    """T2.4: not the 1e-6 degrees that an arc cosine would give."""
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    found = distance({"w": weights}, {"w": weights.clone()}, {"w": torch.ones(1000, dtype=torch.bool)})
    assert found is not None
    assert (found.l2, found.angle, found.sign_changes) == (0.0, 0.0, 0.0)


def test_small_angles_are_accurate() -> None:
    assert between([1, 0], [1, 1e-9])[1] == pytest.approx(np.degrees(1e-9), rel=1e-9)


def test_pruned_weights_play_no_part() -> None:
    one = {"w": torch.tensor([1.0, 7.0]), "v": torch.tensor([1.0])}
    other = {"w": torch.tensor([4.0, -7.0]), "v": torch.tensor([5.0])}
    kept = {"w": torch.tensor([True, False]), "v": torch.tensor([True])}
    found = distance(one, other, kept)
    assert found is not None
    assert (found.l2, found.sign_changes) == (5.0, 0.0)


@given(st.integers(1, 5))
def test_layers_make_one_vector(parts: int) -> None:
    rng = np.random.default_rng(parts)
    a, b = rng.normal(size=(2, 12 * parts))
    whole = distance({"w": a}, {"w": b}, {"w": np.ones(12 * parts, bool)})
    split = [dict(zip("abcde", np.split(of, parts), strict=False)) for of in (a, b, np.ones(12 * parts, bool))]
    divided = distance(*split)
    assert whole is not None
    assert divided is not None
    assert (divided.l2, divided.angle) == pytest.approx((whole.l2, whole.angle))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert whole.angle == pytest.approx(np.degrees(np.arccos(cosine)))


def test_undefined_where_there_is_nothing() -> None:
    assert between([0, 0], [1, 1])[1] is None
    assert distance({"w": np.ones(2)}, {"w": np.ones(2)}, {"w": np.zeros(2, bool)}) is None


def test_other_networks_are_refused() -> None:
    with pytest.raises(LotteryError, match="prunes 'w', which the state does not have"):
        distance({}, {}, KEPT)
    with pytest.raises(LotteryError, match=r"'w' is \[2\] in the mask, \[3\] in the state"):
        distance({"w": np.ones(2)}, {"w": torch.ones(3)}, KEPT)


# -- PQ index (Diao et al. 2023: values computed from the formula) ------------------------------------------------


@pytest.mark.parametrize(("p", "q", "index", "one_hot"), [(0.5, 1, 0.75, 0.99), (1, 2, 0.5, 0.90)])
def test_pq_closed_forms(p: float, q: float, index: float, one_hot: float) -> None:
    equal = np.r_[np.ones(25), np.zeros(75)]
    assert pq_index(equal, p, q) == pytest.approx(index)
    assert 100 * least_density(index, p, q) == pytest.approx(25)
    assert pq_index(np.eye(100)[3], p, q) == pytest.approx(one_hot)
    assert pq_index(-np.ones(7), p, q) == pytest.approx(0)


@pytest.mark.parametrize(
    ("draw", "p", "q", "index", "share"),
    [("normal", 0.5, 1, 0.1526, 0.847), ("normal", 1, 2, 0.2020, 0.637),
     ("uniform", 0.5, 1, 0.1114, 0.889), ("uniform", 1, 2, 0.1344, 0.749)],
)  # fmt: skip
def test_pq_of_gaussian_and_uniform_weights(draw: str, p: float, q: float, index: float, share: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=1_000_000) if draw == "normal" else rng.uniform(-1, 1, 1_000_000)
    found = pq_index(weights, p, q)
    assert found == pytest.approx(index, abs=1e-3)
    assert least_density(found, p, q) == pytest.approx(share, abs=2e-3)


@given(st.lists(st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=1, max_size=20))
def test_pq_invariances_and_bounds(values: list[float]) -> None:
    weights = np.array(values)
    index = pq_index(weights)
    if not weights.any():
        assert index is None
        return
    assert index is not None
    assert -1e-12 <= index <= 1 - 1 / len(weights) + 1e-12
    assert pq_index(weights * 1e-200) == pytest.approx(index, abs=1e-12)  # whose square roots are fine, squares not
    assert pq_index(np.tile(weights, 3)) == pytest.approx(index, abs=1e-12)
    assert 0 < least_density(index) <= 1 + 1e-12


def test_pq_by_layer_leaves_out_pruned_weights() -> None:
    state = {"a": torch.tensor([1.0, 1.0, 0.0]), "b": torch.tensor([3.0, 0.0])}
    kept = {"a": torch.tensor([True, True, False]), "b": torch.tensor([False, False])}
    assert pq_by_layer(state, kept) == {"a": pytest.approx(0), "b": None}


def test_pq_needs_p_below_q() -> None:
    with pytest.raises(ConfigError, match="0 < p < q"):
        pq_index(np.ones(3), 1, 1)
