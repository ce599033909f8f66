"""Scores of units against their formulas: on networks whose features are known, and worked out another way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sklearn.cross_decomposition import PLSRegression
from torch import Tensor, nn

from lottery.data.dataset import Batch
from lottery.errors import ConfigError, LotteryError
from lottery.layers.from_features import cka, expect_abs, hrank, importance, pls
from lottery.layers.from_outputs import kl, loss
from lottery.layers.from_weights import grasp, l1, random, snip, snip_signed
from lottery.layers.removal import Unit, remove_, silenced
from lottery.layers.scoring import PIECE, UnitScoring, settled_
from lottery.layers.units import find_units
from lottery.models.resnet import resnet
from lottery.parts import instantiated
from lottery.pruning import gradients
from lottery.pruning.prunable import prunable
from lottery.pruning.scoring import Scoring
from lottery.stages.layers import VERSION
from lottery.ticket import Mask

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "layer_criterion").glob("*.yaml"))
UnitCriterion = Callable[[UnitScoring], dict[str, float]]
ALL: list[UnitCriterion] = [random, l1, snip, snip_signed, grasp, expect_abs, hrank, pls, cka, kl, loss]
CLASSES = 3


def scoring(network: nn.Module, shape: tuple[int, ...], images: Tensor | None = None) -> UnitScoring:
    """The network as a study would offer it; by default with random images of `shape`, in the network's precision."""
    units = find_units(network, shape)
    dtype = next(network.parameters()).dtype

    def without(name: str) -> nn.Module:
        shallow = deepcopy(network)
        remove_(shallow, [units[name]])
        return shallow.eval()

    def sample(per_class: int) -> Batch:
        labels = torch.arange(CLASSES).repeat(per_class)
        if images is not None:
            return images[: len(labels)].to(dtype), labels[: len(images)]
        drawn = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return drawn.to(dtype), labels

    generator = torch.Generator().manual_seed(0)
    return UnitScoring(units, lambda: deepcopy(network).train(), without, sample, generator, shape)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def resnet14() -> nn.Module:
    """Four removable blocks and two that join stages, for 3x8x8 images."""
    return seeded(lambda: resnet(shape=(3, 8, 8), classes=CLASSES, depth=14, width=4))


def trained() -> nn.Module:
    """The same with statistics that a training has left behind."""
    network = resnet14()
    for _ in range(3):
        network.train()(scoring(network, (3, 8, 8)).sample(10)[0])
    return network


