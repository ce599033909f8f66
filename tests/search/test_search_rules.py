"""Rules: exact counts, the order of ties, groups, N:M, and that the warm-started selection is a sort's, bit by bit."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lottery.errors import ConfigError, LotteryError
from lottery.pruning.prune import prune_to
from lottery.search import top as top_module
from lottery.search.rules import NM, Rule, TopGroups
from lottery.search.top import Top, _by_threshold
from lottery.ticket import Mask

patient = settings(deadline=None)  # a shared machine may stall
SHAPES = {"a": torch.Size([6, 4, 3, 3]), "b": torch.Size([8, 6, 3, 3]), "c": torch.Size([4, 8, 1, 1])}


def sorted_top(scores: list[Tensor], count: int) -> list[Tensor]:
    """The rule's definition: a full stable sort of (score, tensor order, flat index), the lowest of which go."""
    order = sorted((v, t, i) for t, score in enumerate(scores) for i, v in enumerate(score.flatten().tolist()))
    masks = [torch.zeros(score.numel()) for score in scores]
    for _, t, i in order[len(order) - count :]:
        masks[t][i] = 1
    return [mask.view(score.shape) for mask, score in zip(masks, scores, strict=True)]


def follow(rule: Rule, scores: list[Tensor]) -> list[Tensor]:
    """The masks that a rule writes over garbage."""
    masks = [torch.full_like(score, 7.0) for score in scores]
    rule(scores, masks, 0.5)
    return masks


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(f.double(), e.double()) for f, e in zip(found, expected, strict=True))


def randn(shapes: dict[str, torch.Size], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes.values()]


