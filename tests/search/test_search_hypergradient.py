"""The scores' gradients: against autograd, finite differences, and bi-level problems that can be solved exactly."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from lottery.methods.bip import hypergradient as bip
from lottery.methods.bip_released import score_gradient as bip_repo
from lottery.methods.edge_popup import score_gradient as popup
from lottery.methods.jackpot import score_gradient as straight_through

GAMMAS = (0.1, 1.0, 10.0, 100.0)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


@pytest.fixture
def network() -> tuple[list[Tensor], list[Tensor], list[Tensor], functools.partial[Tensor]]:
    """θ, a mask, scores of both signs, and the loss as a function of z, all in float64."""
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    weights = [draw(6, 5), draw(3, 6)]
    masks = [(draw(w.shape) > 0.4).double() for w in weights]
    scores = [draw(w.shape) for w in weights]
    x, y = draw(16, 5), torch.randint(3, (16,), generator=generator)
    return weights, masks, scores, functools.partial(loss_of, x, y)


def loss_of(x: Tensor, y: Tensor, z: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(torch.tanh(x @ z[0].T) @ z[1].T, y)


def q_at(loss: functools.partial[Tensor], weights: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    z = [(m * w).requires_grad_() for m, w in zip(masks, weights, strict=True)]
    return list(torch.autograd.grad(loss(z), z))


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)


def test_mask_gradient_by_finite_differences(network) -> None:
    """T4.8: θ ⊙ q is the slope of the loss in each entry of a real-valued mask, θ frozen."""
    weights, masks, _, loss = network
    found = straight_through(weights, q_at(loss, weights, masks))
    step = 1e-5
    for layer, index in [(0, (1, 2)), (0, (5, 4)), (1, (0, 0)), (1, (2, 5)), (1, (1, 3))]:
        sides = []
        for sign in (1, -1):
            moved = [mask.clone() for mask in masks]
            moved[layer][index] += sign * step
            sides.append(loss([m * w for m, w in zip(moved, weights, strict=True)]))
        assert found[layer][index].item() == pytest.approx(((sides[0] - sides[1]) / (2 * step)).item(), rel=1e-6)


def test_straight_through_reaches_pruned_weights(network) -> None:
    """T5.4: what autograd gives scores that are added to the mask and cost nothing forward."""
    weights, masks, scores, loss = network
    leaves = [score.requires_grad_() for score in scores]
    loss([(m + s - s.detach()) * w for m, s, w in zip(masks, leaves, weights, strict=True)]).backward()
    found = straight_through(weights, q_at(loss, weights, masks))
    close(found, [leaf.grad for leaf in leaves])
    assert all((move[mask == 0] != 0).any() for move, mask in zip(found, masks, strict=True))


def test_popup_goes_through_the_absolute_value(network) -> None:
    """What autograd gives s when |s| is ranked; nothing to a score of exactly 0."""
    weights, masks, scores, loss = network
    scores[0][0, 0] = 0.0
    leaves = [score.requires_grad_() for score in scores]
    loss([(m + s.abs() - s.abs().detach()) * w for m, s, w in zip(masks, leaves, weights, strict=True)]).backward()
    found = popup(weights, q_at(loss, weights, masks), scores)
    close(found, [leaf.grad for leaf in leaves])
    assert found[0][0, 0] == 0
    assert not torch.allclose(found[1], straight_through(weights, q_at(loss, weights, masks))[1])


def test_bip_without_its_implicit_part_is_straight_through(network) -> None:
    """T4.4, bit by bit; and the limit is continuous."""
    weights, masks, _, loss = network
    q = q_at(loss, weights, masks)
    plain = straight_through(weights, copies(q))
    assert all(torch.equal(a, b) for a, b in zip(bip(weights, masks, copies(q), 0.0), plain, strict=True))
    close(bip(weights, masks, copies(q), 1e-12), plain)


def test_released_code_goes_through_the_absolute_value(network) -> None:
    """What autograd gives scores that are the weights and are ranked by |s|; and by hand."""
    theta, q = torch.tensor([-2.0, 2.0, -1.0, 3.0]), torch.tensor([1.0, 1.0, -0.5, 0.25])
    close(bip_repo([theta], [q.clone()], 0.0), [torch.tensor([2.0, 2.0, -0.5, 0.75])])
    weights, masks, _, loss = network
    q = q_at(loss, weights, masks)
    close(bip_repo(weights, copies(q), 0.0), popup(weights, copies(q), weights))


def test_released_code_s_term_is_another_than_the_paper_s() -> None:
    """θ = ±2, q = 3, 1/γ = 0.1: (θ - 0.3 m)·3 and 6 - 0.1·36. Pruned weights have no implicit part in the paper."""
    theta, mask, q = torch.tensor([2.0, 2.0, -2.0]), torch.tensor([1.0, 0.0, 1.0]), torch.full((3,), 3.0)
    close(bip([theta], [mask], [q.clone()], 0.1), [torch.tensor([5.1, 6.0, -6.9])])
    close(bip_repo([theta], [q.clone()], 0.1), [torch.tensor([2.4, 2.4, 2.4])])


@pytest.mark.parametrize("gamma", GAMMAS)
def test_exact_where_the_loss_is_linear(gamma: float) -> None:
    """T4.1: ℓ(z) = c·z has θ* = -(1/γ) m ⊙ c and dF/dm = -(2/γ) m ⊙ c²."""
    generator = torch.Generator().manual_seed(4)
    c = torch.randn(20, generator=generator, dtype=torch.float64)
    mask = (torch.rand(20, generator=generator) > 0.5).double()
    found = bip([-mask * c / gamma], [mask], [c.clone()], 1 / gamma)[0]
    torch.testing.assert_close(found, -2 / gamma * mask * c**2, rtol=1e-14, atol=0)


class Quadratic:
    """ℓ(z) = ½ (z-a)ᵀ H (z-a) in 6 dimensions; lower level g = ℓ(m ⊙ θ) + γ/2 |θ|², a linear system."""

    def __init__(self, seed: int, gamma: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.hessian, self.gamma = root @ root.T / 6, gamma
        self.a = torch.randn(6, generator=generator, dtype=torch.float64)
        self.mask = torch.tensor([1.0, 1, 0, 1, 0, 1], dtype=torch.float64)

    def loss(self, z: Tensor) -> Tensor:
        return (z - self.a) @ self.hessian @ (z - self.a) / 2

    def system(self, mask: Tensor) -> Tensor:
        return mask[:, None] * self.hessian * mask + self.gamma * torch.eye(6, dtype=torch.float64)

    def solution(self, mask: Tensor) -> Tensor:
        return torch.linalg.solve(self.system(mask), mask * (self.hessian @ self.a))

    def unrolled(self, mask: Tensor) -> Tensor:
        """Gradient descent on the lower level until it stands still."""
        theta = torch.zeros(6, dtype=torch.float64)
        rate = 1 / torch.linalg.eigvalsh(self.system(mask)).max()
        for _ in range(3_000):
            theta = theta - rate * (mask * self.q(mask, theta) + self.gamma * theta)
        return theta

    def q(self, mask: Tensor, theta: Tensor) -> Tensor:
        return self.hessian @ (mask * theta - self.a)

    def true_gradient(self, theta: Tensor) -> Tensor:
        """The implicit function theorem: θ ⊙ q + (dθ*/dm)ᵀ (m ⊙ q), dθ*/dm = -(MHM + γI)⁻¹ (diag q + M H diag θ)."""
        q = self.q(self.mask, theta)
        mixed = torch.diag(q) + self.mask[:, None] * self.hessian * theta
        return theta * q - mixed.T @ torch.linalg.solve(self.system(self.mask), self.mask * q)

    def estimate(self, theta: Tensor) -> Tensor:
        return bip([theta], [self.mask], [self.q(self.mask, theta)], 1 / self.gamma)[0]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 10.0])
def test_true_hyper_gradient_by_finite_differences(gamma: float) -> None:
    """F(m) = ℓ(m ⊙ θ*(m)), θ* by an unrolled lower level, differs as the implicit function theorem says."""
    problem = Quadratic(0, gamma)
    theta = problem.unrolled(problem.mask)
    torch.testing.assert_close(theta, problem.solution(problem.mask), rtol=1e-9, atol=1e-12)
    step, slopes = 1e-5, []
    for entry in range(6):
        values = []
        for sign in (1, -1):
            moved = problem.mask.clone()
            moved[entry] += sign * step
            values.append(problem.loss(moved * problem.unrolled(moved)))
        slopes.append((values[0] - values[1]) / (2 * step))
    torch.testing.assert_close(torch.stack(slopes), problem.true_gradient(theta), rtol=1e-6, atol=1e-8)


def test_the_estimate_is_the_better_the_larger_gamma() -> None:
    """docs/methods/bip.md: leaving the Hessian out costs a relative error of order 1/γ, and keeps the direction.

    Medians of 20 random problems; the errors and cosines there are of another one, so these are bounds of our own.
    """
    errors, cosines = [], []
    for gamma in GAMMAS:
        pairs = []
        for seed in range(20):
            problem = Quadratic(seed, gamma)
            theta = problem.solution(problem.mask)
            pairs.append((problem.estimate(theta), problem.true_gradient(theta)))
        errors.append(sorted(float((e - t).norm() / t.norm()) for e, t in pairs)[10])
        cosines.append(sorted(float(torch.cosine_similarity(e, t, dim=0)) for e, t in pairs)[10])
    assert errors == sorted(errors, reverse=True)
    assert cosines == sorted(cosines)
    assert errors[0] > 0.5  # so poor an estimate that its size means nothing
    assert errors[2] < 0.15
    assert errors[3] < 0.02
    assert errors[2] / errors[3] == pytest.approx(10, rel=0.2)  # first order in 1/γ
    assert cosines[0] > 0.8
    assert cosines[3] > 0.9999


def test_the_result_takes_the_place_of_q_and_nothing_else_changes(network) -> None:
    weights, masks, scores, loss = network
    q = q_at(loss, weights, masks)
    leaves = [nn.Parameter(weight) for weight in weights]
    inputs = [*weights, *masks, *scores]
    before = [tensor.clone() for tensor in inputs]
    for compute in (
        functools.partial(straight_through, leaves),
        functools.partial(popup, leaves, scores=scores),
        functools.partial(bip, leaves, masks, inverse_gamma=0.3),
        functools.partial(bip_repo, leaves, inverse_gamma=0.3),
    ):
        given = copies(q)
        found = compute(q=given)
        assert all(not f.requires_grad for f in found)
        assert all(f is g for f, g in zip(found, given, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
