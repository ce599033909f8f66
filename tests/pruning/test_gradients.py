"""SNIP, GraSP and SynFlow against their definitions: derivatives taken another way, and laws that the scores obey."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import Partial, convolutional
from torch import Tensor, nn

from lottery.data.dataset import Batch
from lottery.errors import ConfigError, LotteryError
from lottery.pruning.gradients import _with_float64, grasp, hessian_gradient, snip, synflow
from lottery.pruning.prunable import prunable
from lottery.pruning.prune import prune, prune_to
from lottery.pruning.scoring import Criterion, Scoring
from lottery.ticket import Mask

CONF = Path(__file__).parents[2] / "conf" / "criterion"
GRADIENTS: list[Criterion] = [snip, grasp, synflow]


def scoring(
    network: nn.Module, shape: tuple[int, ...], classes: int, mask: Mask | None = None, data: bool = True
) -> Scoring:
    """The network as a study would offer it; images of `shape`, drawn from a seed, in the network's precision."""
    mask = mask or Mask.ones(prunable(network))
    dtype = next(network.parameters()).dtype

    def copy() -> nn.Module:
        private = deepcopy(network)
        private.load_state_dict(mask.apply(private.state_dict()))
        return private.train()

    def sample(per_class: int) -> Batch:
        assert data, "this criterion needs no data"
        generator = torch.Generator().manual_seed(5)
        labels = torch.arange(classes).repeat(per_class)
        images = torch.randn(len(labels), *shape, generator=generator, dtype=torch.float64)
        return images.to(dtype), labels

    weights = {name: network.get_parameter(name).detach() for name in mask}
    return Scoring(weights, mask, torch.Generator().manual_seed(0), copy, sample, shape)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What `build` gives when torch's generator starts from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def images8(classes: int = 3) -> nn.Module:
    """Convolutions, batch normalisation and dropout, for 1x8x8 images."""
    return seeded(lambda: convolutional(shape=(1, 8, 8), classes=classes))


def perceptron(widths: Sequence[int], seed: int = 0, bias: bool = False, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Linear layers of these widths, in float64."""

    def build() -> nn.Module:
        layers = [[nn.Linear(a, b, bias), act()] for a, b in pairwise(widths)]
        return nn.Sequential(*[module for layer in layers for module in layer][:-1]).double()

    return seeded(build, seed)


# -- SNIP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_snip_is_the_gradient_of_the_connections(density: float) -> None:
    """T3.3: |∂L/∂c| at c = mask, by autograd on explicit factors c of the weights."""
    network = images8()
    full = scoring(network, (1, 8, 8), 3)
    mask = prune_to(full.mask, {name: weight.abs() for name, weight in full.weights.items()}, density)
    at = scoring(network, (1, 8, 8), 3, mask)
    found = snip(at, per_class=7)

    images, labels = at.sample(7)
    network.get_submodule("dropout").eval()  # no chance in scores
    factors = {name: kept.float().requires_grad_() for name, kept in mask.items()}
    weights = dict(network.named_parameters())
    connected = {name: weights[name].detach() * factors[name] for name in mask}
    loss = F.cross_entropy(torch.func.functional_call(network, connected, (images,)), labels)
    loss.backward()
    for name, kept in mask.items():
        gradient = factors[name].grad
        assert gradient is not None
        torch.testing.assert_close(found[name][kept], gradient.abs()[kept], rtol=1e-4, atol=1e-7)
        assert not found[name][~kept].any()


# -- GraSP ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_hessian_gradient_of_a_quadratic(size: int, seed: int) -> None:
    """T3.4: for L = ½ θᵀAθ: g = Aθ, Hg = A²θ, and θ · Hg = |g|²."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = root + root.T
    theta = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
    (product,) = hessian_gradient(theta @ matrix @ theta / 2, [theta])
    torch.testing.assert_close(product, matrix @ matrix @ theta.detach())
    gradient = matrix @ theta.detach()
    torch.testing.assert_close((theta.detach() * product).sum(), gradient.square().sum())


def numerical(network: nn.Module, at: Scoring, per_class: int, temperature: float) -> dict[str, Tensor]:
    """w · Hg from central differences of the gradient, weight by weight."""
    images, labels = at.sample(per_class)
    half = (len(labels) + 1) // 2
    sizes = [weight.numel() for weight in at.weights.values()]

    def unpacked(flat: Tensor) -> dict[str, Tensor]:
        parts = zip(at.weights.items(), flat.split(sizes), strict=True)
        return {name: part.view(weight.shape) for (name, weight), part in parts}

    def gradient(flat: Tensor) -> Tensor:
        flat = flat.clone().requires_grad_()
        halves = ((images[:half], labels[:half]), (images[half:], labels[half:]))
        logits = [torch.func.functional_call(network, unpacked(flat), (x,)) / temperature for x, _ in halves]
        losses = [F.cross_entropy(z, y) for z, (_, y) in zip(logits, halves, strict=True)]
        return torch.autograd.grad(losses[0] + losses[1], flat)[0]

    theta = torch.cat([weight.flatten() for weight in at.weights.values()])
    bumps = torch.eye(len(theta), dtype=torch.float64) * 1e-5
    hessian = torch.stack([(gradient(theta + bump) - gradient(theta - bump)) / 2e-5 for bump in bumps])
    return unpacked(theta * (hessian @ gradient(theta)))


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("per_class", [1, 5])
def test_grasp_is_the_numerical_hessian_times_the_gradient(temperature: float, per_class: int) -> None:
    network = perceptron((3, 4, 2), bias=True, act=nn.Tanh)
    at = scoring(network, (3,), 2)
    expected = numerical(network, at, per_class, temperature)
    found = grasp(at, per_class, temperature)
    for name in at.mask:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-5, atol=1e-9 * float(expected[name].abs().max())
        )


