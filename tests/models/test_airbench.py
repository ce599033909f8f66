"""airbench94's network: a first layer from training images, which nothing trains, and fast shifts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lottery.models.airbench import EPS, Norm, airbench
from lottery.pruning.prunable import prunable


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth images, as photographs are: neighbouring pixels are alike."""
    coarse = torch.randn(64, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (20, 20), mode="bilinear") + 0.05 * coarse.mean()


def test_the_first_layer_whitens_the_patches_of_the_images(images: torch.Tensor) -> None:
    """Its first half has second moments diag(v / (v + ε)), v falling; its second half is the first, negated."""
    network = airbench(shape=(3, 20, 20), classes=10, width=4)
    network.start_from_(images)
    found = network.whiten(images).double().transpose(0, 1).flatten(1)
    half = len(found) // 2
    assert torch.equal(network.whiten.weight[:half], -network.whiten.weight[half:])
    moments = found[:half] @ found[:half].T / found.shape[1]
    kept = moments.diagonal()
    torch.testing.assert_close(moments, kept.diag(), rtol=0, atol=1e-5)
    variances = EPS * kept / (1 - kept)
    assert variances[0] > 0.1
    assert (variances.diff() <= 1e-6).all()
    again = airbench(shape=(3, 20, 20), classes=10, width=4)
    again.start_from_(images)
    assert torch.equal(network.whiten.weight, again.whiten.weight)


def test_a_shift_moves_64_times_as_fast_and_decays_as_all_else() -> None:
    """Against plain batch normalisation with airbench's parameter group of biases: lr x 64, decay / 64."""
    torch.manual_seed(0)
    ours, theirs = Norm(5).double(), torch.nn.BatchNorm2d(5, eps=1e-12, momentum=0.4).double()
    theirs.weight.requires_grad_(False)
    nesterov = {"momentum": 0.85, "nesterov": True}
    one = torch.optim.SGD([ours.bias], lr=0.01, weight_decay=0.1, **nesterov)
    other = torch.optim.SGD([theirs.bias], lr=0.64, weight_decay=0.1 / 64, **nesterov)
    for _ in range(5):
        x, target = torch.randn(7, 5, 3, 3, dtype=torch.float64), torch.randn(7, 5, 3, 3, dtype=torch.float64)
        for norm, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            (norm(x) - target).square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(8 * ours.bias, theirs.bias)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours.bias.abs().max() > 0


def test_filters_pass_their_inputs_on_at_the_start() -> None:
    block = airbench(shape=(3, 20, 20), classes=10, width=32).blocks[0]
    x = torch.randn(2, 24, 9, 9)
    torch.testing.assert_close(block.conv1(x)[:, :24], x)
    assert "whiten.weight" in prunable(airbench(shape=(3, 20, 20), classes=10))
    assert "whiten.weight" not in prunable(airbench(shape=(3, 20, 20), classes=10), ["whiten"])