class Add(nn.Module):
    """x + f(x): a unit."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def mixing(matrix: Tensor, kind: type[nn.Module] = nn.Conv2d) -> nn.Module:
    """Multiplies the channels of each position by this [C, C] matrix."""
    size = len(matrix)
    layer = nn.Conv2d(size, size, 1, bias=False) if kind is nn.Conv2d else nn.Linear(size, size, bias=False)
    with torch.no_grad():
        layer.weight.copy_(matrix.view_as(layer.weight))
    return layer


class Chain(nn.Module):
    """Units one after the other, right on the image, and a classifier; `inside` brings features into another layout."""

    def __init__(self, units: Sequence[nn.Module], channels: int, inside: str = "maps") -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.inside = inside
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.inside == "tokens":
            x = x.flatten(2).transpose(1, 2)
        elif self.inside == "channels last":
            x = x.movedim(1, 3)
        x = self.units(x)
        return self.fc(x.mean((2, 3)) if self.inside == "maps" else x.flatten(1, -2).mean(1))


def chain(matrices: Sequence[Tensor], inside: str = "maps") -> nn.Module:
    kind = nn.Conv2d if inside == "maps" else nn.Linear
    return seeded(lambda: Chain([Add(mixing(m, kind)) for m in matrices], len(matrices[0]), inside).double())


def scaled(*factors: float, channels: int = 2) -> nn.Module:
    """Units that add so many times the image that they get."""
    return chain([factor * torch.eye(channels) for factor in factors])


# -- from the weights --------------------------------------------------------------------------------------------------


def weightwise(at: UnitScoring) -> Scoring:
    """The same moment as pruning of single weights sees it."""
    network = at.network()
    mask = Mask.ones(prunable(network))
    weights = {name: network.get_parameter(name).detach() for name in mask}
    return Scoring(weights, mask, at.generator, at.network, at.sample, at.shape)


def added(scores: dict[str, Tensor], unit: Unit) -> float:
    return sum(float(scores[name].double().sum()) for name in unit.weights)


@pytest.mark.parametrize(("criterion", "of_weights"), [(snip, gradients.snip), (grasp, gradients.grasp)])
def test_a_unit_scores_the_sum_or_the_mean_of_its_weights(
    criterion: UnitCriterion, of_weights: Callable[..., dict[str, Tensor]]
) -> None:
    """T6.6."""
    at = scoring(resnet14(), (3, 8, 8))
    scores = of_weights(weightwise(at), per_class=6)
    total, mean = criterion(at, agg="sum", per_class=6), criterion(at, per_class=6)  # type: ignore[call-arg]
    assert len(at.units) == 4
    for name, unit in at.units.items():
        assert [prod(scores[weight].shape) for weight in unit.weights] == [
            9 * scores[unit.weights[0]].shape[0] ** 2
        ] * 2
        assert total[name] == pytest.approx(added(scores, unit), rel=1e-6, abs=1e-12)
        assert mean[name] == pytest.approx(total[name] / sum(scores[weight].numel() for weight in unit.weights))


def test_snip_is_not_negative_and_sees_more_than_signs() -> None:
    """T6.6: |w·g| ≥ |w·g added up|, with the network's statistics and with the sample's."""
    at = scoring(trained(), (3, 8, 8))
    signed = gradients.sensitivity(weightwise(at), 10)
    for name, score in snip(at, agg="sum").items():
        assert score > abs(added(signed, at.units[name])) >= 0


def test_signed_snip_is_the_slope_of_the_loss_in_the_units_scale() -> None:
    """Σ w·g = dL/dα for all weights of a unit times α, at α = 1, by autograd; statistics are the network's."""
    network = trained()
    at = scoring(network, (3, 8, 8))
    found = snip_signed(at, agg="sum", per_class=6)
    images, labels = at.sample(6)
    for name, unit in at.units.items():
        alpha = torch.ones((), requires_grad=True)
        weights = {weight: network.get_parameter(weight).detach() * alpha for weight in unit.weights}
        value = F.cross_entropy(torch.func.functional_call(network.eval(), weights, (images,)), labels)
        (slope,) = torch.autograd.grad(value, alpha)
        assert found[name] == pytest.approx(float(slope), rel=1e-3, abs=1e-7)
    assert any(score < 0 for score in found.values())
    assert snip_signed(at, per_class=6) == pytest.approx(
        {
            name: score / sum(network.get_parameter(w).numel() for w in at.units[name].weights)
            for name, score in found.items()
        }
    )


def test_what_normalisation_follows_has_no_signed_score() -> None:
    """Euler: where the loss does not depend on a layer's scale, w·g adds up to 0. So signed SNIP, with the sample's
    statistics, would rank rounding; group normalisation has no others.
    """
    at = scoring(resnet14().double(), (3, 8, 8))
    signed = gradients.sensitivity(weightwise(at), 10)
    for unit in at.units.values():
        for name in unit.weights:
            filters = signed[name].flatten(1)
            assert (filters.sum(1).abs() < 1e-3 * filters.abs().sum(1)).all()  # 0 but for BN's epsilon

    def block() -> nn.Module:
        return Add(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.GroupNorm(1, 4, eps=0.0)))

    grouped = seeded(lambda: Chain([block(), block()], 4))
    with pytest.raises(LotteryError, match="snip_signed: adds up to 0 in every unit; choose layer_criterion=snip"):
        snip_signed(scoring(grouped, (4, 6, 6)))


