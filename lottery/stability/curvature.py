"""The largest eigenvalue and the trace of a loss's Hessian, from products with vectors, without the matrix itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lottery.errors import ConfigError
from lottery.stability.precision import precise

if TYPE_CHECKING:
    from lottery.data.dataset import Batch

Vector = dict[str, Tensor]
"""A direction in weight space: one tensor for each parameter."""

Terms = Callable[[Mapping[str, Tensor]], Iterable[Tensor]]
"""Gives parts that add up to the loss at these parameters. Only one part's graph is held at a time."""


@dataclass(frozen=True)
class Hessian:
    """The Hessian of the loss that `terms` add up to, in `parameters`; with `kept` (bool), in the kept weights."""

    terms: Terms
    parameters: Mapping[str, Tensor]
    kept: Mapping[str, Tensor] | None = None

    def __matmul__(self, vector: Vector) -> Vector:
        """Return H v, exactly: the gradient of g · v with v held fixed, g being the gradient of the loss."""
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
        """Return the vector with zeros where weights are pruned."""
        if self.kept is None:
            return vector
        return {name: value * self.kept[name] if name in self.kept else value for name, value in vector.items()}

    def random(self, generator: torch.Generator, signs: bool) -> Vector:
        """Draw a vector of independent entries from a CPU generator: ±1 if `signs`, else normal."""

        def entries(value: Tensor) -> Tensor:
            if signs:
                return torch.randint(0, 2, value.shape, generator=generator).to(value.dtype) * 2 - 1
            return torch.randn(value.shape, generator=generator, dtype=value.dtype)

        return self.restricted({name: entries(value).to(value.device) for name, value in self.parameters.items()})


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue estimate: an eigenvalue lies within `residual` = |Hv - λv| (unit vector v) of `value` = λ."""

    value: float
    residual: float
    products: int  # number of products with the Hessian used

    def converged(self, tolerance: float) -> bool:
        return self.residual <= tolerance * abs(self.value)


def top_eigenvalue(hessian: Hessian, *, products: int = 100, tolerance: float = 1e-2, seed: int = 0) -> Eigenvalue:
    """Return the largest eigenvalue (not the largest in magnitude) by power iteration with at most `products` products.

    Where the largest in magnitude is negative, the iteration goes on with the spectrum shifted by it. It stops once the
    residual is at most `tolerance` times |value|; check `converged`.
    """
    if products < 1:
        raise ConfigError.of("products", products, "a number of products with the Hessian ≥ 1")
    found = _power(hessian, 0.0, products, tolerance, seed)
    if found.value >= 0 or found.products == products:
        return found
    rest = _power(hessian, found.value, products - found.products, tolerance, seed)
    return Eigenvalue(rest.value, rest.residual, found.products + rest.products)


def _power(hessian: Hessian, shift: float, products: int, tolerance: float, seed: int) -> Eigenvalue:
    vector = hessian.random(torch.Generator().manual_seed(seed), signs=False)
    value = residual = 0.0
    for done in range(1, products + 1):
        scale = 1 / (_norm(vector) or 1.0)
        vector = {name: value * scale for name, value in vector.items()}
        product = hessian @ vector
        value = _dot(vector, product)
        residual = _norm({name: product[name] - value * vector[name] for name in vector})
        shifted = {name: product[name] - shift * vector[name] for name in vector}
        if residual <= tolerance * abs(value) or not _norm(shifted):
            return Eigenvalue(value, residual, done)
        vector = shifted
    return Eigenvalue(value, residual, products)


@dataclass(frozen=True)
class TraceEstimate:
    value: float
    error: float | None  # standard error of the mean; None for a single sample


def trace(hessian: Hessian, *, samples: int = 30, seed: int = 0) -> TraceEstimate:
    """Return Hutchinson's estimate: the mean of z'Hz over vectors z of random signs. Exact for a diagonal Hessian."""
    if samples < 1:
        raise ConfigError.of("samples", samples, "a number of random vectors ≥ 1")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(samples):
        signs = hessian.random(generator, signs=True)
        values.append(_dot(signs, hessian @ signs))
    mean = sum(values) / samples
    spread = sum((value - mean) ** 2 for value in values)
    return TraceEstimate(mean, sqrt(spread / (samples - 1) / samples) if samples > 1 else None)


def cross_entropy_terms(network: nn.Module, batches: Callable[[], Iterable[Batch]], images: int) -> Terms:
    """Return the terms of the mean cross-entropy over `images` images, which `batches` yields again at each call.

    The network should be in evaluation mode, so that each term depends on its own batch alone.
    """

    def terms(parameters: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for inputs, labels in batches():
            logits = functional_call(network, dict(parameters), (inputs,))
            yield F.cross_entropy(logits.float(), labels, reduction="sum") / images

    return terms


def _gradients(of: Tensor, leaves: Mapping[str, Tensor], create_graph: bool = False) -> Vector:
    """Return the gradients; zeros for a parameter that `of` does not depend on."""
    found = torch.autograd.grad(
        of, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _dot(one: Vector, other: Vector) -> float:
    return sum(float((precise(one[name]) * precise(other[name])).sum()) for name in one)


def _norm(vector: Vector) -> float:
    return sqrt(_dot(vector, vector))
