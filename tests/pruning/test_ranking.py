"""The inverted control: as many weights in each layer, those that go first (Frankle et al. 2021)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lottery.errors import LotteryError
from lottery.pruning.controls import Ranking
from lottery.pruning.prune import prune, prune_to, prune_to_counts
from lottery.ticket import Mask

SHAPES = {"a": torch.Size([20, 15]), "b": torch.Size([70])}


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def pruned_at_once(scores: dict[str, Tensor], density: float) -> Ranking:
    full = Mask.ones(SHAPES)
    return Ranking.begin(full).pruned(prune_to(full, scores, density), scores)


@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_inverting_twice_is_the_mask(seed: int, density: float) -> None:
    """T3.7, on distinct scores: s -> -s inside each layer, at the same counts, twice over."""
    scores = drawn(seed)
    ranking = pruned_at_once(scores, density)
    inverted = ranking.inverted()
    assert inverted.layer_kept == ranking.mask.layer_kept
    negated = {name: -score for name, score in scores.items()}
    again = prune_to_counts(Mask.ones(SHAPES), negated, ranking.mask.layer_kept)
    assert again == inverted
    twice = Ranking.begin(Mask.ones(SHAPES)).pruned(again, negated).inverted()
    assert twice == ranking.mask


def test_below_half_density_the_inverse_keeps_nothing_of_the_mask() -> None:
    ranking = pruned_at_once(drawn(1), 0.3)
    common = [int((ranking.mask[name] & kept).sum()) for name, kept in ranking.inverted().items()]
    kept, sizes = ranking.mask.layer_kept, {name: shape.numel() for name, shape in SHAPES.items()}
    assert common == [max(0, 2 * kept[name] - sizes[name]) for name in SHAPES]


def test_over_rounds_what_went_earlier_comes_first() -> None:
    """Weights that a first round prunes are kept by the inverse before any that a later round prunes."""
    mask = Mask.ones(SHAPES)
    ranking, masks = Ranking.begin(mask), [mask]
    for seed in (1, 2, 3):
        scores = drawn(seed)
        mask = prune(mask, scores, 0.4)
        ranking = ranking.pruned(mask, scores)
        masks.append(mask)
    for name, order in ranking.order().items():
        assert sorted(order) == list(range(order.size)), "a permutation"
        left = [order[m[name].view(-1).numpy()] for m in masks]
        gone = [set(a) - set(b) for a, b in pairwise(left)] + [set(left[-1])]
        assert all(max(earlier) < min(later) for earlier, later in pairwise(gone))
        last = drawn(3)[name].view(-1)[mask[name].view(-1)]
        assert [float(score) for score in last[torch.from_numpy(left[-1]).argsort()]] == sorted(map(float, last))


def test_only_from_the_dense_network_on() -> None:
    sparse = prune(Mask.ones(SHAPES), drawn(1), 0.5)
    with pytest.raises(LotteryError, match="only from the dense network on"):
        Ranking.begin(sparse)