def test_grasp_of_a_unit_is_minus_its_squared_gradient() -> None:
    """Before batch normalisation g is homogeneous of degree -1 in its own layer's weights w and of 0 in all others',
    so w·Hg = -|g|² over a layer (Euler; Hw = -g).
    """
    network = resnet14().double()
    at = scoring(network, (3, 8, 8))
    found = grasp(at, agg="sum", per_class=6, temperature=1.0)
    images, labels = at.sample(6)
    network.train()
    losses = [F.cross_entropy(network(x), y) for x, y in zip(images.chunk(2), labels.chunk(2), strict=True)]
    (losses[0] + losses[1]).backward()
    for name, unit in at.units.items():
        slopes = [network.get_parameter(weight).grad for weight in unit.weights]
        squares = sum(float(slope.square().sum()) for slope in slopes if slope is not None)
        assert found[name] == pytest.approx(-squares, rel=1e-2)


@pytest.mark.parametrize("criterion", [snip, grasp, l1])
def test_the_score_of_a_unit_does_not_depend_on_the_other_candidates(criterion: UnitCriterion) -> None:
    at = scoring(resnet14(), (3, 8, 8))
    one = list(at.units)[2]
    alone = UnitScoring({one: at.units[one]}, at.network, at.without, at.sample, at.generator, at.shape)
    assert criterion(alone) == {one: criterion(at)[one]}


def test_l1_is_the_absolute_weight_and_goes_by_the_stage() -> None:
    network = scaled(0.5, -2, channels=3)
    at = scoring(network, (3, 4, 4))
    assert list(l1(at, agg="sum").values()) == pytest.approx([1.5, 6])
    assert list(l1(at).values()) == pytest.approx([1.5 / 9, 6 / 9])
    blocks = l1(scoring(resnet14(), (3, 8, 8)))  # He's initialisation: the wider the layer the smaller the weights
    assert max(blocks["stages.2.1"], 0) < blocks["stages.1.1"] < min(blocks["stages.0.0"], blocks["stages.0.1"])
    filters = l1(scoring(resnet14(), (3, 8, 8)), agg="filters")  # and the larger their sum over a filter
    assert max(filters["stages.0.0"], filters["stages.0.1"]) < filters["stages.1.1"] < filters["stages.2.1"]


def test_l1_of_the_authors_is_the_mean_over_filters_added_over_the_convolutions() -> None:
    """Two filters [1, -2] and [3, 4]: L1 3 and 7, mean 5; then two of 1x1 weights .5 and 1.5 each: 2."""
    layers = [mixing(torch.tensor(rows)) for rows in ([[1.0, -2.0], [3.0, 4.0]], [[0.5, 0.5], [1.5, 1.5]])]
    at = scoring(seeded(lambda: Chain([Add(nn.Sequential(*layers)), Add(mixing(torch.eye(2)))], 2)), (2, 4, 4))
    assert list(l1(at, agg="filters").values()) == [(3 + 7) / 2 + (1 + 3) / 2, 1]
    assert list(l1(at).values()) == [14 / 8, 2 / 4]


def test_random_scores_are_uniform_draws_of_the_generator() -> None:
    network = resnet14()
    first, again = random(scoring(network, (3, 8, 8))), random(scoring(network, (3, 8, 8)))
    assert first == again
    at = scoring(network, (3, 8, 8))
    orders = {tuple(sorted(scores, key=lambda name: scores[name])) for scores in (random(at) for _ in range(400))}
    assert len(orders) == 24  # of the 4! all turn up
    assert all(0 <= score < 1 for score in random(at).values())


# -- from the features -------------------------------------------------------------------------------------------------


def test_expect_abs_of_units_that_scale() -> None:
    """Units that add c times their input: (1 + c)|x|, and their branch |c||x|; in more than one piece."""
    at = scoring(scaled(1, -0.5, 0), (2, 4, 4))
    images, _ = at.sample(40)
    assert len(images) > 2 * PIECE
    size = float(images.abs().mean())
    assert list(expect_abs(at, 40).values()) == pytest.approx([2 * size, size, size])
    assert list(expect_abs(at, 40, of="branch").values()) == pytest.approx([size, size, 0])