def test_grasp_normalises_each_half_by_itself() -> None:
    network = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double())
    at = scoring(network, (3,), 2)
    found = grasp(at, per_class=6, temperature=1.0)
    expected = numerical(network, at, 6, 1.0)
    for name in at.mask:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-8)


def test_grasp_prunes_first_what_leaves_the_gradient_largest() -> None:
    """The lowest score marks the weight whose shrinking raises |g|² most: the sign convention of Wang et al. 2020."""
    network = perceptron((3, 4, 2), seed=1, bias=True, act=nn.Tanh)
    at = scoring(network, (3,), 2)
    scores = torch.cat([score.flatten() for score in grasp(at, 5, 1.0).values()])
    base, changes = gradient_norm(network, at), []
    for name, weight in at.weights.items():
        for i in range(weight.numel()):
            shrunk = deepcopy(network)
            with torch.no_grad():
                shrunk.get_parameter(name).view(-1)[i] *= 1 - 1e-5
            changes.append((gradient_norm(shrunk, at) - base) / 1e-5)
    assert max(changes) == changes[scores.argmin()] > 0
    assert min(changes) == changes[scores.argmax()] < 0
    torch.testing.assert_close(torch.stack(changes), -2 * scores, rtol=1e-3, atol=1e-5)  # to first order


def gradient_norm(network: nn.Module, at: Scoring) -> Tensor:
    """|g|² of both halves' losses in the prunable weights."""
    images, labels = at.sample(5)
    losses = [F.cross_entropy(network(x), y) for x, y in zip(images.chunk(2), labels.chunk(2), strict=True)]
    gradients = torch.autograd.grad(losses[0] + losses[1], [network.get_parameter(name) for name in at.mask])
    return torch.stack([g.square().sum() for g in gradients]).sum()


