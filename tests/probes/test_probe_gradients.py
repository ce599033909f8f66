"""The gradient's norm against finite differences, and against plain autograd on the whole sample."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_networks import Partial, convolutional
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lottery.probes.gradients import gradient_norm
from lottery.ticket import Mask

SHAPE = (1, 8, 8)


@pytest.fixture
def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(20, *SHAPE, generator=generator), torch.arange(20) % 4


def masked(network: nn.Module, names: list[str], share: float = 0.5) -> Mask:
    """A random mask of these weights; what it prunes is set to zero in the network."""
    generator = torch.Generator().manual_seed(1)
    weights = dict(network.named_parameters())
    mask = Mask({name: torch.rand(weights[name].shape, generator=generator) < share for name in names})
    with torch.no_grad():
        for name, kept in mask.items():
            weights[name].mul_(kept)
    return mask


@pytest.fixture
def linear() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def test_equal_to_finite_differences(linear: nn.Sequential, sample: tuple[Tensor, Tensor]) -> None:
    images, labels = sample[0].double(), sample[1]
    mask = masked(linear, ["1.weight", "3.weight"])
    found = gradient_norm(copy.deepcopy(linear), mask, (images, labels), size=7, seed=0)
    squares, step = 0.0, 1e-5
    weights = dict(linear.named_parameters())
    with torch.no_grad():
        for name, kept in mask.items():
            for index in kept.nonzero().tolist():
                ends = []
                for sign in (1, -1):
                    weights[name][tuple(index)] += sign * step
                    ends.append(float(cross_entropy(linear(images), labels)))
                    weights[name][tuple(index)] -= sign * step
                squares += ((ends[0] - ends[1]) / (2 * step)) ** 2
    assert found == pytest.approx(squares**0.5, rel=1e-6)


def test_pieces_are_a_matter_of_memory_where_nothing_is_normalised(
    linear: nn.Sequential, sample: tuple[Tensor, Tensor]
) -> None:
    mask = masked(linear, ["1.weight", "3.weight"])
    batch = sample[0].double(), sample[1]
    found = [gradient_norm(copy.deepcopy(linear), mask, batch, size, 0) for size in (1, 3, 20, 1000)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-12)


def test_batch_statistics_are_used_and_only_kept_weights_count(sample: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    network = convolutional(shape=SHAPE, classes=4, dropout=0.0)
    with torch.no_grad():
        network.bn1.running_mean.fill_(7.0)  # would be seen in evaluation mode
    mask = masked(network, ["conv1.weight", "conv2.weight", "fc.weight"])
    reference = copy.deepcopy(network).train()
    cross_entropy(reference(sample[0]), sample[1]).backward()
    weights = dict(reference.named_parameters())
    expected = torch.cat([weights[name].grad[kept] for name, kept in mask.items()]).norm()
    found = gradient_norm(network.eval(), mask, sample, size=20, seed=0)
    assert found == pytest.approx(float(expected), rel=1e-6)
    dense = Mask({name: torch.ones_like(kept) for name, kept in mask.items()})
    assert gradient_norm(network, dense, sample, size=20, seed=0) > found
    assert gradient_norm(network, Mask({n: torch.zeros_like(k) for n, k in mask.items()}), sample, 20, 0) == 0.0


def test_dropout_noise_comes_from_the_seed_alone(sample: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    network = convolutional(shape=SHAPE, classes=4, dropout=0.5)
    mask = masked(network, ["conv1.weight", "fc.weight"])
    before = torch.get_rng_state()
    found = [gradient_norm(copy.deepcopy(network), mask, sample, 20, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1] != found[2]


def test_frozen_and_unused_weights(sample: tuple[Tensor, Tensor]) -> None:
    """A frozen layer has a gradient all the same; an unused one has none."""
    torch.manual_seed(0)
    network = Partial(64, 4)
    mask = masked(network, ["frozen.weight", "unused.weight", "output.weight"], share=1.1)
    alone = [gradient_norm(copy.deepcopy(network), Mask({name: mask[name]}), sample, 20, 0) for name in mask]
    assert alone[0] > 0
    assert alone[1] == 0.0
    assert gradient_norm(network, mask, sample, 20, 0) == pytest.approx(sum(norm**2 for norm in alone) ** 0.5, rel=1e-6)