def of_rank(*ranks: int, channels: int = 2, size: int = 6) -> Tensor:
    """Images whose channels have these ranks, one image a rank."""
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(len(ranks), channels, size, size, generator=generator, dtype=torch.float64)
    kept = torch.stack([(torch.arange(size) < rank).double() for rank in ranks])
    return (left * kept[:, None, None]) @ torch.randn(left.shape, generator=generator, dtype=torch.float64)


def test_hrank_of_maps_of_known_rank() -> None:
    """A unit that scales a map leaves its rank; one that takes it away leaves none."""
    images = of_rank(0, 2, 3, 5, 6, 6)
    at = scoring(scaled(0.5, 0, -1), (2, 6, 6), images)
    assert list(hrank(at, 2).values()) == pytest.approx([22 / 36, 22 / 36, 0])
    assert list(hrank(at, 2, relative=False).values()) == pytest.approx([22 / 6, 22 / 6, 0])
    assert list(hrank(at, 2, of="branch").values()) == pytest.approx([22 / 36, 0, 22 / 36])


def test_hrank_of_tokens_is_that_of_their_matrix() -> None:
    """[16 tokens, 6 channels] after a unit that leaves 4 of the channels: rank 4 of 6."""
    kept = (torch.arange(6) < 4).float().diag()
    at = scoring(chain([torch.zeros(6, 6), kept - torch.eye(6)], "tokens"), (6, 4, 4))
    assert list(hrank(at, relative=False).values()) == pytest.approx([6, 4])
    assert list(hrank(at).values()) == pytest.approx([1, 4 / 6])


@pytest.mark.parametrize("criterion", [expect_abs, hrank, pls, cka])
@pytest.mark.parametrize("shape", [(5, 8, 8), (8, 8, 4)])
def test_features_may_have_their_channels_last(criterion: UnitCriterion, shape: tuple[int, ...]) -> None:
    """As in Swin: the same scores as in the other layout; for images that are not square, too."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(shape[0], shape[0], generator=generator) for _ in range(3)]
    first, last = (criterion(scoring(chain(matrices, inside), shape)) for inside in ("maps", "channels last"))
    assert first == pytest.approx(last)


def test_hrank_needs_matrices() -> None:
    class Flat(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.units(x.mean((2, 3))))

    network = seeded(lambda: Flat([Add(nn.Linear(4, 4))], 4))
    with pytest.raises(LotteryError, match=r"hrank: unit 'units.0' gives \[4\], expected feature maps or tokens"):
        hrank(scoring(network, (4, 5, 5)))


def unbiased_cka(x: Tensor, y: Tensor) -> float:
    """From the HSIC of Song et al. 2012, equation 5, term by term."""

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n, ones = len(k), torch.ones(len(k), dtype=k.dtype)
        both = (k @ m).trace() + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (both - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    k, m = ((z @ z.T).fill_diagonal_(0) for z in (x.flatten(1), y.flatten(1)))
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def test_cka_is_one_minus_the_similarity_of_input_and_output() -> None:
    """Nothing changes by scaling or rotation; how much a projection onto one channel changes is known."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    onto = (torch.arange(3) < 1).float().diag()
    at = scoring(chain([torch.eye(3), turn - torch.eye(3), onto - torch.eye(3)]), (3, 4, 4))
    found = list(cka(at).values())
    assert found[:2] == pytest.approx([0, 0], abs=1e-6)
    images, _ = at.sample(10)
    before = torch.einsum("ij,njhw->nihw", 2 * turn.double(), images)
    assert found[2] == pytest.approx(1 - unbiased_cka(before, before[:, :1]), rel=1e-5)
    assert found[2] > 0.1


