"""Pruning: exact counts, nested masks, the stable order of ties, and the rules of published code bases."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lottery.errors import ConfigError, LotteryError
from lottery.pruning.prune import CUTOFFS, highest, prune, prune_to, prune_to_counts
from lottery.ticket import Mask

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def naive_prune(mask: Mask, scores: dict[str, Tensor], rate: float, scope: str) -> dict[str, list[bool]]:
    """The rule of the framework with a full stable sort of Python tuples."""
    kept = {name: bits.flatten().tolist() for name, bits in mask.items()}
    for group in [list(mask)] if scope == "global" else [[name] for name in mask]:
        order = [
            (scores[name].flatten()[i].item(), at, i)
            for at, name in enumerate(group)
            for i in range(len(kept[name]))
            if kept[name][i]
        ]
        for _, at, i in sorted(order)[: round(rate * len(order))]:
            kept[group[at]][i] = False
    return kept


@st.composite
def networks(draw: st.DrawFn) -> tuple[Mask, dict[str, Tensor]]:
    """A few small tensors, some already pruned, with scores from few values so that most of them tie."""
    bits, scores = {}, {}
    for layer in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
        size = math.prod(shape)
        kept = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        few = st.sampled_from([0.0, -0.0, 0.5, 1.0, -2.0]) | st.floats(-10, 10, width=16)
        values = draw(st.lists(few, min_size=size, max_size=size))
        dtype = draw(st.sampled_from(DTYPES))
        bits[f"l{layer}.weight"] = torch.tensor(kept).view(shape)
        scores[f"l{layer}.weight"] = torch.tensor(values, dtype=dtype).view(shape)
    return Mask(bits), scores


fractions = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0])
scopes = st.sampled_from(["global", "layer"])
patient = settings(deadline=None)  # a shared machine may stall


@patient
@given(networks(), fractions, scopes)
def test_equals_a_full_stable_sort(network: tuple[Mask, dict[str, Tensor]], rate: float, scope: str) -> None:
    mask, scores = network
    pruned = prune(mask, scores, rate, scope=scope)  # type: ignore[arg-type]
    assert {name: bits.flatten().tolist() for name, bits in pruned.items()} == naive_prune(mask, scores, rate, scope)


@patient
@given(networks(), fractions, scopes)
def test_count_is_exact_and_masks_are_nested(network: tuple[Mask, dict[str, Tensor]], rate: float, scope: str) -> None:
    """T0.1 and T0.2 (T1.1)."""
    mask, scores = network
    pruned = prune(mask, scores, rate, scope=scope)  # type: ignore[arg-type]
    assert pruned.issubset(mask)
    if scope == "global":
        assert pruned.kept == mask.kept - round(rate * mask.kept)
    else:
        assert pruned.layer_kept == {name: kept - round(rate * kept) for name, kept in mask.layer_kept.items()}


@patient
@given(networks(), fractions)
def test_every_rule_gives_a_subset(network: tuple[Mask, dict[str, Tensor]], rate: float) -> None:
    mask, scores = network
    for count in CUTOFFS:
        pruned = prune(mask, scores, rate, count=count, ignored=3)
        assert pruned.issubset(mask)
        if rate == 0:
            assert pruned == mask


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_kept_scores_bound_pruned_ones(scope: str) -> None:
    """T1.4, over three rounds: among the weights alive before, the smallest kept is at least the largest pruned."""
    generator = torch.Generator().manual_seed(0)
    mask = Mask.ones({"a.weight": torch.Size((40, 30)), "b.weight": torch.Size((30, 7))})
    for _ in range(3):
        weights = {name: torch.randn(shape, generator=generator).abs() for name, shape in mask.shapes.items()}
        pruned = prune(mask, weights, 0.2, scope=scope)  # type: ignore[arg-type]
        gone = {name: weights[name][mask[name] & ~pruned[name]] for name in mask}
        left = {name: weights[name][pruned[name]] for name in mask}
        if scope == "global":
            assert torch.cat([*left.values()]).min() >= torch.cat([*gone.values()]).max()
        else:
            assert all(left[name].min() >= gone[name].max() for name in mask)
        mask = pruned


def test_ties_en_masse_go_in_order() -> None:
    """Signed-constant init: |w| is one value for each layer, and a value cutoff would prune all of it or nothing."""
    mask = Mask.ones({"a": torch.Size((10, 10)), "b": torch.Size((10, 10))})
    sign = torch.randn(10, 10, generator=torch.Generator().manual_seed(0)).sign()
    scores = {"a": (0.1 * sign).abs(), "b": (0.1 * sign).abs()}
    pruned = prune(mask, scores, 0.65)
    assert pruned.layer_kept == {"a": 0, "b": 70}
    assert pruned["b"].view(-1).tolist() == [False] * 30 + [True] * 70
    assert pruned.collapsed == ["a"]
    assert prune(mask, scores, 0.65, scope="layer").layer_kept == {"a": 35, "b": 35}


def test_pruned_entries_never_rank() -> None:
    """Hidden values of pruned weights, NaN included, do not change what goes next."""
    shape = torch.Size((50,))
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    mask = prune(Mask.ones({"w": shape}), {"w": scores}, 0.5)
    for hidden in (0.0, -1e6, 1e6, math.nan, math.inf):
        assert prune(mask, {"w": torch.where(mask["w"], scores, hidden)}, 0.2) == prune(mask, {"w": scores}, 0.2)


def test_repeats_bit_for_bit_and_leaves_its_inputs() -> None:
    """T0.5, and value semantics: the mask and the scores are as before."""
    mask = Mask.ones({"w": torch.Size((30, 30))})
    scores = {"w": torch.randn(30, 30, generator=torch.Generator().manual_seed(1))}
    before = scores["w"].clone()
    assert prune(mask, scores, 0.3).digest == prune(mask, scores, 0.3).digest
    assert mask.kept == 900
    assert torch.equal(scores["w"], before)


def test_memory_layout_of_scores_does_not_matter() -> None:
    scores = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    mask = Mask.ones({"w": scores.shape})
    last = scores.to(memory_format=torch.channels_last)
    assert prune(mask, {"w": last}, 0.4) == prune(mask, {"w": scores}, 0.4)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rate_zero_and_one(scope: str) -> None:
    mask = Mask.ones({"a": torch.Size((5,)), "b": torch.Size((7,))})
    scores = {"a": torch.rand(5), "b": torch.rand(7)}
    for count in ("exact", *CUTOFFS):
        if (count, scope) != ("openlth", "layer"):
            assert prune(mask, scores, 0, scope=scope, count=count) == mask  # type: ignore[arg-type]
    empty = prune(mask, scores, 1, scope=scope)  # type: ignore[arg-type]
    assert (empty.kept, empty.collapsed) == (0, ["a", "b"])
    assert prune(empty, scores, 0.5, scope=scope) == empty  # type: ignore[arg-type]


def test_rates_by_pattern_first_match_wins() -> None:
    shapes = {"fc1.weight": torch.Size((100,)), "fc2.weight": torch.Size((100,)), "output.weight": torch.Size((100,))}
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    rates = {"fc2": 0.5, "fc*": 0.3}
    pruned = prune(Mask.ones(shapes), scores, 0.1, rates=rates, scope="layer")
    assert list(pruned.layer_kept.values()) == [70, 50, 90]
    still = prune(Mask.ones(shapes), scores, 0.2, rates={"output.weight": 0.0}, scope="layer", count="glth")
    assert still.layer_kept["output.weight"] == 100


# How many of n distinct kept scores go at rate p: derived by hand from the papers' rules (`method.count`). Exact
# arithmetic: n = 1000, p = 1/4 (all positions whole) and n = 999 (none is).
@pytest.mark.parametrize(
    ("count", "whole", "odd"),
    [
        ("exact", 250, 250),
        ("glth", 251, 251),
        ("openlth", 261, 261),  # with 40 ignored weights: ceil(1040/4) + 1, ceil(1039/4) + 1
        ("renda", 250, 250),  # positions 249.75 and 249.5 of the sorted scores: 250 lie below
        ("synflow", 250, 249),
        ("globalmp", 249, 248),
        ("sap", 250, 249),
    ],
)
def test_rules_on_distinct_scores(count: str, whole: int, odd: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for n, gone in ((1000, whole), (999, odd)):
        scores = torch.randperm(n, generator=generator).float()
        pruned = prune(Mask.ones({"w": scores.shape}), {"w": scores}, 0.25, count=count, ignored=40)
        assert n - pruned.kept == gone
        assert scores[pruned["w"]].min() == gone  # the lowest went


def test_synflow_drops_what_its_density_leaves() -> None:
    """That code drops int((1 - density) · N), which for a density of 0.8 and N = 250 is 49: 1 - 0.8 < 0.2 in floats."""
    differ = 0
    for percent, n in itertools.product(range(5, 100, 5), (10, 100, 250, 1000, 3000, 10_000)):
        rate, density = percent / 100, (100 - percent) / 100
        scores = torch.arange(1.0, n + 1)
        pruned = prune(Mask.ones({"w": scores.shape}), {"w": scores}, rate, count="synflow")
        assert n - pruned.kept == int((1 - density) * n)
        differ += int((1 - density) * n) != int(rate * n)
    assert differ == 15  # of 114


def test_renda_is_numpys_percentile() -> None:
    scores = np.random.default_rng(0).normal(size=997)
    for rate in (0.001, 0.2, 0.5, 0.9, 1.0):
        pruned = prune(Mask.ones({"w": torch.Size((997,))}), {"w": torch.from_numpy(scores)}, rate, count="renda")
        assert np.array_equal(pruned["w"].numpy(), scores >= np.percentile(scores, 100 * rate))


def test_renda_cutoff_between_neighbouring_floats() -> None:
    """The interpolated cutoff lies above the lower of two adjacent float32 scores, which therefore goes."""
    low = np.float32(1)
    scores = torch.from_numpy(np.array([low, np.nextafter(low, np.float32(2))], dtype=np.float32))
    for rate in (0.1, 0.5, 0.9):
        pruned = prune(Mask.ones({"w": scores.shape}), {"w": scores}, rate, count="renda")
        assert pruned["w"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("count", "kept"),
    [("exact", 75), ("glth", 0), ("openlth", 0), ("synflow", 0), ("renda", 100), ("globalmp", 100), ("sap", 100)],
)
def test_rules_on_equal_scores(count: str, kept: int) -> None:
    """What each comparison does when all scores tie: <= drops everything, < nothing."""
    mask = Mask.ones({"w": torch.Size((100,))})
    assert prune(mask, {"w": torch.ones(100)}, 0.25, count=count).kept == kept


def test_synflow_drops_nothing_when_k_is_zero() -> None:
    mask = Mask.ones({"w": torch.Size((9,))})
    assert prune(mask, {"w": torch.rand(9)}, 0.1, count="synflow") == mask


@patient
@given(networks(), fractions)
def test_prune_to_hits_the_density(network: tuple[Mask, dict[str, Tensor]], part: float) -> None:
    mask, scores = network
    density = part * mask.density
    pruned = prune_to(mask, scores, density)
    assert pruned.issubset(mask)
    assert pruned.kept == round(density * mask.size)


@patient
@given(networks(), fractions)
def test_prune_to_counts_hits_the_count_of_each_layer(network: tuple[Mask, dict[str, Tensor]], part: float) -> None:
    mask, scores = network
    density = part * min(mask.layer_density.values())
    counts = {name: round(density * shape.numel()) for name, shape in mask.shapes.items()}
    pruned = prune_to_counts(mask, scores, counts)
    assert pruned.issubset(mask)
    assert pruned.layer_kept == counts


def test_prune_to_equals_prune_from_dense() -> None:
    scores = {"a": torch.rand(600), "b": torch.rand(400)}
    mask = Mask.ones({name: s.shape for name, s in scores.items()})
    assert prune_to(mask, scores, 0.2) == prune(mask, scores, 0.8)


def test_prune_to_counts_may_leave_a_layer_whole() -> None:
    scores = {"a.weight": torch.rand(600), "b.weight": torch.rand(400)}
    mask = Mask.ones({name: s.shape for name, s in scores.items()})
    pruned = prune_to_counts(mask, scores, {"a.weight": 300, "b.weight": 400})
    assert pruned.layer_kept == {"a.weight": 300, "b.weight": 400}


def test_prune_to_cannot_grow() -> None:
    scores = {"a": torch.rand(100)}
    mask = prune(Mask.ones({"a": torch.Size((100,))}), scores, 0.5)
    with pytest.raises(ConfigError, match=r"density: got 0\.6, expected at most 0\.5, what the mask keeps now"):
        prune_to(mask, scores, 0.6)
    with pytest.raises(LotteryError, match="cannot keep 60 weights of 'a', which keeps 50 now"):
        prune_to_counts(mask, scores, {"a": 60})


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_fractions_out_of_range(value: float) -> None:
    mask, scores = Mask.ones({"a": torch.Size((4,))}), {"a": torch.rand(4)}
    with pytest.raises(ConfigError, match="rate"):
        prune(mask, scores, value)
    with pytest.raises(ConfigError, match=r"rates\.a: got"):
        prune(mask, scores, 0.1, rates={"a": value}, scope="layer")
    with pytest.raises(ConfigError, match="density"):
        prune_to(mask, scores, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": {"fc": 0.2}}, "scope 'global'"),
        ({"rates": {"fx": 0.2}, "scope": "layer"}, "'fx'.*such as fc"),
        ({"scope": "local"}, "scope: got 'local'"),
        ({"count": "exakt"}, "count: got 'exakt', expected one of exact, glth"),
        ({"count": "openlth", "scope": "layer"}, "openlth"),
    ],
)
def test_contradictory_options(options: dict[str, object], message: str) -> None:
    mask, scores = Mask.ones({"fc.weight": torch.Size((4,))}), {"fc.weight": torch.rand(4)}
    with pytest.raises(ConfigError, match=message):
        prune(mask, scores, 0.2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", ["exact", "synflow"])
def test_scores_that_are_not_finite(bad: float, count: str) -> None:
    scores = {"a": torch.rand(4), "b": torch.tensor([1.0, bad, 2.0])}
    with pytest.raises(LotteryError, match="'b': 1 are not finite"):
        prune(Mask.ones({"a": torch.Size((4,)), "b": torch.Size((3,))}), scores, 0.2, count=count)


def test_scores_missing_or_misshapen() -> None:
    mask = Mask.ones({"a": torch.Size((4,)), "b": torch.Size((3,))})
    with pytest.raises(LotteryError, match="no scores for 'b'"):
        prune(mask, {"a": torch.rand(4)}, 0.2)
    with pytest.raises(LotteryError, match=r"'b': got shape \[1, 3\], expected \[3\]"):
        prune(mask, {"a": torch.rand(4), "b": torch.rand(1, 3)}, 0.2)


def test_repeated_rounds_follow_exact_arithmetic() -> None:
    """Thirty rounds of 20 %: the kept count is the integer recursion, with no drift of floating point."""
    mask = Mask.ones({"w": torch.Size((100_003,))})
    expected = 100_003
    for seed in range(30):
        scores = {"w": torch.rand(100_003, generator=torch.Generator().manual_seed(seed))}
        mask = prune(mask, scores, 0.2)
        expected -= round(Fraction(expected, 5))
        assert mask.kept == expected


@pytest.mark.slow
def test_a_network_of_25_million_weights() -> None:
    """Exact at ResNet-50's size too; the time is printed (budget: 3 s on one core)."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.Size((1000, 2500))
    scores = {f"l{i}.weight": torch.randn(shape, generator=generator).abs() for i in range(10)}
    mask = Mask.ones({name: shape for name in scores})
    started = time.perf_counter()
    pruned = prune(mask, scores, 0.2)
    print(f"\nglobal prune of 25M weights: {time.perf_counter() - started:.2f} s")
    assert pruned.kept == 20_000_000
    low, high = (torch.cat([s[m] for s, m in zip(scores.values(), masks, strict=True)]) for masks in _split(pruned))
    assert low.max() <= high.min()