def test_grasp_variants() -> None:
    at = scoring(images8(), (1, 8, 8), 3)
    signed, reverse, size = (grasp(at, 5, variant=variant) for variant in ("signed", "reversed", "magnitude"))
    assert all(torch.equal(-signed[name], reverse[name]) for name in signed)
    assert all(torch.equal(signed[name].abs(), size[name]) for name in signed)
    assert all((signed[name] < 0).any() and (signed[name] > 0).any() for name in signed)
    with pytest.raises(ConfigError, match="variant: got 'unsigned', expected one of signed, reversed, magnitude"):
        grasp(at, variant="unsigned")
    with pytest.raises(ConfigError, match="temperature: got 0, expected a number > 0"):
        grasp(at, temperature=0)


class Attentive(nn.Module):
    """One attention layer, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.output = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.attention(images, images, images, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_attention_can_be_scored(criterion: Criterion) -> None:
    """GraSP differentiates twice, which the fused kernels of attention cannot."""
    scores = criterion(scoring(seeded(Attentive), (5, 8), 3))
    assert list(scores) == ["attention.in_proj_weight", "attention.out_proj.weight", "output.weight"]
    assert all(score.isfinite().all() and score.any() for score in scores.values())


# -- SynFlow ----------------------------------------------------------------------------------------------------------


def flow(network: nn.Module, mask: Mask, shape: tuple[int, ...]) -> float:
    """R: the summed outputs of the masked network with absolute weights, for an input of ones."""
    absolute = deepcopy(network).double().eval()
    absolute.load_state_dict({name: value.abs() for name, value in mask.apply(absolute.state_dict()).items()})
    with torch.no_grad():
        return float(absolute(torch.ones(1, *shape, dtype=torch.float64)).sum())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.floats(0.3, 1), st.integers(0, 10_000))
def test_synflow_is_conserved(widths: list[int], density: float, seed: int) -> None:
    """T3.5, without biases: every layer's scores add up to R, and what enters a neuron leaves it; masks included."""
    network = perceptron(widths, seed)
    full = scoring(network, (widths[0],), widths[-1], data=False)
    mask = prune_to(full.mask, {name: torch.rand_like(weight) for name, weight in full.weights.items()}, density)
    scores = synflow(scoring(network, (widths[0],), widths[-1], mask, data=False))
    total = flow(network, mask, (widths[0],))
    for score in scores.values():
        assert float(score.sum()) == pytest.approx(total, rel=1e-9, abs=1e-12)
    for before, after in pairwise(scores.values()):
        torch.testing.assert_close(before.sum(1), after.sum(0), rtol=1e-9, atol=1e-12)
    assert not any(score[~mask[name]].any() for name, score in scores.items())


def test_synflow_of_a_convolutional_network_is_conserved() -> None:
    """Through batch normalisation at its initial statistics, pooling and dropout; only biases let flow in."""
    network = images8()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("bias"):
                value.zero_()
    at = scoring(network, (1, 8, 8), 3, data=False)
    scores = synflow(at)
    assert {score.dtype for score in scores.values()} == {torch.float64}
    for score in scores.values():
        assert float(score.sum()) == pytest.approx(flow(network, at.mask, (1, 8, 8)), rel=1e-9)


def test_synflow_survives_depth_that_overflows_float32() -> None:
    network = perceptron((64,) * 45).float()
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(8)
    scores = synflow(scoring(network, (64,), 64, data=False))
    assert all(score.isfinite().all() for score in scores.values())
    assert next(iter(scores.values())).sum() > torch.finfo(torch.float32).max


@settings(deadline=None, max_examples=15)
@given(st.floats(0.02, 0.9), st.integers(0, 1000))
def test_synflow_in_steps_empties_no_layer(density: float, seed: int) -> None:
    """Tanaka et al. 2020: pruned in many steps no layer goes before all layers are down to a few weights."""
    network = perceptron((6, 20, 20, 4), seed)
    mask = Mask.ones(prunable(network))
    for step in range(1, 31):
        scores = synflow(scoring(network, (6,), 4, mask, data=False))
        mask = prune_to(mask, scores, density ** (step / 30))
    assert mask.kept == round(density * mask.size)
    assert not mask.collapsed


def test_float64_is_taken_to_the_processor_where_the_device_has_none() -> None:
    assert _with_float64(torch.device("mps")) == torch.device("cpu")
    assert _with_float64(torch.device("cuda", 1)) == torch.device("cuda", 1)