@pytest.mark.parametrize("per_class", [2, 40])
def test_cka_of_the_network_compares_the_last_layers_input_with_and_without_the_unit(per_class: int) -> None:
    """Kornblith's biased form by features, from the dense network in which the unit's parameters are zero: fewer images
    than features, and more, in several pieces.
    """
    network = trained()
    at = scoring(network, (3, 8, 8))
    images, _ = at.sample(per_class)

    def features(units: list[Unit]) -> Tensor:
        quiet = silenced(network.state_dict(), units, dict(network.named_parameters()))
        network.eval().fc.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
        torch.func.functional_call(network, quiet, (images,))
        return seen[-1] - seen[-1].mean(0)

    seen: list[Tensor] = []
    whole = features([])
    assert whole.shape == (CLASSES * per_class, 16)
    for name, score in cka(at, per_class, of="network").items():
        other = features([at.units[name]])
        similar = (whole.T @ other).square().sum() / ((whole.T @ whole).norm() * (other.T @ other).norm())
        assert score == pytest.approx(1 - float(similar), rel=1e-3)
        assert score > 1e-4


def test_cka_of_the_network_by_hand() -> None:
    """Mean pixels are what the last layer sees. Unit 0 keeps the first of two uncorrelated channels of variance 1: the
    network without it has both. |X'Y|² = n², |X'X| = n, |Y'Y| = √2 n: CKA 1/√2. Unit 1 doubles: CKA 1.
    """
    pixels = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    images = pixels[:, :, None, None].expand(4, 2, 3, 3).contiguous()
    at = scoring(chain([torch.diag(torch.tensor([0.0, -1.0])), torch.eye(2)]), (2, 3, 3), images)
    assert list(cka(at, 2, of="network").values()) == pytest.approx([1 - 0.5**0.5, 0], abs=1e-12)


def test_cka_needs_features_that_differ_and_four_images() -> None:
    with pytest.raises(LotteryError, match=r"cka: the features of unit 'units.1' are the same for all images"):
        cka(scoring(scaled(1, -1), (2, 4, 4)))
    with pytest.raises(ConfigError, match=r"method.criterion.per_class: got 1, expected at least 4 images in all"):
        cka(scoring(scaled(1), (2, 4, 4)), per_class=1)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pls_on_one_component_is_the_first_singular_vector(pool: str) -> None:
    """VIP = √p |u|, u the first left singular vector of X'Y (both standardised); a unit scores its features' mean."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(5, 5, generator=generator) for _ in range(3)]
    at = scoring(chain(matrices), (5, 4, 4))
    images, labels = at.sample(10)
    maps, columns = images, []
    for matrix in matrices:
        maps = maps + torch.einsum("ij,njhw->nihw", matrix.double(), maps)
        columns.append(maps.mean((2, 3)) if pool == "mean" else maps.amax((2, 3)))
    x, y = (z - z.mean(0) for z in (torch.cat(columns, 1), F.one_hot(labels).double()))
    u = torch.linalg.svd((x / x.std(0)).T @ (y / y.std(0)))[0][:, 0]
    expected = (15**0.5 * u.abs()).view(3, 5).mean(1)
    assert list(pls(at, components=1, pool=pool).values()) == pytest.approx(expected.tolist(), rel=3e-3)


@pytest.mark.parametrize("components", [1, 2, 4])
def test_importance_against_the_definition(components: int) -> None:
    """Column by column and component by component from scikit-learn's fit; what the labels are made of counts most."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 9))
    labels = (x[:, 4] > 0).astype(int) + (x[:, 4] > 1)
    y = np.eye(3)[labels]
    x[:, 7] = 3.0  # says nothing
    found = importance(x, y, components)
    fitted = PLSRegression(components).fit(x, y)
    for j in range(9):
        above = below = 0.0
        for a in range(components):
            w, t, q = fitted.x_weights_[:, a], fitted.x_scores_[:, a], fitted.y_loadings_[:, a]
            explained = float(t @ t) * float(q @ q)
            above += explained * float(w[j] ** 2) / float(w @ w)
            below += explained
        assert found[j] == pytest.approx((9 * above / below) ** 0.5, abs=1e-9)
    assert found.argmax() == 4
    assert found[7] == pytest.approx(0, abs=1e-12)
    assert np.square(found).mean() == pytest.approx(1)