def _split(mask: Mask) -> tuple[list[Tensor], list[Tensor]]:
    return [~bits for bits in mask.values()], list(mask.values())


# -- the highest of many ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 50, 10**6])
@pytest.mark.parametrize("n", [1, 37, 2_000, 12_400, 12_500, 60_000])
def test_few_of_many_are_those_that_sorting_finds(levels: int, n: int) -> None:
    """Of 100,000 values, with ties or without, however few: the highest, of equal ones the later."""
    draw = np.random.default_rng(levels + n)
    values = draw.integers(0, levels, 100_000).astype(np.float32)
    order = np.lexsort((np.arange(values.size), values))
    stay, lowest = highest(values, n)
    assert np.array_equal(np.flatnonzero(stay), np.sort(order[-n:]))
    assert lowest == values[order[-n]]


def test_few_of_many_in_order_and_infinite() -> None:
    for values in (
        np.arange(40_000.0),
        np.arange(40_000.0)[::-1].copy(),
        np.r_[np.full(39_000, -np.inf), np.ones(1000)],
    ):
        stay, lowest = highest(values, 500)
        assert lowest == np.sort(values)[-500]
        assert stay.sum() == 500
        assert values[stay].min() >= lowest


def test_a_nan_among_many_is_an_error() -> None:
    values = np.zeros(40_000, dtype=np.float32)
    values[20_001] = np.nan
    with pytest.raises(LotteryError, match="not finite"):
        highest(values, 1)
