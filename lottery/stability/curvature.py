"""The Hessian of a loss without the matrix: its largest eigenvalue and its trace, from products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lottery.errors import ConfigError
from lottery.stability.evaluation import Batch
from lottery.stability.precision import precise

Vector = dict[str, Tensor]
"""A direction in weight space: one tensor for each parameter."""

Terms = Callable[[Mapping[str, Tensor]], Iterable[Tensor]]
"""Parts that add up to the loss at these parameters, one after the other; only one part's graph is held at a time."""


@dataclass(frozen=True)
class Hessian:
    """Of the loss that `terms` add up to, in `parameters`; with `kept` (bool tensors), in the kept weights."""

    terms: Terms
    parameters: Mapping[str, Tensor]
    kept: Mapping[str, Tensor] | None = None

    def __matmul__(self, vector: Vector) -> Vector:
        """H v, exactly: the gradient of g · v, with v held fixed."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        vector = self.restricted(vector)
        total = {name: torch.zeros_like(value) for name, value in vector.items()}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            for term in self.terms(leaves):
                gradients = _gradients(term, leaves, create_graph=True)
                slope = torch.stack([(gradients[name] * vector[name]).sum() for name in leaves]).sum()
                if slope.requires_grad:  # else the term is linear
                    for name, part in _gradients(slope, leaves).items():
                        total[name] += part
        return self.restricted(total)

    def restricted(self, vector: Vector) -> Vector:
        """The vector with zeros where weights are pruned."""
        if self.kept is None:
            return vector
        return {name: value * self.kept[name] if name in self.kept else value for name, value in vector.items()}

    def random(self, generator: torch.Generator, signs: bool) -> Vector:
        """Independent entries from a CPU generator: normal ones, or ±1."""
        drawn = {}
        for name, value in self.parameters.items():
            if signs:
                entries = torch.randint(0, 2, value.shape, generator=generator).to(value.dtype) * 2 - 1
            else:
                entries = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            drawn[name] = entries.to(value.device)
        return self.restricted(drawn)


@dataclass(frozen=True)
class Eigenvalue:
    """`residual` = |Hv - λv| for the unit vector v found: an eigenvalue lies that close to `value`."""

    value: float
    residual: float
    products: int  # how many products with the Hessian it took

    def converged(self, tolerance: float) -> bool:
        return self.residual <= tolerance * abs(self.value)


def top_eigenvalue(hessian: Hessian, *, products: int = 100, tolerance: float = 1e-2, seed: int = 0) -> Eigenvalue:
    """The largest eigenvalue (not the largest in magnitude) by power iteration, with at most so many products.

    Where the largest in magnitude is negative, the iteration goes on with the spectrum shifted by it. It ends once the
    residual is below `tolerance` of the value; check `converged`.
    """
    if products < 1:
        raise ConfigError.of("products", products, "a number of products with the Hessian ≥ 1")
    found = _power(hessian, 0.0, products, tolerance, seed)
    if found.value >= 0 or found.products == products:
        return found
    rest = _power(hessian, found.value, products - found.products, tolerance, seed)
    return Eigenvalue(rest.value, rest.residual, found.products + rest.products)


def _power(hessian: Hessian, shift: float, products: int, tolerance: float, seed: int) -> Eigenvalue:
    """Power iteration with H - shift."""
    vector = hessian.random(torch.Generator().manual_seed(seed), signs=False)
    value = residual = 0.0
    for done in range(1, products + 1):
        vector = _scaled(vector, 1 / (_norm(vector) or 1.0))
        product = hessian @ vector
        value = _dot(vector, product)
        residual = _norm({name: product[name] - value * vector[name] for name in vector})
        shifted = {name: product[name] - shift * vector[name] for name in vector}
        if residual <= tolerance * abs(value) or not _norm(shifted):
            return Eigenvalue(value, residual, done)
        vector = shifted
    return Eigenvalue(value, residual, products)


@dataclass(frozen=True)
class Trace:
    value: float
    error: float | None  # standard error of the mean; None of a single sample


def trace(hessian: Hessian, *, samples: int = 30, seed: int = 0) -> Trace:
    """Hutchinson's estimate: the mean of z'Hz over vectors z of random signs; exact where the Hessian is diagonal."""
    if samples < 1:
        raise ConfigError.of("samples", samples, "a number of random vectors ≥ 1")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(samples):
        signs = hessian.random(generator, signs=True)
        values.append(_dot(signs, hessian @ signs))
    mean = sum(values) / samples
    if samples == 1:
        return Trace(mean, None)
    return Trace(mean, sqrt(sum((value - mean) ** 2 for value in values) / (samples - 1) / samples))


def cross_entropy_terms(network: nn.Module, batches: Callable[[], Iterable[Batch]], images: int) -> Terms:
    """The mean cross-entropy over `images` images, which `batches` gives again at each call.

    The network should be in evaluation mode: then the terms depend on no batch but their own.
    """

    def terms(parameters: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for inputs, labels in batches():
            logits = functional_call(network, dict(parameters), (inputs,))
            yield F.cross_entropy(logits.float(), labels, reduction="sum") / images

    return terms


def _gradients(of: Tensor, leaves: Mapping[str, Tensor], create_graph: bool = False) -> Vector:
    """Zeros for a parameter that `of` does not depend on."""
    found = torch.autograd.grad(
        of, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _dot(one: Vector, other: Vector) -> float:
    return sum(float((precise(one[name]) * precise(other[name])).sum()) for name in one)


def _norm(vector: Vector) -> float:
    return sqrt(_dot(vector, vector))


def _scaled(vector: Vector, factor: float) -> Vector:
    return {name: value * factor for name, value in vector.items()}