def test_importance_takes_no_rounding_for_features() -> None:
    """Copies of a feature, and one that is constant but for rounding, add no second component."""
    generator = np.random.default_rng(0)
    feature, y = generator.normal(size=(30, 1)), np.eye(3)[generator.integers(0, 3, 30)]
    x = np.hstack([feature, 2 * feature, 0.1 + 1e-9 * generator.normal(size=(30, 1)), -feature])
    for components in (1, 2, 3):
        assert importance(x, y, components) == pytest.approx([(4 / 3) ** 0.5] * 2 + [0, (4 / 3) ** 0.5], abs=1e-6)


def test_pls_refuses_what_it_cannot_fit() -> None:
    at = scoring(scaled(1, 1), (2, 4, 4))
    for components in (0, 5):
        with pytest.raises(ConfigError, match=rf"criterion.components: got {components}, expected 1 to 4"):
            pls(at, components=components)
    with pytest.raises(LotteryError, match="pls: the units' features are the same for all images"):
        pls(scoring(scaled(-1, 1), (2, 4, 4)))


# -- from the outputs --------------------------------------------------------------------------------------------------


def log_probabilities(network: nn.Module, at: UnitScoring, unit: str | None, per_class: int) -> tuple[Tensor, Tensor]:
    """In evaluation mode, of the dense network in which the unit's parameters are zero (T6.1), and the labels."""
    parameters = dict(network.named_parameters())
    quiet = silenced(network.state_dict(), [at.units[unit]] if unit else [], parameters)
    images, labels = at.sample(per_class)
    with torch.no_grad():
        logits = torch.func.functional_call(network.eval(), quiet, (images,))
    return logits.double().log_softmax(1), labels


@pytest.mark.parametrize("per_class", [4, 40])
def test_kl_and_loss_are_those_of_a_silent_unit(per_class: int) -> None:
    network = trained()
    at = scoring(network, (3, 8, 8))
    p, labels = log_probabilities(network, at, None, per_class)
    rows = torch.arange(len(labels))
    divergences, losses = kl(at, per_class, "full_without"), loss(at, per_class)
    reverse = kl(at, per_class, "without_full")
    assert list(divergences) == list(reverse) == list(losses) == list(at.units)
    for unit in at.units:
        q, _ = log_probabilities(network, at, unit, per_class)
        assert divergences[unit] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
        assert reverse[unit] == pytest.approx(float((q.exp() * (q - p)).sum(1).mean()), rel=1e-4)
        assert losses[unit] == pytest.approx(float((p[rows, labels] - q[rows, labels]).mean()), rel=1e-3, abs=1e-6)


def test_kl_of_the_authors_is_that_of_the_network_without_the_unit_to_the_whole() -> None:
    """Logits (1 + ln 3, 1) with the unit and (1, 1) without: probabilities (3/4, 1/4) and (1/2, 1/2)."""

    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = Add(mixing(torch.tensor([[np.log(3), 0], [0, 0]])))

        def forward(self, x: Tensor) -> Tensor:
            return self.unit(x).mean((2, 3))

    at = scoring(Sure().double(), (2, 3, 3), torch.ones(6, 2, 3, 3))
    assert list(kl(at, 2, "without_full").values()) == pytest.approx([np.log(4 / 3) / 2])
    assert list(kl(at, 2, "full_without").values()) == pytest.approx([3 / 4 * np.log(3 / 2) + 1 / 4 * np.log(1 / 2)])