# -- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_scores_leave_the_network_as_it_was(criterion: Criterion) -> None:
    """Weights, gradients and normalisation statistics, and the random numbers that training will draw."""
    network = images8()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    at, chance = scoring(network, (1, 8, 8), 3), torch.get_rng_state()
    criterion(at)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None for value in network.parameters())
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_scores_are_repeatable_and_pruned_weights_score_nothing(criterion: Criterion) -> None:
    """Dropout, which is part of this network, draws no lots in scores."""
    network = images8()
    full = scoring(network, (1, 8, 8), 3)
    mask = prune(full.mask, {name: weight.abs() for name, weight in full.weights.items()}, 0.5)
    at = scoring(network, (1, 8, 8), 3, mask)
    scores = criterion(at)
    assert all(torch.equal(score, again) for score, again in zip(scores.values(), criterion(at).values(), strict=True))
    assert list(scores) == list(mask)
    assert {name: score.shape for name, score in scores.items()} == mask.shapes
    assert not any(score[~mask[name]].any() or score.requires_grad for name, score in scores.items())
    assert prune(mask, scores, 0.3).kept == mask.kept - round(0.3 * mask.kept)


@pytest.mark.parametrize("criterion", [snip, grasp])
def test_scores_normalise_by_the_sample(criterion: Criterion) -> None:
    """At initialisation running statistics are 0 and 1, those of no layer."""
    network = images8()
    expected = criterion(scoring(network, (1, 8, 8), 3))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.fill_(3.0)
    found = criterion(scoring(network, (1, 8, 8), 3))
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_snip_by_the_networks_statistics_is_the_gradient_in_evaluation_mode() -> None:
    """As the released codes score: a running mean counts, and the images of a batch do not see each other."""
    network = images8()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.fill_(0.3)
    at = scoring(network, (1, 8, 8), 3)
    found = snip(at, statistics="network")
    network.eval()
    images, labels = at.sample(10)
    weights = [network.get_parameter(name) for name in at.mask]
    losses = [F.cross_entropy(network(image[None]), label[None]) for image, label in zip(images, labels, strict=True)]
    gradients = torch.autograd.grad(torch.stack(losses).mean(), weights)
    for name, weight, gradient in zip(at.mask, weights, gradients, strict=True):
        torch.testing.assert_close(found[name], (weight * gradient).abs().detach())
    assert any(not torch.allclose(found[name], score) for name, score in snip(at).items())
    with pytest.raises(ConfigError, match=r"criterion.statistics: got 'batch', expected one of sample, network"):
        snip(at, statistics="batch")


def test_grasp_by_class_takes_the_lower_classes_first() -> None:
    """The sorted halves are those of the authors' code: with 4 classes 0 and 1 in one, 2 and 3 in the other."""
    network = images8(classes=4)
    at = scoring(network, (1, 8, 8), 4)
    images, labels = at.sample(5)
    low = labels < 2
    halves = [(images[low][labels[low].argsort(stable=True)], labels[low].sort(stable=True).values),
              (images[~low][labels[~low].argsort(stable=True)], labels[~low].sort(stable=True).values)]  # fmt: skip
    network.eval()  # no dropout
    for module in network.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    weights = [network.get_parameter(name) for name in at.mask]
    loss = sum(F.cross_entropy(network(x) / 200, y) for x, y in halves)
    products = hessian_gradient(loss, weights)
    found = grasp(at, 5, halves="by_class")
    for name, weight, product in zip(at.mask, weights, products, strict=True):
        torch.testing.assert_close(found[name], (weight * product).detach())
    assert any(not torch.allclose(found[name], score) for name, score in grasp(at, 5).items())
    with pytest.raises(ConfigError, match=r"criterion.halves: got 'sorted', expected one of balanced, by_class"):
        grasp(at, halves="sorted")


