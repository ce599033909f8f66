"""Short restriction: how many weights change places, which, and that ρ = 1 is the plain top of the scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lottery.errors import ConfigError, LotteryError
from lottery.search.initial import two_level
from lottery.search.rules import RESTRICTIONS, Swaps, schedule
from lottery.search.top import Top

patient = settings(deadline=None)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Tensor, Tensor, float, float]:
    """Scores, with ties or without; a mask that is not their top; a constant ρ and a progress."""
    size = draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scores = torch.randn(size, generator=generator)
    if draw(st.booleans()):
        scores = scores.round()
    mask = torch.zeros(size)
    mask[torch.randperm(size, generator=generator)[: draw(st.integers(0, size))]] = 1
    return scores, mask, draw(st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])), draw(st.floats(0, 1))


def as_written(scores: Tensor, mask: Tensor, share: float) -> tuple[list[bool], int]:
    """The mask after the swap of docs/methods/jackpots.md over the order (score, index), and c."""
    ranked = sorted(range(len(scores)), key=lambda i: (scores[i].item(), i))
    place = {i: at for at, i in enumerate(ranked)}
    kept = mask.bool().tolist()
    pruned = len(kept) - sum(kept)
    comes = [i for i in reversed(ranked) if not kept[i] and place[i] >= pruned]
    goes = [i for i in ranked if kept[i] and place[i] < pruned]
    assert len(comes) == len(goes)
    for come, go in list(zip(comes, goes, strict=True))[: math.ceil(len(comes) * share)]:
        kept[come], kept[go] = True, False
    return kept, len(comes)


@patient
@given(situations())
def test_highest_come_in_and_lowest_go_out(situation: tuple[Tensor, Tensor, float, float]) -> None:
    scores, mask, share, progress = situation
    expected, c = as_written(scores, mask, share)
    after = mask.clone()
    Swaps([int(mask.sum())], share)([scores], [after], progress)
    assert after.bool().tolist() == expected
    assert after.sum() == mask.sum()
    assert int((after > mask).sum()) <= math.ceil(share * c)


@patient
@given(situations())
def test_without_restriction_the_top_stays(situation: tuple[Tensor, Tensor, float, float]) -> None:
    scores, mask, _, progress = situation
    count, top, ours = int(mask.sum()), mask.clone(), mask.clone()
    Top([count])([scores], [top], progress)
    Swaps([count], "none")([scores], [ours], progress)
    assert torch.equal(ours, top)
    threshold = scores.sort().values[len(scores) - count - 1] if count < len(scores) else -math.inf
    comes, goes = (scores > threshold) & (mask == 0), (scores <= threshold) & (mask == 1)
    if comes.sum() == goes.sum() and count == (scores > threshold).sum():  # sizes agree as the strict sets have it
        assert torch.equal(ours.bool(), scores > threshold)


@patient
@given(situations())
def test_no_share_freezes_the_mask(situation: tuple[Tensor, Tensor, float, float]) -> None:
    scores, mask, _, _ = situation
    for rule in (Swaps([int(mask.sum())], 0), Swaps([int(mask.sum())], "quartic")):
        after = mask.clone()
        rule([scores], [after], 1.0)
        assert torch.equal(after, mask)


def test_counts_stay_over_a_search_of_several_tensors() -> None:
    """Scores that wander; each tensor keeps its count at every step, in both memory layouts alike."""
    generator = torch.Generator().manual_seed(0)
    shapes, counts = [(8, 4, 3, 3), (10, 8), (4, 8, 1, 1)], [60, 8, 31]
    scores = [torch.randn(shape, generator=generator) for shape in shapes]
    rule, masks = Swaps(counts, "cosine"), [torch.empty(shape) for shape in shapes]
    Top(counts)(scores, masks, 0.0)
    other = Swaps(counts, "cosine")
    laid = [mask.to(memory_format=torch.channels_last) if mask.dim() == 4 else mask.clone() for mask in masks]
    changed = 0
    for step in range(40):
        for score in scores:
            score += 0.1 * torch.randn(score.shape, generator=generator)
        before = [mask.clone() for mask in masks]
        rule(scores, masks, step / 40)
        other(scores, laid, step / 40)
        assert [int(mask.sum()) for mask in masks] == counts
        assert all(torch.equal(mask, same) for mask, same in zip(masks, laid, strict=True))
        changed += sum(int((mask > old).sum()) for mask, old in zip(masks, before, strict=True))
    assert changed > 20


def test_two_levels_give_back_the_mask_they_were_made_from() -> None:
    """T5.3: the first mask is the magnitude mask, and with untouched scores no rule leaves it, ties and all."""
    weights = [torch.randn(20, 30, generator=torch.Generator().manual_seed(1)), torch.zeros(7, 5)]
    masks = [torch.empty_like(weight) for weight in weights]
    Top([90, 4])([weight.abs() for weight in weights], masks, 0.0)
    scores = two_level(weights, masks)
    for restriction in ("none", "quartic", 0.5):
        after = [mask.clone() for mask in masks]
        Swaps([90, 4], restriction)(scores, after, 0.3)
        assert all(torch.equal(a, mask) for a, mask in zip(after, masks, strict=True))


def test_schedules() -> None:
    for name, ends in {"none": (1, 1), "quartic": (1, 0), "cosine": (1, 0)}.items():
        assert (RESTRICTIONS[name](0.0), RESTRICTIONS[name](1.0)) == ends
        shares = [RESTRICTIONS[name](step / 50) for step in range(51)]
        assert shares == sorted(shares, reverse=True)
    assert schedule("quartic")(0.5) == 1 / 16
    assert schedule("cosine")(0.5) == pytest.approx(0.5)
    assert schedule(0.25)(0.9) == 0.25
    assert schedule(1)(0.9) == 1


@pytest.mark.parametrize("wrong", ["quadratic", "", -0.1, 1.5, math.nan, True, None])
def test_unknown_restrictions_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"method\.short_restriction: got .* expected one of none, quartic, cosine"):
        Swaps([1], wrong)  # type: ignore[arg-type]


def test_a_mask_of_another_count_is_refused() -> None:
    with pytest.raises(LotteryError, match="keeps 3 weights, expected 2"):
        Swaps([2], 0.5)([torch.arange(6.0)], [torch.tensor([1.0, 1, 1, 0, 0, 0])], 0.0)