def test_a_unit_that_does_nothing_leaves_first() -> None:
    network = trained()
    with torch.no_grad():
        for name in ("stages.1.1.bn2.weight", "stages.1.1.bn2.bias"):
            network.get_parameter(name).zero_()
    at = scoring(network, (3, 8, 8))
    assert loss(at)["stages.1.1"] == pytest.approx(0, abs=1e-7)
    similar = (cka(at), cka(at, of="network"))
    for scores in (kl(at), kl(at, 10, "without_full"), *similar, expect_abs(at, of="branch"), snip(at)):
        assert min(scores, key=lambda name: scores[name]) == "stages.1.1"
        assert scores["stages.1.1"] == pytest.approx(0, abs=1e-7)
        assert sorted(scores.values())[1] > 1e-6


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ALL)
def test_scores_are_repeatable_and_leave_the_network_as_it_was(criterion: UnitCriterion) -> None:
    """The very network is offered, no copy: its mode may change, but no statistic, and no random number is drawn."""
    network = trained()
    offered = scoring(network, (3, 8, 8))
    before, chance = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()

    def scored() -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        return criterion(
            UnitScoring(offered.units, lambda: network.train(), offered.without, offered.sample, generator, (3, 8, 8))
        )

    scores = scored()
    assert list(scores) == list(offered.units)
    assert all(type(score) is float and np.isfinite(score) for score in scores.values())
    assert len(set(scores.values())) == 4
    assert torch.equal(torch.get_rng_state(), chance)
    if criterion not in (snip, grasp):  # normalise by the sample
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert scored() == scores
    assert criterion(scoring(network, (3, 8, 8))).keys() == scores.keys()


def test_statistics_that_nothing_has_changed_are_not_used() -> None:
    """At initialisation features are normalised by the sample, whatever the scale of the weights before; later they are
    normalised by the statistics of training.
    """
    network = resnet14()
    usual = expect_abs(scoring(network, (3, 8, 8)))
    with torch.no_grad():
        network.get_parameter("conv1.weight").mul_(1000)
    assert expect_abs(scoring(network, (3, 8, 8))) == pytest.approx(usual, rel=1e-2)
    norms = [module for module in settled_(network).modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training for norm in norms)
    assert not network.training
    assert not any(module.training for module in settled_(trained()).modules())


@pytest.mark.parametrize("criterion", ALL)
def test_a_vision_transformer_can_be_scored(criterion: UnitCriterion) -> None:
    """Attention and MLP sub-blocks, each by itself."""
    import timm

    options: dict[str, Any] = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 2}
    options["num_classes"] = CLASSES
    network = seeded(lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, **options))
    at = scoring(network, (3, 8, 8))
    assert list(at.units) == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    scores = criterion(at)
    assert list(scores) == list(at.units)
    assert all(np.isfinite(score) for score in scores.values())
    if criterion is not hrank:  # [5 tokens, 12 channels] of full rank, all
        assert len(set(scores.values())) == 4