def test_grasp_redraws_linear_layers_of_its_copy_alone() -> None:
    network = images8()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn, again = (grasp(scoring(network, (1, 8, 8), 3), 5, redraw=True) for _ in range(2))
    own = grasp(scoring(network, (1, 8, 8), 3), 5)
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert not torch.allclose(drawn["fc.weight"], own["fc.weight"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_frozen_layers_are_scored_and_unused_ones_score_nothing(criterion: Criterion) -> None:
    scores = criterion(scoring(seeded(lambda: Partial(inputs=4, classes=3)), (4,), 3))
    assert scores["frozen.weight"].any()
    assert scores["output.weight"].any()
    assert not scores["unused.weight"].any()


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_scores_that_are_not_finite_name_their_layer(criterion: Criterion) -> None:
    network = images8()
    with torch.no_grad():
        network.get_parameter("conv2.weight")[0, 0, 0, 0] = float("inf")
    at = scoring(network, (1, 8, 8), 3)
    with pytest.raises(LotteryError, match=r"scores of '(conv1|conv2|fc).weight': \d+ are not finite, cannot rank"):
        prune(at.mask, criterion(at), 0.5)


OPTIONS: dict[str, tuple[Callable[..., dict[str, Tensor]], dict[str, Any]]] = {
    "snip": (snip, {"per_class": 10}),
    "grasp": (grasp, {"per_class": 10, "temperature": 200.0, "variant": "signed"}),
    "grasp_magnitude": (grasp, {"per_class": 10, "temperature": 200.0, "variant": "magnitude"}),
    "synflow": (synflow, {}),
    "snip_released": (snip, {"per_class": 10, "statistics": "network"}),
    "grasp_released": (
        grasp,
        {"per_class": 10, "temperature": 200.0, "variant": "signed", "halves": "by_class", "redraw": True},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_config_gives_the_criterion(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        criterion = instantiate(compose(name))
    function, options = OPTIONS[name]
    assert (criterion.func, criterion.keywords) == (function, options)
    expected = function(scoring(images8(), (1, 8, 8), 3), **options)
    found = criterion(scoring(images8(), (1, 8, 8), 3))
    assert all(torch.equal(score, expected[layer]) for layer, score in found.items())


# -- activations that torch or the method cannot see through -----------------------------------------------------------


class Clamped(nn.Module):
    """A hard sigmoid by its definition."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 3) / 6).clamp(0, 1)


def test_grasp_of_hard_sigmoids() -> None:
    """torch's own has no second derivative."""
    found, expected = (
        grasp(scoring(perceptron((6, 5, 4, 3), act=act), (6,), 3), per_class=4) for act in (nn.Hardsigmoid, Clamped)
    )
    for name, score in expected.items():
        assert score.any()
        torch.testing.assert_close(found[name], score)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_synflow_without_running_statistics_is_that_of_a_new_layer(norm: Callable[..., nn.Module]) -> None:
    """By the statistics of its one input the sum of the outputs would be a constant, and every score 0."""
    scores = []
    for tracked in (True, False):
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 4, 3), norm(4, affine=True, track_running_stats=tracked), nn.ReLU(), nn.Flatten()]
        with torch.no_grad():
            layers[1].weight.copy_(torch.rand(4))
        scores.append(synflow(scoring(nn.Sequential(*layers, nn.Linear(16, 3)), (2, 4, 4), 3)))
    for name, score in scores[0].items():
        assert (score > 0).all()
        assert torch.equal(score, scores[1][name])


def test_synflow_of_relu6_is_that_of_relu() -> None:
    """With weights of 2 activations are far beyond 6, where ReLU6 has no slope."""
    scores = []
    for act in (nn.ReLU6, nn.ReLU):
        network = perceptron((6, 5, 4, 3), act=act)
        nn.init.constant_(network[0].weight, 2.0)  # type: ignore[arg-type]
        scores.append(synflow(scoring(network, (6,), 3)))
    for name, score in scores[1].items():
        assert score.any()
        torch.testing.assert_close(scores[0][name], score, rtol=0, atol=0)
