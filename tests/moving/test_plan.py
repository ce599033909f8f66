"""When a mask moves, how dense it is, what moves and what that costs, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lottery.moving.cost import relative_cost
from lottery.moving.exchange import with_highest, without_lowest
from lottery.moving.groups import Groups
from lottery.moving.plan import DECAYS, Plan, cubic, expected_exploration


def test_the_cubic_schedule() -> None:
    sparsity = [1 - cubic(1.0, 0.1, u) for u in (0, 0.1, 0.25, 0.5, 0.75, 1)]
    assert sparsity == pytest.approx([0, 0.2439, 0.5203125, 0.7875, 0.8859375, 0.9], abs=1e-6)
    assert [cubic(0.5, 0.1, u) for u in (0.25, 0.5, 0.75)] == pytest.approx([0.26875, 0.15, 0.10625])
    assert (cubic(1.0, 0.1, 1.0) - cubic(1.0, 0.1, 1 - 1e-6)) * 1e6 == pytest.approx(0, abs=1e-6)  # flat at the end


def test_the_share_that_moves() -> None:
    shares = [0.3 * DECAYS["cosine"](u) for u in (0, 0.25, 0.5, 0.75, 1)]
    assert shares == pytest.approx([0.3, 0.2561, 0.15, 0.0439, 0], abs=1e-4)
    assert {0.3 * DECAYS["constant"](u) for u in (0, 0.5, 1)} == {0.3}


@pytest.mark.parametrize(
    ("updates", "constant", "cosine"), [(10, 0.2724, 0.1792), (50, 0.7496, 0.5177), (100, 0.9340, 0.7518)]
)
def test_the_expected_exploration(updates: int, constant: float, cosine: float) -> None:
    assert expected_exploration(0.05, [0.5] * updates) == pytest.approx(constant, abs=1e-4)
    falling = [0.5 * DECAYS["cosine"](i / updates) for i in range(updates)]
    assert expected_exploration(0.05, falling) == pytest.approx(cosine, abs=1e-4)


def test_when_it_is_due() -> None:
    plan = Plan(every=4, begin=2, end=13, total=20)
    assert [step for step in range(20) if plan.due(step)] == [6, 10, 13]
    assert [plan.progress(step) for step in (0, 2, 13, 19)] == [0, 0, 1, 1]
    assert plan.progress(6) == pytest.approx(4 / 11)


@given(st.integers(0, 2**32 - 1))
def test_exact_numbers_and_ties_by_position(seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 4, draw.integers(1, 40)).astype(np.float32)
    kept = draw.random(values.size) < 0.5
    number = int(draw.integers(0, kept.sum() + 1))
    left = without_lowest(kept, values, number)
    assert not (left & ~kept).any()
    gone = np.flatnonzero(kept & ~left)
    order = sorted(np.flatnonzero(kept), key=lambda place: (values[place], place))
    assert sorted(order[:number]) == gone.tolist()
    free = ~kept
    more = int(draw.integers(0, free.sum() + 1))
    grown = np.flatnonzero(with_highest(kept, values, more, free) & ~kept)
    ranked = sorted(np.flatnonzero(free), key=lambda place: (-values[place], -place))
    assert sorted(ranked[:more]) == grown.tolist()


def test_the_cost_of_rigl_is_that_of_its_formula() -> None:
    """Evci et al. 2020: (3 f_S Δ + 2 f_S + f_D) / ((Δ + 1) 3 f_D) with a dense gradient in one of Δ + 1 steps."""
    every, updates, density = 100, 7, 0.2
    steps = (every + 1) * updates
    cost = relative_cost({"a": 50, "b": 30}, {"a.weight": 100, "b.weight": 10}, [[0, updates, 20, 2]], steps)
    assert cost == pytest.approx((3 * density * every + 2 * density + 1) / ((every + 1) * 3))
    assert relative_cost({"a": 50, "stem": 30}, {"a.weight": 100}, [[0, 0, 100], [6, 0, 0]], 8) == pytest.approx(
        (6 * 80 + 2 * 30) / (8 * 80)
    )


def test_groups_along_inputs_or_as_they_lie_in_memory() -> None:
    weight = torch.tensor([[4.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    assert Groups("w", weight.shape, 2, 4, "hardware")(weight).tolist() == [[1, 0, 0, 1], [0, 0, 1, 1]]
    kernel = torch.arange(1.0, 17.0).view(1, 4, 2, 2)  # [out, in, 2, 2]: at one position the inputs are 4 apart
    along = Groups("w", kernel.shape, 1, 4, "hardware")(kernel)
    assert along[0, 3].all()
    assert along.sum() == 4
    flat = Groups("w", kernel.shape, 1, 4, "flattened")(kernel)
    assert flat.view(4, 4).tolist() == [[0, 0, 0, 1]] * 4


def test_the_cost_of_an_attention_layer_s_projection_follows_its_mask() -> None:
    cost = relative_cost({"attn.in_proj": 60, "attn.out_proj": 40}, {"attn.in_proj_weight": 10}, [[0, 0, 5]], 4)
    assert cost == pytest.approx((30 + 40) / 100)
