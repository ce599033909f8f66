"""Curvature: exact on quadratics, against the full Hessian on a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lottery.errors import ConfigError
from lottery.stability.curvature import Eigenvalue, Hessian, cross_entropy_terms, top_eigenvalue, trace


def symmetric(eigenvalues: list[float]) -> Tensor:
    n = len(eigenvalues)
    turn = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    return turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T


def quadratic(matrix: Tensor, parts: int = 1) -> Hessian:
    """w'Aw/2 + b'w over two parameters of half the length each, as the sum of equal parts and a linear one."""
    n = len(matrix)

    def terms(parameters: Mapping[str, Tensor]) -> Iterator[Tensor]:
        w = torch.cat((parameters["a"], parameters["b"]))
        for _ in range(parts):
            yield w @ matrix @ w / 2 / parts
        yield w.sum()

    point = torch.randn(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Hessian(terms, {"a": point[: n // 2], "b": point[n // 2 :]})


def test_products_with_the_hessian_of_a_quadratic() -> None:
    matrix = symmetric([5, 3, -1, 0.5, 0, 2])
    v = torch.arange(6, dtype=torch.float64)
    for parts in (1, 4):
        product = quadratic(matrix, parts) @ {"a": v[:3], "b": v[3:]}
        torch.testing.assert_close(torch.cat((product["a"], product["b"])), matrix @ v)


@pytest.mark.parametrize(
    ("eigenvalues", "top"),
    [([5, 3, -1, 0.5], 5), ([2, 1, 0, -7], 2), ([-3, -1, -2, -5], -1), ([-4, -4, -4, -4], -4), ([0, 0, 0, 0], 0)],
)
def test_largest_eigenvalue_of_a_quadratic(eigenvalues: list[float], top: float) -> None:
    """The largest one, also where another is larger in magnitude."""
    found = top_eigenvalue(quadratic(symmetric(eigenvalues)), products=500, tolerance=1e-8)
    assert found.value == pytest.approx(top, abs=1e-6)
    assert found.residual < 1e-6
    assert found.products <= 500


def test_residual_says_how_far_off_it_may_be() -> None:
    """After few products an eigenvalue lies within the residual; and it has not converged."""
    eigenvalues = [3.0, 2.9, 2.8, 0.1]
    found = top_eigenvalue(quadratic(symmetric(eigenvalues)), products=2, tolerance=1e-6)
    assert found.products == 2
    assert not found.converged(1e-6)
    assert min(abs(found.value - true) for true in eigenvalues) <= found.residual


def test_trace_of_a_quadratic() -> None:
    """Exact from one sample where the Hessian is diagonal; else within 4 standard errors."""
    diagonal = torch.diag(torch.tensor([5.0, 3, -1, 0.5], dtype=torch.float64))
    assert trace(quadratic(diagonal), samples=1).value == pytest.approx(7.5)
    assert trace(quadratic(diagonal), samples=1).error is None
    found = trace(quadratic(symmetric([5, 3, -1, 0.5, 8, 2])), samples=400)
    assert found.error is not None
    assert abs(found.value - 17.5) < 4 * found.error
    assert 0 < found.error < 1


def test_seeds_decide_the_draws() -> None:
    hessian = quadratic(symmetric([5, 3, -1, 0.5]))
    assert trace(hessian, samples=3, seed=1) == trace(hessian, samples=3, seed=1)
    assert trace(hessian, samples=3, seed=1) != trace(hessian, samples=3, seed=2)


def network_and_hessian(kept: Mapping[str, Tensor] | None = None) -> tuple[Hessian, Tensor]:
    """A small network's Hessian, and all of it as a matrix by torch's own second derivatives."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    x, y = torch.randn(11, 3, dtype=torch.float64), torch.arange(11) % 3
    batches = list(zip(x.split(4), y.split(4), strict=True))
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        parts = dict(zip(parameters, flat.split([p.numel() for p in parameters.values()]), strict=True))
        shaped = {name: part.view_as(parameters[name]) for name, part in parts.items()}
        # The same formula by hand, in one batch.
        hidden = torch.tanh(x @ shaped["0.weight"].T + shaped["0.bias"])
        return F.cross_entropy(hidden @ shaped["2.weight"].T + shaped["2.bias"], y)

    flat = torch.cat([value.flatten() for value in parameters.values()])
    full = torch.autograd.functional.hessian(loss, flat)
    return Hessian(cross_entropy_terms(net, lambda: batches, len(x)), parameters, kept), full


def test_network_against_its_full_hessian() -> None:
    """To float32: the loss is taken of float32 logits."""
    hessian, full = network_and_hessian()
    found = top_eigenvalue(hessian, products=300, tolerance=1e-4)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(full)[-1]), rel=1e-4)
    v = torch.randn(len(full), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sizes = [value.numel() for value in hessian.parameters.values()]
    parts = zip(hessian.parameters.items(), v.split(sizes), strict=True)
    product = hessian @ {name: part.view_as(value) for (name, value), part in parts}
    torch.testing.assert_close(torch.cat([p.flatten() for p in product.values()]), full @ v, rtol=1e-4, atol=1e-6)


def test_with_a_mask_it_is_the_submatrix_of_the_kept_weights() -> None:
    kept = {"0.weight": torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) < 0.4}
    hessian, full = network_and_hessian(kept)
    flat = torch.cat(
        [kept.get(n, torch.ones_like(p, dtype=torch.bool)).flatten() for n, p in hessian.parameters.items()]
    )
    part = full[flat][:, flat]
    found = top_eigenvalue(hessian, products=300, tolerance=1e-4)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(part)[-1]), rel=1e-4)
    estimate = trace(hessian, samples=200)
    assert abs(estimate.value - float(part.trace())) < 4 * (estimate.error or 0)


def test_attention_has_second_derivatives() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 5, 4)

    def terms(parameters: Mapping[str, Tensor]) -> Iterator[Tensor]:
        yield F.scaled_dot_product_attention(x * parameters["w"], x, x).square().sum()

    assert trace(Hessian(terms, {"w": torch.ones(4)}), samples=2).value != 0


def test_bad_counts() -> None:
    hessian = quadratic(symmetric([1, 2]))
    with pytest.raises(ConfigError, match="products: got 0"):
        top_eigenvalue(hessian, products=0)
    with pytest.raises(ConfigError, match="samples: got 0"):
        trace(hessian, samples=0)
    assert Eigenvalue(2.0, 0.01, 3).converged(0.01)
