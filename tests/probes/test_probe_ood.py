"""The area under the ROC curve of confidences, and which data sets are refused as out of distribution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lottery.errors import ConfigError
from lottery.probes.ood import OutOfDistribution, auc, confidence


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_separable_sets_and_identical_ones() -> None:
    assert auc(scores(0.9, 0.8, 0.95), scores(0.1, 0.5)) == 1.0
    assert auc(scores(0.1, 0.5), scores(0.9, 0.8, 0.95)) == 0.0
    assert auc(scores(0.3, 0.6, 0.9), scores(0.3, 0.6, 0.9)) == pytest.approx(0.5)
    assert auc(scores(0.7, 0.7), scores(0.7)) == 0.5


def test_it_is_the_share_of_ordered_pairs_with_half_the_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = (torch.rand(300, generator=generator, dtype=torch.float64) * 20).round() / 20
    theirs = (torch.rand(200, generator=generator, dtype=torch.float64).square() * 20).round() / 20
    pairs = ours[:, None] - theirs
    expected = (pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean()
    assert auc(ours, theirs) == pytest.approx(float(expected), abs=1e-6)


def test_confidences_close_to_one_are_told_apart() -> None:
    """Margins of 20 and 21 are both exactly 1 after a softmax in float32, and would be a tie."""
    network = nn.Identity()
    surer, sure = torch.tensor([[21.0, 0.0]] * 4), torch.tensor([[20.0, 0.0]] * 4)
    labels = torch.zeros(4, dtype=torch.long)
    assert torch.equal(surer.softmax(1).amax(1), sure.softmax(1).amax(1))
    assert auc(confidence(network, [(surer, labels)]), confidence(network, [(sure, labels)])) == 1.0


def test_a_large_set_keeps_its_precision() -> None:
    """40 000 against 40 000: uniform on [.2, 1] against uniform on [0, .8]: 1 - (.6/.8)²/2 by area, evenly spaced."""
    even = (torch.arange(40000, dtype=torch.float64) + 0.5) / 40000
    assert auc(0.2 + 0.8 * even, 0.8 * even) == pytest.approx(1 - 0.75**2 / 2, abs=1e-4)


@pytest.mark.parametrize("other", [{}, {"mnist": None}])
def test_nothing_to_compare_with(other: dict) -> None:
    with pytest.raises(ConfigError, match=r"^other: got .*expected data sets by name, such as from probes=ood_mnist"):
        OutOfDistribution(other)