def test_attention_of_torch_itself_can_be_scored() -> None:
    """Its weights (in_proj_weight) belong to no linear layer; GraSP differentiates twice, its fused kernels cannot."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    at = scoring(seeded(lambda: Chain([Add(Attention()), Add(Attention())], 8, "tokens")), (8, 3, 3))
    for criterion in (snip, snip_signed, grasp, l1):
        assert len(set(criterion(at).values())) == len(at.units) == 2
    assert all(any("in_proj_weight" in name for name in unit.weights) for unit in at.units.values())


@pytest.mark.parametrize("name", NAMES)
def test_configs(name: str) -> None:
    """Each gives the criterion of its name and says all its options, so that keys hold what they mean."""
    node = node_of(name)
    assert set(NAMES) == {criterion.__name__ for criterion in ALL}
    criterion = instantiated(node, "method.criterion")
    assert isinstance(criterion, partial)
    assert criterion.func.__name__ == name
    options = {option: node[option] for option in list(signature(criterion.func).parameters)[1:]}
    assert set(node) == {"_target_", "_partial_", *options}
    at = scoring(trained(), (3, 8, 8))
    assert criterion(at) == criterion.func(scoring(trained(), (3, 8, 8)), **options)
    of_authors = AUTHORS.get(name, {})
    assert options == {p.name: p.default for p in list(signature(criterion.func).parameters.values())[1:]} | of_authors


def node_of(name: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        return OmegaConf.to_container(compose(f"layer_criterion/{name}").method.criterion)  # type: ignore[return-value]


AUTHORS = {  # what the configs choose, as Jordao's public code does; functions default to what older configs mean
    "kl": {"direction": "without_full"}, "cka": {"of": "network"}, "pls": {"pool": "max"}, "l1": {"agg": "filters"},
}  # fmt: skip


def test_configurations_without_the_newer_options_mean_what_they_meant() -> None:
    """Their scores have the keys that they had, so the numbers must be the same."""
    at = scoring(trained(), (3, 8, 8))
    assert kl(at, per_class=6) == kl(at, per_class=6, direction="full_without") != kl(at, 6, "without_full")
    assert cka(at, per_class=6) == cka(at, per_class=6, of="unit") != cka(at, per_class=6, of="network")
    assert pls(at, per_class=6) == pls(at, per_class=6, pool="mean") != pls(at, per_class=6, pool="max")
    assert l1(at) == l1(at, agg="mean") != l1(at, agg="filters")


def test_scores_of_the_other_criteria_keep_their_keys() -> None:
    """The key of a unit's scores holds this version and the criterion's whole node."""
    sample: dict[str, Any] = {"per_class": 10}
    kept: dict[str, dict[str, Any]] = {
        "random": {}, "loss": sample, "snip": {"agg": "mean", **sample}, "snip_signed": {"agg": "mean", **sample},
        "grasp": {"agg": "mean", **sample, "temperature": 200.0}, "expect_abs": {**sample, "of": "output"},
        "hrank": {"per_class": 5, "of": "output", "relative": True},
    }  # fmt: skip
    assert VERSION == 1
    assert set(kept) | set(AUTHORS) == set(NAMES)
    for name, options in kept.items():
        (home,) = {each.__module__ for each in ALL if each.__name__ == name}
        assert node_of(name) == {"_target_": f"{home}.{name}", "_partial_": True, **options}


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        (snip, {"agg": "max"}, "agg: got 'max', expected one of mean, sum"),
        (snip_signed, {"agg": "max"}, "agg: got 'max', expected one of mean, sum"),
        (grasp, {"agg": "max"}, "agg: got 'max', expected one of mean, sum"),
        (l1, {"agg": "max"}, "agg: got 'max', expected one of filters, mean, sum"),
        (kl, {"direction": "both"}, "direction: got 'both', expected one of without_full, full_without"),
        (cka, {"of": "input"}, "of: got 'input', expected one of network, unit"),
        (pls, {"pool": "sum"}, "pool: got 'sum', expected one of max, mean"),
        (grasp, {"temperature": 0}, "temperature: got 0, expected a number > 0"),
        (expect_abs, {"of": "input"}, "of: got 'input', expected one of output, branch"),
        (hrank, {"of": "input"}, "of: got 'input', expected one of output, branch"),
        (pls, {"of": "input"}, "of: got 'input', expected one of output, branch"),
    ],
)
def test_options_that_do_not_exist(criterion: Callable[..., object], options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^method.criterion.{message}$"):
        criterion(scoring(resnet14(), (3, 8, 8)), **options)


def test_a_unit_without_weights_has_no_score_of_weights() -> None:
    at = scoring(scaled(1), (2, 4, 4))
    bare = {name: Unit(name, unit.modules, unit.whole, (), ()) for name, unit in at.units.items()}
    at = UnitScoring(bare, at.network, at.without, at.sample, at.generator, at.shape)
    with pytest.raises(LotteryError, match=r"unit 'units.0' has no convolution or linear weights to score"):
        l1(at)
