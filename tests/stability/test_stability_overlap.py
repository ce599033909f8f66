"""Overlap of masks against closed forms, chance against draws, and the time that 25 million weights take."""

from __future__ import annotations

from math import comb
from time import perf_counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lottery.errors import LotteryError
from lottery.pruning.prune import prune_to
from lottery.stability.magnitude import magnitude_mask
from lottery.stability.overlap import Overlap, overlap, overlap_by_layer
from lottery.ticket import Mask


def packed(*layers: list[int]) -> dict[str, np.ndarray]:
    return {str(k): np.packbits(np.array(bits, bool)) for k, bits in enumerate(layers)}


layers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(layers, layers)
def test_counts_are_those_of_the_sets(first: list[tuple[bool, bool]], second: list[tuple[bool, bool]]) -> None:
    ours, theirs = (
        packed(*([a for a, _ in of] for of in (first, second))),
        packed(*([b for _, b in of] for of in (first, second))),
    )
    found = overlap(ours, theirs, {"0": len(first), "1": len(second)})
    one = {(k, i) for k, of in enumerate((first, second)) for i, (a, _) in enumerate(of) if a}
    other = {(k, i) for k, of in enumerate((first, second)) for i, (_, b) in enumerate(of) if b}
    assert found.iou == (len(one & other) / len(one | other) if one | other else 1)
    assert found.hamming == len(one ^ other) / (len(first) + len(second))


def test_equal_complementary_and_nested_masks() -> None:
    bits, rest, part = packed([1, 1, 1, 0, 0, 0]), packed([0, 0, 0, 1, 1, 1]), packed([1, 0, 0, 0, 0, 0])
    sizes = {"0": 6}
    assert (overlap(bits, bits, sizes).iou, overlap(bits, bits, sizes).hamming) == (1, 0)
    assert (overlap(bits, rest, sizes).iou, overlap(bits, rest, sizes).hamming) == (0, 1)
    assert overlap(bits, part, sizes).iou == pytest.approx(1 / 3)  # nested: the ratio of the densities


def test_chance_in_closed_form() -> None:
    """Densities a and b: E|A∩B| = nab, Hamming a + b - 2ab; equal densities d: IoU d / (2 - d)."""
    half = Overlap.of(1000, 500, 500, 300)
    assert half.iou_chance == pytest.approx(0.5 / 1.5)
    assert half.hamming_chance == pytest.approx(0.5)
    uneven = Overlap.of(1000, 200, 500, 100)
    assert uneven.hamming_chance == pytest.approx(0.2 + 0.5 - 2 * 0.2 * 0.5)
    assert uneven.surprise == 0


def test_chance_is_the_hypergeometric_distribution() -> None:
    size, ours, theirs = 12, 5, 7
    ways = {k: comb(ours, k) * comb(size - ours, theirs - k) / comb(size, theirs) for k in range(ours + 1)}
    mean = sum(k * p for k, p in ways.items())
    found = Overlap.of(size, ours, theirs, 0)
    assert found.expected == pytest.approx(mean)
    assert found.variance == pytest.approx(sum((k - mean) ** 2 * p for k, p in ways.items()))


def test_chance_goes_by_layer() -> None:
    """A dense layer and an almost empty one overlap by far more than their common density would let expect."""
    by_layer = {"dense": Overlap.of(100, 100, 100, 100), "sparse": Overlap.of(900, 9, 9, 0)}
    whole = sum(by_layer.values(), Overlap())
    assert whole.expected == pytest.approx(100 + 0.09)
    assert whole.iou_chance > 5 * Overlap.of(1000, 109, 109, 0).iou_chance


def test_random_masks_overlap_by_chance() -> None:
    """T1.7: within 4 standard deviations, in each layer."""
    rng = np.random.default_rng(0)
    sizes = {"a": 5000, "b": 70_000}
    draw = {name: [np.packbits(rng.permutation(size) < size // 5) for _ in range(2)] for name, size in sizes.items()}
    found = overlap_by_layer({n: d[0] for n, d in draw.items()}, {n: d[1] for n, d in draw.items()}, sizes)
    assert all(abs(layer.surprise or 9) < 4 for layer in found.values())
    assert sum(found.values(), Overlap()).iou == pytest.approx(0.2 / 1.8, rel=0.05)


@pytest.mark.parametrize("kept", [0, 8])
def test_where_chance_leaves_no_choice(kept: int) -> None:
    only = Overlap.of(8, kept, kept, kept)
    assert only.surprise is None
    assert only.iou == only.iou_chance == 1
    assert Overlap.of(1, 1, 1, 1).surprise is None


def test_masks_of_different_networks_are_refused() -> None:
    with pytest.raises(LotteryError, match="only one of them has '1'"):
        overlap(packed([1]), packed([1], [1]), {"0": 1})
    with pytest.raises(LotteryError, match="different networks: got 2 bytes for the 3 weights of '0', expected 1"):
        overlap(packed([1, 0, 1]), packed([1] * 9), {"0": 3})


def test_25_million_weights_take_under_a_fifth_of_a_second() -> None:
    size = 25_000_000
    rng = np.random.default_rng(0)
    one, other = ({"w": rng.integers(0, 256, size // 8, np.uint8)} for _ in range(2))
    overlap(one, other, {"w": size})
    began = perf_counter()
    found = overlap(one, other, {"w": size})
    assert perf_counter() - began < 0.2
    assert found.iou == pytest.approx(1 / 3, rel=1e-2)


def test_magnitude_mask_keeps_the_largest_at_equal_density() -> None:
    state = {"a": torch.tensor([[5.0, -9.0], [1.0, 8.0]]), "b": torch.tensor([[0.1, -0.3, 0.2]]), "bias": torch.ones(3)}
    like = Mask({"a": torch.tensor([[True, True], [True, False]]), "b": torch.tensor([[True, False, False]])})
    found = magnitude_mask(state, like)
    assert found.kept == like.kept
    assert found["a"].all()
    assert not found["b"].any()


def test_magnitude_mask_of_a_magnitude_pruned_network_is_its_own_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(size, generator=generator) for name, size in (("a", (30, 7)), ("b", (5, 11)))}
    full = Mask.ones({name: value.shape for name, value in state.items()})
    pruned = prune_to(full, {name: value.abs() for name, value in state.items()}, 0.3)
    assert magnitude_mask(state, pruned) == pruned
