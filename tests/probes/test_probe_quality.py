"""Likelihood, Brier score and calibration against closed forms and against torchmetrics (docs/methods/random.md)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from lottery.errors import ConfigError
from lottery.probes.quality import Quality, calibration, quality, tally


def of_probabilities(probabilities: Tensor, labels: Tensor, bins: int = 15, pieces: int = 1) -> dict:
    scores = probabilities.double().log()
    return quality(zip(scores.tensor_split(pieces), labels.tensor_split(pieces), strict=True), bins)


def two_classes(confidences: list[float], correct: list[bool]) -> tuple[Tensor, Tensor]:
    """Class 0 is guessed with these confidences (> 1/2), and it is or is not the right one."""
    first = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([first, 1 - first], 1), torch.tensor([0 if right else 1 for right in correct])


def test_a_case_computed_by_hand() -> None:
    """Four bins: (1/2, 3/4] holds .6 (right), .7 (wrong) and .75 (right); (3/4, 1] holds .8 (wrong) and 1 (right)."""
    found = of_probabilities(*two_classes([0.6, 0.8, 0.7, 0.75, 1.0], [True, False, False, True, True]), bins=4)
    assert found["reliability_count"] == [0, 0, 3, 2]
    assert found["reliability_confidence"] == [None, None, pytest.approx(2.05 / 3), pytest.approx(0.9)]
    assert found["reliability_accuracy"] == [None, None, pytest.approx(2 / 3), pytest.approx(0.5)]
    assert found["ece"] == pytest.approx(3 / 5 * (2.05 / 3 - 2 / 3) + 2 / 5 * (0.9 - 0.5))
    assert found["nll"] == pytest.approx(-math.log(0.6 * 0.2 * 0.3 * 0.75 * 1.0) / 5)
    assert found["brier"] == pytest.approx(2 * (0.4**2 + 0.8**2 + 0.7**2 + 0.25**2 + 0) / 5)


def test_a_calibrated_predictor_has_no_error() -> None:
    """Of those it is c sure of, exactly the share c is right: c = .6, .8, .9, ten times each."""
    sure = [c for c in (0.6, 0.8, 0.9) for _ in range(10)]
    right = [i < round(10 * c) for c in (0.6, 0.8, 0.9) for i in range(10)]
    assert of_probabilities(*two_classes(sure, right))["ece"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_constant_predictor(classes: int) -> None:
    """The uniform guess on balanced classes: NLL log K, Brier 1 - 1/K, and calibrated: right 1/K of the time."""
    labels = torch.arange(3 * classes) % classes
    found = of_probabilities(torch.full((3 * classes, classes), 1 / classes), labels)
    assert found["nll"] == pytest.approx(math.log(classes))
    assert found["brier"] == pytest.approx(1 - 1 / classes)
    assert found["ece"] == pytest.approx(0.0, abs=1e-7)
    assert sum(count > 0 for count in found["reliability_count"]) == 1


def test_sure_and_wrong_is_as_bad_as_it_gets() -> None:
    scores = torch.tensor([[50.0, 0.0]] * 6, dtype=torch.float64)
    found = quality([(scores, torch.tensor([1, 1, 1, 0, 0, 0]))], 15)
    assert found["ece"] == pytest.approx(0.5)
    assert found["brier"] == pytest.approx(1.0)
    assert found["nll"] == pytest.approx(25.0)


def random_predictions(scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = scale * torch.randn(1000, 10, generator=generator, dtype=torch.float64)
    return scores, torch.randint(10, (1000,), generator=generator)


def test_equal_to_torchmetrics_below_certainty() -> None:
    scores, labels = random_predictions(3.0)
    expected = multiclass_calibration_error(scores.softmax(1), labels, num_classes=10, n_bins=15, norm="l1")
    assert quality([(scores, labels)], 15)["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_certainty_is_no_bin_of_its_own() -> None:
    """Exactly 1 and wrong beside .95 and right: one bin of accuracy 1/2 and confidence .975.

    torchmetrics keeps the two apart: (|0 - 1| + |1 - .95|)/2.
    """
    probabilities, labels = two_classes([1.0, 0.95], [False, True])
    tallied = tally(probabilities[:, 0], labels == 0, 15)
    assert calibration(tallied)["ece"] == pytest.approx(0.975 - 0.5)
    theirs = multiclass_calibration_error(probabilities, labels, num_classes=2, n_bins=15, norm="l1")
    assert float(theirs) == pytest.approx((1 + 0.05) / 2)


def test_batches_change_nothing_and_bins_only_calibration() -> None:
    scores, labels = random_predictions(2.0)
    whole = quality([(scores, labels)], 15)
    pieces = quality(zip(scores.split(7), labels.split(7), strict=True), 15)
    for name in ("nll", "brier", "ece"):
        assert pieces[name] == pytest.approx(whole[name], rel=1e-12)
    assert pieces["reliability_count"] == whole["reliability_count"]
    assert sum(whole["reliability_count"]) == 1000
    finer = quality([(scores, labels)], 30)
    assert (finer["nll"], finer["brier"]) == (whole["nll"], whole["brier"])
    assert finer["ece"] >= whole["ece"] - 1e-12  # a bin's error is at most the sum over its halves


def test_no_bins() -> None:
    with pytest.raises(ConfigError, match=r"^bins: got 0, expected a number of bins ≥ 1"):
        Quality(bins=0)
