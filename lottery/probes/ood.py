"""Whether a network's confidence separates its own test images from those of another data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lottery.data.dataset import Batch, Dataset
from lottery.errors import ConfigError
from lottery.probes.images import at_a_time, check_images
from lottery.probes.quality import logits
from lottery.stages.bench import Bench
from lottery.stages.round import Round


@dataclass
class OutOfDistribution:
    """`ood_auc_NAME`: area under the ROC curve of the maximum softmax probability. In [0, 1], 0.5 by chance.

    Our test images are positives, those of another data set NAME negatives (Hendrycks and Gimpel 2017). `other` maps
    NAME to its options (a node of conf/data); its images have our shape and get our training data's scaling.
    """

    other: Mapping[str, Mapping[str, Any]]
    _loaded: dict[str, Dataset] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.other or not all(isinstance(options, Mapping) for options in self.other.values()):
            raise ConfigError.of("other", self.other, "data sets by name, such as from probes=ood_mnist")

    def check(self, lab: Bench) -> None:
        """Raise ConfigError unless both data sets have pixels, of the same shape."""
        check_images(lab, "probes.ood")
        for name, options in self.other.items():
            got, expected = list(options.get("shape", [])), list(lab.data.shape)
            if got != expected:
                raise ConfigError(f"probes.ood.other.{name}: got {got}, expected {expected}, the shape of our images")
            try:
                self._read(lab, name).pixels("test", 1)
            except ConfigError as error:
                raise ConfigError(f"probes.ood.other.{name}: {error}") from error

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        return {f"ood_auc_{name}": self._measured(name, round, lab) for name in self.other}

    def _measured(self, name: str, round: Round, lab: Bench) -> float:
        other, size = self._read(lab, name), lab.config.train.eval_batch_size

        def compute() -> dict[str, Any]:
            network = lab.trained_network(round.trained)
            ours = lab.watched(lab.data.batches("test", size))
            theirs = ((lab.data.scaled(pixels), labels) for pixels, labels in lab.watched(other.pixels("test", size)))
            return {"ood_auc": auc(confidence(network, ours), confidence(network, theirs))}

        inputs = {
            "version": 1,
            "state": round.trained.state.digest,
            "other": other.digest,
            "resize": self.other[name].get("resize", 0),
            **at_a_time(lab),
        }
        return lab.evaluated(f"ood {name}", inputs, compute)["ood_auc"]

    def _read(self, lab: Bench, name: str) -> Dataset:
        if name not in self._loaded:
            self._loaded[name] = lab.other_dataset(self.other[name])
        return self._loaded[name]


def confidence(network: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Return the maximum softmax probability of every image, float64 [N] on the CPU."""
    return torch.cat([scores.softmax(1).amax(1) for scores, _ in logits(network, batches)])


def auc(positive: Tensor, negative: Tensor) -> float:
    """Return the area under the ROC curve of scores in [0, 1], i.e. P(positive > negative), ties counting half."""
    from torchmetrics.functional.classification import binary_auroc

    labels = torch.cat([torch.ones(len(positive), dtype=torch.long), torch.zeros(len(negative), dtype=torch.long)])
    return float(binary_auroc(torch.cat([positive, negative]), labels))
