"""Criteria are pure functions of the weights and a generator, named in conf/criterion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lottery.pruning.criteria import magnitude, random
from lottery.pruning.prune import prune
from lottery.pruning.scoring import Scoring
from lottery.ticket import Mask

CONF = Path(__file__).parents[2] / "conf" / "criterion"


def scoring(seed: int = 0) -> Scoring:
    generator = torch.Generator().manual_seed(7)
    weights = {"a": torch.randn(60, 50, generator=generator), "b": torch.randn(500, generator=generator)}
    mask = Mask.ones({name: weight.shape for name, weight in weights.items()})
    return Scoring(weights, mask, torch.Generator().manual_seed(seed))


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
    zeros = Scoring({n: torch.zeros_like(w) for n, w in at.weights.items()}, at.mask, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(random(at).values(), random(zeros).values(), strict=True))


@pytest.mark.parametrize("name", ["magnitude", "random"])
def test_config_gives_the_criterion(name: str) -> None:
    criterion = instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    expected = {"magnitude": magnitude, "random": random}[name](scoring(5))
    assert all(torch.equal(score, expected[n]) for n, score in criterion(scoring(5)).items())
