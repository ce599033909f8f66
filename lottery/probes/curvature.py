"""Curvature of the training loss at the trained network: the Hessian's largest eigenvalue, and its trace."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from lottery.data.order import check_per_class
from lottery.probes.images import Options
from lottery.ranges import at_least, option
from lottery.stability.curvature import Hessian, cross_entropy_terms, top_eigenvalue, trace
from lottery.stages.bench import Bench
from lottery.stages.round import Round

LOG = logging.getLogger("lottery")
VERSION = 1


@dataclass(frozen=True)
class Curvature(Options):
    """`hessian_top` (by power iteration) and `hessian_trace` (by Hutchinson's estimate, with its standard error).

    The loss is the mean cross-entropy of `per_class` training images of each class, not augmented, in evaluation mode.
    Pruned weights are left out. An eigenvalue that did not converge within `products` products is null.
    """

    per_class: int = 100
    products: int = option(50, at_least(1, "a number ≥ 1"))
    samples: int = option(20, at_least(1, "a number ≥ 1"))
    tolerance: float = 0.01
    seed: int = 0

    def check(self, lab: Bench) -> None:
        """Raise ConfigError where a class has fewer training images."""
        check_per_class(lab.data.class_sizes, self.per_class, "probes.curvature.per_class")

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        size = lab.config.train.batch_size

        def compute() -> dict[str, Any]:
            network = lab.trained_network(round.trained)
            images, labels = lab.data.sample(self.per_class, self.seed, "probes.curvature.per_class")
            batches = list(zip(images.split(size), labels.split(size), strict=True))
            terms = cross_entropy_terms(network, lambda: lab.watched(batches), len(labels))
            kept = {name: mask.to(images.device) for name, mask in round.mask.items()}
            hessian = Hessian(terms, dict(network.named_parameters()), kept)
            top = top_eigenvalue(hessian, products=self.products, tolerance=self.tolerance, seed=self.seed)
            if not top.converged(self.tolerance):
                LOG.warning("probes.curvature: no eigenvalue after %d products; more: products=", top.products)
            traced = trace(hessian, samples=self.samples, seed=self.seed)
            return {
                "hessian_top": top.value if top.converged(self.tolerance) else None,
                "hessian_trace": traced.value,
                "hessian_trace_error": traced.error,
            }

        digests = {"state": round.trained.state.digest, "mask": round.mask.digest}
        return lab.evaluated("curvature", {"version": VERSION, **digests, **asdict(self), "batch_size": size}, compute)