@st.composite
def journeys(draw: st.DrawFn) -> tuple[list[list[Tensor]], int]:
    """Scores of a few tensors over some steps, with few values or many, that creep, jump or rest; and a count."""
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    dtypes = [draw(st.sampled_from([torch.float32, torch.float64])) for _ in sizes]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    grain = draw(st.sampled_from([0.0, 0.5, 2.0]))
    scores = [torch.randn(size, generator=generator, dtype=dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
    steps = []
    for reach in draw(st.lists(st.sampled_from([0.0, 1e-8, 1e-3, 0.1, 10.0]), min_size=1, max_size=8)):
        for score in scores:
            score += reach * (torch.randn(score.shape, generator=generator, dtype=score.dtype) + 0.5)
        steps.append([(score / grain).round() * grain if grain else score.clone() for score in scores])
    return steps, draw(st.integers(0, sum(sizes)))


@patient
@given(journeys())
def test_the_band_finds_what_a_sort_finds(journey: tuple[list[list[Tensor]], int]) -> None:
    steps, count = journey
    rule = Top(count)
    for scores in steps:
        assert same(follow(rule, scores), sorted_top(scores, count))


@patient
@given(journeys(), st.floats(0, 1))
def test_each_tensor_keeps_its_own_count(journey: tuple[list[list[Tensor]], int], density: float) -> None:
    steps, _ = journey
    counts = [round(density * score.numel()) for score in steps[0]]
    rule = Top(counts)
    for scores in steps:
        expected = [sorted_top([score], count)[0] for score, count in zip(scores, counts, strict=True)]
        assert same(follow(rule, scores), expected)


@patient
@given(journeys())
def test_accelerators_sort_to_the_same_masks(journey: tuple[list[list[Tensor]], int]) -> None:
    """Their path is plain torch, so it can run here too."""
    steps, count = journey
    scores = [score.float() for score in steps[-1]]
    masks = [torch.full_like(score, 7.0) for score in scores]
    _by_threshold(scores, masks, count)
    assert same(masks, sorted_top(scores, count))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_masks_of_the_cpu() -> None:
    scores = [score.mul(8).round() for score in randn(SHAPES)]
    there = [score.cuda() for score in scores]
    for rule in (Top(100), Top([50, 60, 7]), TopGroups(SHAPES, 0.5, 1), NM(SHAPES, 1, 2)):
        assert same([mask.cpu() for mask in follow(rule, there)], follow(rule, scores))


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many scores were ranked, call after call."""
    sizes: list[int] = []
    original = top_module.highest
    monkeypatch.setattr(top_module, "highest", lambda values, n: sizes.append(values.size) or original(values, n))
    return sizes


def test_the_band_is_used_and_narrow(ranked: list[int]) -> None:
    """Of scores that creep, a full selection is needed at the start only; after it few are ranked."""
    scores = randn({"w": torch.Size([50_000])})[0]
    top, mask = Top(5_000), torch.zeros(50_000)
    for step in range(60):
        scores += 1e-4 * randn({"w": torch.Size([50_000])}, step)[0]
        top([scores], [mask])
        assert mask.sum() == 5_000
    assert ranked[0] == 50_000
    assert max(ranked[10:]) < 0.03 * 50_000
    assert same([mask], [(scores >= scores.sort().values[45_000]).float()])


def test_scores_at_rest_need_no_full_selection(ranked: list[int]) -> None:
    top, scores, mask = Top(3_000), torch.arange(10_000.0), torch.zeros(10_000)
    assert [top([scores], [mask]) for _ in range(3)] == [3_000, 0, 0]
    assert ranked[0] == 10_000
    assert max(ranked[1:], default=0) < 10_000
    assert same([mask], [(scores > 6_999).float()])


def test_a_rule_says_how_many_came_in() -> None:
    """As many as went out; also where masks were restored, and a new rule has written none of them."""
    groups, nm = partial(TopGroups, SHAPES, 0.5, 1), partial(NM, SHAPES, 1, 2)
    for new in (partial(Top, 100), partial(Top, [50, 60, 7]), groups, nm):
        kind, scores = new(), randn(SHAPES)
        masks = follow(kind, scores)
        before = [mask.clone() for mask in masks]
        scores = [a + 0.5 * b for a, b in zip(scores, randn(SHAPES, 1), strict=True)]
        came = int(kind(scores, masks, 0.5))
        changed = [(after - old) for after, old in zip(masks, before, strict=True)]
        assert came == sum(int((change > 0).sum()) for change in changed) > 0
        assert came == sum(int((change < 0).sum()) for change in changed)
        copies = [mask.clone() for mask in before]
        assert int(new()(scores, copies, 0.5)) == came
        assert same(copies, masks)


def test_tensors_of_different_precision_are_compared_exactly() -> None:
    """float32's 0.1 lies above float64's, where the threshold is after the first call, and y between the two."""
    rule, y = Top(1), 0.1 + 1e-10
    wide = torch.tensor([0.1], dtype=torch.float64)
    assert same(follow(rule, [torch.tensor([0.0]), wide]), [torch.tensor([0.0]), torch.tensor([1.0])])
    narrow = torch.tensor([0.1])
    assert narrow.item() > y
    assert same(follow(rule, [narrow, torch.full_like(wide, y)]), [torch.tensor([1.0]), torch.tensor([0.0])])


def test_order_of_ties_is_that_of_pruning() -> None:
    """With all scores equal the earlier weights go, as `lottery.pruning.prune` prunes them."""
    scores = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    dense = Mask.ones(SHAPES)
    for density in (0.0, 0.3, 0.77, 1.0):
        ours = follow(Top(round(density * dense.size)), list(scores.values()))
        assert same(ours, [bits.float() for bits in prune_to(dense, scores, density).values()])


def test_zeros_of_both_signs_are_equal() -> None:
    scores = torch.tensor([0.0, -0.0, 0.0, -0.0])
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert same(follow(Top(2), [scores]), [expected])
    assert same(follow(NM({"w": torch.Size([1, 4])}, 2, 4), [scores.view(1, 4)]), [expected.view(1, 4)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_masks_and_scores_of_any_float(dtype: torch.dtype) -> None:
    scores = [score.to(dtype) for score in randn(SHAPES)]
    for rule in (Top(100), Top([50, 60, 7]), TopGroups(SHAPES, 0.5, 1), NM(SHAPES, 1, 2)):
        masks = follow(rule, scores)
        assert all(mask.dtype == dtype for mask in masks)
        assert same(masks, follow(rule, [score.double() for score in scores]))


def test_memory_layout_and_parameters_change_nothing() -> None:
    scores = [score.mul(2).round() for score in randn(SHAPES)]
    laid = [nn.Parameter(score.to(memory_format=torch.channels_last)) for score in scores]
    for rule in (Top(100), Top([50, 60, 7]), TopGroups(SHAPES, 0.5, 1), NM(SHAPES, 1, 2)):
        masks = [torch.full_like(score, 7.0, requires_grad=False) for score in laid]
        rule(laid, masks, 0.0)
        assert not masks[0].is_contiguous()
        assert same(masks, follow(rule, scores))


def test_scores_are_left_alone() -> None:
    scores = randn(SHAPES)
    before = [score.clone() for score in scores]
    for rule in (Top(100), Top([50, 60, 7]), TopGroups(SHAPES, 0.5, 0), NM(SHAPES, 1, 2)):
        follow(rule, scores)
        follow(rule, scores)
    assert same(scores, before)


def test_scores_that_cannot_be_ranked() -> None:
    with pytest.raises(LotteryError, match="not finite"):
        follow(Top(1), [torch.full((4,), math.nan)])
    with pytest.raises(LotteryError, match="cannot keep 5 weights of 4"):
        follow(Top(5), [torch.ones(4)])


# -- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("density", [0.25, 0.5, 0.7, 1.0])
def test_groups_are_all_or_nothing_and_the_strongest_stay(dim: int, density: float) -> None:
    scores = randn(SHAPES)
    rule = TopGroups(SHAPES, density, dim)
    masks = follow(rule, scores)
    for score, mask in zip(scores, masks, strict=True):
        alive = mask.movedim(dim, 0).flatten(1)
        assert torch.equal(alive.amin(1), alive.amax(1))
        norms, alive = score.movedim(dim, 0).flatten(1).norm(dim=1), alive[:, 0].bool()
        removed = int((1 - density) * len(norms))
        assert int((~alive).sum()) == removed
        assert removed == 0 or norms[alive].min() > norms[~alive].max()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("other", [37, 130])
def test_equal_groups_tie_and_the_earlier_go(dim: int, other: int) -> None:
    """Also where their norms are rounded: every group holds the same random scores."""
    group = randn({"w": torch.Size([1, other, 3, 3])})[0].transpose(0, dim)
    scores = group.repeat_interleave(37, dim)
    mask = follow(TopGroups({"w": scores.shape}, 0.5, dim), [scores])[0].movedim(dim, 0)
    assert mask[:18].sum() == 0
    assert mask[18:].sum() == 19 * other * 9


def test_the_share_of_groups_is_not_lost_to_rounding() -> None:
    """1 - 0.8 is below 0.2 in floating point: of five filters one goes all the same, of ten two."""
    for groups in (5, 10, 20):
        rule = TopGroups({"w": torch.Size([groups, 2, 1, 1])}, 0.8, 0)
        assert rule.removed == [groups // 5]


def test_too_few_groups_and_no_groups_are_named() -> None:
    shapes = {"conv1.weight": torch.Size([64, 3, 3, 3])}
    with pytest.raises(ConfigError, match=r"method\.density: got 0\.2, expected at least 0\.333333: 'conv1\.weight'"):
        TopGroups(shapes, 0.2, 1)
    assert TopGroups(shapes, 0.333333, 1).removed == [2]  # what the message says does pass
    with pytest.raises(ConfigError, match=r"method\.pattern: got 'filter', .* 'fc\.weight'.*prunable\.exclude"):
        TopGroups({**shapes, "fc.weight": torch.Size([10, 64])}, 0.5, 0)


# -- N:M ------------------------------------------------------------------------------------------------------------


@patient
@given(st.integers(0, 2**32), st.sampled_from([(1, 2), (2, 4), (4, 8), (1, 1), (4, 4), (5, 24)]), st.booleans())
def test_every_group_keeps_its_n_highest(seed: int, pattern: tuple[int, int], ties: bool) -> None:
    """Groups of m consecutive inputs of one output, of a convolution at one position. 24 is too many to compare."""
    n, m = pattern
    shapes = {"linear": torch.Size([3, 2 * m]), "conv": torch.Size([2, 2 * m, 2, 2])}
    scores = [score.round() if ties else score for score in randn(shapes, seed)]
    rule = NM(shapes, n, m)
    masks = follow(rule, scores)
    for score, mask in zip(scores, masks, strict=True):
        ranked, kept = (tensor.movedim(1, -1).reshape(-1, m) for tensor in (score, mask))
        for group, found in zip(ranked, kept, strict=True):
            assert torch.equal(found, sorted_top([group], n)[0])


def test_patterns_that_do_not_fit_are_named() -> None:
    shapes = {"fc1.weight": torch.Size([300, 784]), "fc2.weight": torch.Size([100, 300])}
    with pytest.raises(ConfigError, match=r"got '2:8', expected an M that divides the 300 inputs of 'fc2\.weight'"):
        NM(shapes, 2, 8)
    for n, m in ((0, 4), (5, 4)):
        with pytest.raises(ConfigError, match="0 < N <= M"):
            NM(shapes, n, m)
