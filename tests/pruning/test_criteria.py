"""Criteria are pure functions of the weights and a generator, named in conf/criterion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lottery.data.dataset import Batch
from lottery.pruning.criteria import lamp, magnitude, random
from lottery.pruning.prune import prune, prune_to
from lottery.pruning.scoring import Scoring
from lottery.ticket import Mask

CONF = Path(__file__).parents[2] / "conf" / "criterion"


def network() -> nn.Module:
    raise AssertionError("this criterion needs no network")


def sample(per_class: int) -> Batch:
    raise AssertionError("this criterion needs no data")


def scoring(seed: int = 0) -> Scoring:
    generator = torch.Generator().manual_seed(7)
    return of({"a": torch.randn(60, 50, generator=generator), "b": torch.randn(500, generator=generator)}, seed)


def of(weights: dict[str, Tensor], seed: int = 0) -> Scoring:
    mask = Mask.ones({name: weight.shape for name, weight in weights.items()})
    return Scoring(weights, mask, torch.Generator().manual_seed(seed), network, sample, (1,))


def test_magnitude_is_the_absolute_value() -> None:
    at = scoring()
    scores = magnitude(at)
    assert all(torch.equal(scores[name], weight.abs()) for name, weight in at.weights.items())
    pruned = prune(at.mask, scores, 0.5, scope="layer")
    assert all(at.weights[n][pruned[n]].abs().min() >= at.weights[n][~pruned[n]].abs().max() for n in pruned)


def test_random_follows_the_generator_alone() -> None:
    """T0.5 and T3.8: one seed, one mask; another seed, another mask that overlaps no more than by chance."""
    masks = [prune(scoring(seed).mask, random(scoring(seed)), 0.8) for seed in (1, 1, 2)]
    assert masks[0] == masks[1]
    assert masks[0] != masks[2]
    common = int((masks[0]["a"] & masks[2]["a"]).sum())
    expected = masks[0].layer_kept["a"] * masks[2].layer_density["a"]
    assert abs(common - expected) < 4 * (3000 * 0.2 * 0.2 * 0.8 * 0.8) ** 0.5  # hypergeometric, 4 sigma


def test_random_ignores_the_weights() -> None:
    at = scoring(3)
    zeros = of({n: torch.zeros_like(w) for n, w in at.weights.items()}, 3)
    assert all(torch.equal(a, b) for a, b in zip(random(at).values(), random(zeros).values(), strict=True))


def test_lamp_by_hand() -> None:
    """The example of Lee et al. 2021's formula: 1 / (1 + 4 + 9), 4 / (4 + 9), 9 / 9; signs and places do not matter."""
    scores = lamp(of({"a": torch.tensor([[-2.0, 3.0, 1.0]])}))
    assert scores["a"].tolist() == [[4 / 13, 1.0, 1 / 14]]


layers = st.lists(st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(deadline=None, max_examples=80)
@given(layers, st.floats(0.01, 1), st.data())
def test_lamp_has_the_properties_of_the_paper(values: list[list[float]], density: float, data: st.DataObject) -> None:
    """Order inside a layer is that of |w|, the largest scores 1, scaling changes nothing, no layer is emptied."""
    weights = {f"l{i}": torch.tensor(layer) for i, layer in enumerate(values)}
    scores = lamp(of(weights))
    for name, weight in weights.items():
        by_score, by_size = scores[name].argsort(stable=True), weight.abs().argsort(stable=True)
        assert torch.equal(weight.abs()[by_score], weight.abs()[by_size])
        assert scores[name].max() == (1.0 if weight.any() else 0.0)
        assert ((scores[name] >= 0) & (scores[name] <= 1)).all()
    factors = {name: 2.0 ** data.draw(st.integers(-20, 20)) for name in weights}
    scaled = lamp(of({name: weight * factors[name] for name, weight in weights.items()}))
    assert all(torch.equal(scaled[name], scores[name]) for name in weights)
    pruned = prune_to(of(weights).mask, scores, density)
    if pruned.kept >= len(weights):
        assert not [name for name in pruned.collapsed if weights[name].any()]


def test_lamp_leaves_out_what_is_pruned() -> None:
    at = scoring()
    pruned = prune(at.mask, magnitude(at), 0.7)
    scores = lamp(replace(at, mask=pruned))
    for name, kept in pruned.items():
        alone = lamp(of({name: at.weights[name][kept]}))[name]
        assert torch.equal(scores[name][kept], alone)
        assert not scores[name][~kept].any()


def test_lamp_keeps_the_digits_of_small_weights() -> None:
    """Beside 10⁶ weights of 1 the sum over smaller ones must not be a difference of large sums."""
    small = torch.tensor([1e-9, 2e-9, 3e-9])
    scores = lamp(of({"a": torch.cat((torch.ones(1_000_000), small))}))["a"]
    exact = small.double().square() / 1_000_000
    assert torch.allclose(scores[-3:], exact, rtol=1e-12, atol=0)


CRITERIA = {"magnitude": magnitude, "random": random, "lamp": lamp}


@pytest.mark.parametrize("name", CRITERIA)
def test_config_gives_the_criterion(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        criterion = instantiate(compose(name))
    expected = CRITERIA[name](scoring(5))
    assert all(torch.equal(score, expected[n]) for n, score in criterion(scoring(5)).items())
