"""The control mask: the ticket's counts layer by layer, at places that owe nothing to the ticket."""

from __future__ import annotations

import math

import torch

from lottery.pruning.controls import shuffled
from lottery.pruning.prune import prune
from lottery.ticket import Mask


def ticket_mask() -> Mask:
    shapes = {"a": torch.Size((100, 80)), "b": torch.Size((80, 20)), "c": torch.Size((20, 10))}
    generator = torch.Generator().manual_seed(0)
    # Sorted scores: the ticket's mask is a block, far from a uniform one.
    scores = {n: torch.randn(s, generator=generator).abs().view(-1).sort().values.view(s) for n, s in shapes.items()}
    return prune(Mask.ones(shapes), scores, 0.7, scope="layer", rates={"c": 0.4})


def test_layer_counts_are_equal() -> None:
    mask = ticket_mask()
    for seed in range(5):
        control = shuffled(mask, seed)
        assert control.layer_kept == mask.layer_kept
        assert control.shapes == mask.shapes
        assert control != mask


def test_overlap_is_that_of_chance() -> None:
    """T1.7: the number of common weights is hypergeometric, within 4 sigma in every layer, for ten seeds."""
    mask = ticket_mask()
    for seed in range(10):
        control = shuffled(mask, seed)
        for name, density in mask.layer_density.items():
            n, kept = mask.shapes[name].numel(), mask.layer_kept[name]
            sigma = math.sqrt(kept * density * (1 - density) * (n - kept) / (n - 1))
            assert abs(int((mask[name] & control[name]).sum()) - kept * density) < 4 * sigma


def test_every_position_is_as_likely() -> None:
    """Over 2000 seeds each of 10 positions is kept 3 times in 10, within 4 sigma, though the ticket keeps a block."""
    mask = Mask({"w": torch.arange(10) < 3})
    kept = torch.stack([shuffled(mask, seed)["w"] for seed in range(2000)]).sum(0)
    assert torch.all((kept - 600).abs() < 4 * math.sqrt(2000 * 0.3 * 0.7))


def test_one_seed_one_mask() -> None:
    """T0.5, and layers of one shape get different permutations."""
    mask = ticket_mask()
    assert shuffled(mask, 3) == shuffled(mask, 3)
    assert shuffled(mask, 3) != shuffled(mask, 4)
    twins = shuffled(Mask({name: torch.arange(1000) < 300 for name in ("a", "b")}), 0)
    assert not torch.equal(twins["a"], twins["b"])


def test_empty_and_full_layers_stay() -> None:
    mask = Mask({"empty": torch.zeros(9, dtype=torch.bool), "full": torch.ones(9, dtype=torch.bool)})
    assert shuffled(mask, 0) == mask
