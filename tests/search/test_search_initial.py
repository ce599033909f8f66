"""Initial scores: closed forms, ranges, and storage of their own (T4.5)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lottery.search.initial import INITIAL, kaiming_uniform, magnitude, scaled, two_level, uniform
from lottery.search.top import Top


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(16, 8, 3, 3), (40, 16), (6, 1, 5, 5)]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", [*INITIAL, "two_level"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_share_no_storage_with_weights_or_masks(name: str, dtype: torch.dtype) -> None:
    theta = weights(dtype)
    masks = [torch.ones_like(weight, requires_grad=False) for weight in theta]
    before = [weight.detach().clone() for weight in theta]
    scores = two_level(theta, masks) if name == "two_level" else INITIAL[name](theta, generator())
    assert not {s.untyped_storage().data_ptr() for s in scores} & {
        tensor.untyped_storage().data_ptr() for tensor in [*theta, *masks]
    }
    for score, weight, same, mask in zip(scores, theta, before, masks, strict=True):
        assert (score.shape, score.dtype, score.requires_grad) == (weight.shape, dtype, False)
        score.fill_(9.0)
        assert torch.equal(weight, same)
        assert torch.equal(mask, torch.ones_like(same))


def test_scaled_is_the_magnitude_up_to_the_kaiming_bound() -> None:
    """√(6 / fan_in) at the largest weight; fan_in of a 3x3 convolution of 8 channels is 72."""
    theta = weights()
    for score, weight, fan_in in zip(scaled(theta), theta, (72, 16, 25), strict=True):
        assert score.max().item() == pytest.approx(math.sqrt(6 / fan_in), rel=1e-6)
        torch.testing.assert_close(score / score.max(), (weight.abs() / weight.abs().max()).detach())
    zeros = [torch.zeros(3, 4)]
    assert torch.equal(scaled(zeros)[0], zeros[0])


def test_magnitude_and_scaled_rank_each_tensor_alike() -> None:
    theta = weights()
    counts, masks = [100, 64, 15], []
    for scores in (magnitude(theta), scaled(theta)):
        masks.append([torch.empty_like(score) for score in scores])
        Top(counts)(scores, masks[-1], 0.0)
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
    assert torch.equal(magnitude(theta)[0], theta[0].detach().abs())


def test_two_levels() -> None:
    """T5: 0.99 on what the mask prunes, 1 elsewhere (zyxxmu/lottery-jackpots)."""
    scores = two_level([torch.randn(2, 2)], [torch.tensor([[0.0, 1.0], [1.0, 0.0]])])[0]
    assert torch.equal(scores, torch.tensor([[0.99, 1.0], [1.0, 0.99]]))


def test_drawn_scores_fill_their_range_and_follow_the_generator() -> None:
    """Kaiming uniform with a = √5 is U(±1/√fan_in), of variance 1 / (3 fan_in)."""
    shapes = [torch.Size([64, 16, 3, 3]), torch.Size([100, 144])]
    for scores in kaiming_uniform(shapes, generator()):
        assert 0.98 / 12 < scores.abs().max() <= 1 / 12
        assert scores.var().item() == pytest.approx(1 / (3 * 144), rel=0.05)
        assert scores.mean().abs() < 0.005
    for scores in uniform(shapes, generator()):
        assert 0 <= scores.min() < 0.01
        assert 0.99 < scores.max() < 1
    for draw in (kaiming_uniform, uniform):
        first, again, other = draw(shapes, generator()), draw(shapes, generator()), draw(shapes, generator(1))
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[1], other[1])
        assert not torch.equal(first[0].flatten()[:99], first[1].flatten()[:99])


def test_torch_s_global_stream_is_not_touched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name in INITIAL:
        INITIAL[name](weights(), generator())
    assert torch.equal(torch.rand(3), expected)
