"""The quality of a network's probabilities: likelihood, Brier score, calibration and reliability diagram."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from lottery.data.dataset import Batch
from lottery.probes.images import Options, at_a_time
from lottery.ranges import at_least, option
from lottery.stages.bench import Bench
from lottery.stages.round import Round


@dataclass(frozen=True)
class Quality(Options):
    """`nll` (nats, mean), `brier` (in [0, 2]) and `ece` (in [0, 1]) of the trained network on the test split.

    Measured without autocast: with `train.precision=bf16`, `nll` and `test_loss` differ by rounding.

    The `evaluate` stage's result.json has the reliability diagram too: `reliability_confidence`, `reliability_accuracy`
    (null where a bin is empty) and `reliability_count`, a list each of `bins` numbers.
    """

    bins: int = option(15, at_least(1, "a number of bins ≥ 1, such as 15"))

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            network = lab.trained_network(round.trained)
            batches = lab.watched(lab.data.batches("test", lab.config.train.eval_batch_size))
            return quality(logits(network, batches), self.bins)

        inputs = {"version": 1, "state": round.trained.state.digest, "bins": self.bins, **at_a_time(lab)}
        found = lab.evaluated("quality", inputs, compute)
        return {name: found[name] for name in ("nll", "ece", "brier")}


@torch.no_grad()
def logits(network: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield logits float64 [B, classes] and labels int64 [B] of each batch, on the CPU.

    A softmax in float32 would be exactly 1 from a margin of 17 on, which networks exceed.
    """
    for images, labels in batches:
        yield network(images).float().cpu().double(), labels.cpu()


def quality(predictions: Iterable[Batch], bins: int) -> dict[str, Any]:
    """Return mean negative log-likelihood, mean Brier score (Brier 1950), and calibration from logits and labels."""
    nll = brier = torch.zeros((), dtype=torch.float64)
    tallied = torch.zeros(3, bins, dtype=torch.float64)
    for scores, labels in predictions:
        probabilities = scores.softmax(1)
        nll = nll + cross_entropy(scores, labels, reduction="sum")
        brier = brier + (probabilities - one_hot(labels, scores.shape[1])).square().sum()
        confidence, guess = probabilities.max(1)
        tallied += tally(confidence, guess == labels, bins)
    count = tallied[0].sum()
    return {"nll": float(nll / count), "brier": float(brier / count), **calibration(tallied)}


def tally(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    """Return images, summed confidence and correct answers by bin of confidence, float64 [3, bins].

    Bin b of B holds the confidences in (b/B, (b+1)/B], b = 0 … B-1 (Guo et al. 2017, section 2).
    """
    index = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    weights = (torch.ones_like(confidence), confidence, correct)
    return torch.stack([torch.bincount(index, weight.double(), minlength=bins) for weight in weights])


def calibration(tallied: Tensor) -> dict[str, Any]:
    """Return the bins and the calibration error Σ_b |B_b|/n · |accuracy(B_b) - confidence(B_b)| (Guo et al. 2017).

    torchmetrics' `multiclass_calibration_error` differs only in a bin of its own for confidences of exactly 1.
    """
    count, confidence, correct = tallied.tolist()
    return {
        "ece": float((tallied[2] - tallied[1]).abs().sum() / tallied[0].sum()),
        "reliability_count": [int(n) for n in count],
        "reliability_confidence": [total / n if n else None for total, n in zip(confidence, count, strict=True)],
        "reliability_accuracy": [total / n if n else None for total, n in zip(correct, count, strict=True)],
    }
