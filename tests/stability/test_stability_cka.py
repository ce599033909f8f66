"""CKA: invariances, agreement of its forms, unbiasedness of the minibatch estimator; features by hooks."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from lottery.errors import LotteryError
from lottery.stability.cka import CKA, gram, inner_products, linear_cka, seen


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka(x: Tensor, y: Tensor, batch: int | None = None) -> float | None:
    size = len(x) if batch is None else batch
    estimator = CKA([("x", "y")])
    for a, b in zip(x.split(size), y.split(size), strict=True):
        estimator.add({"x": gram(a)}, {"y": gram(b)})
    return estimator.result()["x", "y"]


def biased_cka(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. 2019, equation 4, by features: the form that the three-regime study takes."""
    a, b = x - x.mean(0), y - y.mean(0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=9))[0]


@pytest.mark.parametrize("measure", [cka, biased_cka])
def test_invariances(measure: object) -> None:
    """Methods.md 7.6: 1 with itself; the same after rotation, isotropic scaling and shifts, to 1e-12."""
    assert callable(measure)
    x, y = normal(60, 7), normal(60, 7) + 0.5 * normal(60, 7, seed=1)
    assert measure(x, x) == pytest.approx(1, abs=1e-14)
    expected = measure(x, y)
    for changed in (x @ rotation(7), -37 * x, x + 100 * normal(7, seed=3)):
        assert measure(changed, y) == pytest.approx(expected, abs=1e-12)
        assert measure(x, changed) == pytest.approx(1, abs=1e-12)
    assert measure(x * torch.arange(1, 8), y) != pytest.approx(expected, abs=1e-3)  # an anisotropic one counts


def test_the_unbiased_form_is_the_sum_over_distinct_images() -> None:
    """HSIC by its definition as a U-statistic over ordered quadruples (Song et al. 2012, equation 4)."""
    from itertools import permutations

    x, y = normal(6, 2), normal(6, 3, seed=1)
    k, m = x @ x.T, y @ y.T
    terms = [float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])) for i, j, q, r in permutations(range(6), 4)]
    expected = sum(terms) / len(terms)
    assert float((gram(x) * gram(y)).sum()) / (6 * 3) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("widths", [(5, 8), (40, 50)])
def test_gram_and_feature_form_agree(widths: tuple[int, int]) -> None:
    x, y = normal(20, widths[0]), normal(20, widths[1], seed=1)
    k, m = inner_products(x), inner_products(y)
    gram_form = float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())
    assert biased_cka(x, y) == pytest.approx(gram_form, abs=1e-12)
    assert linear_cka(x, y) == pytest.approx(gram_form, abs=1e-12)


def test_unrelated_features_are_at_zero_but_for_the_biased_form() -> None:
    """Methods.md 7.6: independent Gaussian features, n = 50, d = 8: biased about .1. Without bias 0 on average."""
    pairs = [(normal(50, 8, seed=2 * k), normal(50, 8, seed=2 * k + 1)) for k in range(100)]
    biased, unbiased = ([measure(x, y) for x, y in pairs] for measure in (biased_cka, cka))
    assert sum(biased) / 100 == pytest.approx(0.13, abs=0.04)
    assert abs(sum(unbiased) / 100) < 0.01
    assert min(unbiased) < 0


def test_of_many_images_both_forms_agree() -> None:
    """So thresholds that were read off biased values (docs/methods/stability.md) hold for ours."""
    x = normal(2000, 10)
    y = x + 0.3 * normal(2000, 10, seed=1)
    assert cka(x, y, 250) == pytest.approx(biased_cka(x, y), abs=2e-3)


def test_batches_estimate_what_the_whole_has() -> None:
    x = normal(4096, 6)
    y = x @ normal(6, 6, seed=1) + normal(4096, 6, seed=2)
    whole = cka(x, y)
    for batch in (16, 64, 512):
        assert cka(x, y, batch) == pytest.approx(whole, abs=0.02)
    small = sum(biased_cka(a, b) for a, b in zip(x.split(16), y.split(16), strict=True)) / 256
    assert abs(small - whole) > 0.03  # which the biased form does not


def test_wide_features_are_taken_in_parts() -> None:
    x = normal(8, 3, 60, 60)
    flat = x.flatten(1) - x.flatten(1).mean(0)
    torch.testing.assert_close(inner_products(x), flat @ flat.T)
    assert inner_products(x.float()).dtype == torch.float64


def test_constant_features_have_no_cka() -> None:
    assert cka(torch.ones(10, 3), normal(10, 3)) is None
    assert linear_cka(torch.ones(10, 3), normal(10, 3)) is linear_cka(normal(2, 3), torch.ones(2, 3)) is None
    assert CKA([("a", "b")]).result() == {("a", "b"): None}


def test_small_batches_are_refused() -> None:
    with pytest.raises(LotteryError, match="a batch of 3 images, expected at least 4"):
        gram(normal(3, 2))


# -- features ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(OrderedDict(fc=nn.Linear(4, 4), relu=nn.ReLU(inplace=True)))
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.block(self.block(x)))


def test_outputs_are_seen_before_they_are_overwritten_and_hooks_are_removed() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(OrderedDict(fc=nn.Linear(4, 4), relu=nn.ReLU(inplace=True))), torch.randn(5, 4)
    found = seen(net, ["fc", "relu"], x, torch.clone)
    torch.testing.assert_close(found["fc"], (x @ net.fc.weight.T + net.fc.bias).detach())
    torch.testing.assert_close(found["relu"], found["fc"].relu())
    assert (found["fc"] < 0).any()
    assert not net.fc._forward_hooks
    assert net.training


def test_a_layer_that_runs_twice_counts_as_its_features_side_by_side() -> None:
    net, x = Net().eval(), normal(6, 4).float()
    first = net.block.fc(x)
    second = net.block.fc(first.relu())
    found = seen(net, ["block.fc"], x, gram)
    torch.testing.assert_close(found["block.fc"], gram(torch.cat((first, second), 1)), rtol=1e-5, atol=1e-6)


def test_networks_are_compared_batch_by_batch_in_evaluation_mode() -> None:
    """A network with itself: 1 for all layers; with its weights rotated: 1 at this layer; with another one: less."""
    torch.manual_seed(0)
    one, turned, other = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 5)
    turned.load_state_dict({"weight": rotation(5).float() @ one.weight, "bias": torch.randn(5)})
    nets = [nn.Sequential(OrderedDict(fc=fc, drop=nn.Dropout(0.9))).train() for fc in (one, turned, other)]
    found = []
    for net in nets:
        estimator = CKA([("fc", "fc"), ("drop", "fc")])
        for images in normal(64, 6).float().split(16):
            estimator.add(*(seen(of, ["fc", "drop"], images, gram) for of in (nets[0], net)))
        assert estimator.batches == 4
        found.append(estimator.result())
    assert found[0] == {("fc", "fc"): pytest.approx(1), ("drop", "fc"): pytest.approx(1)}
    assert found[1]["fc", "fc"] == pytest.approx(1, abs=1e-5)
    assert found[2]["fc", "fc"] < 0.9  # type: ignore[operator]


def test_layers_that_cannot_be_seen() -> None:
    net = Net()
    with pytest.raises(LotteryError, match=r"no module 'block\.fx'.*'block\.fc'"):
        seen(net, ["block.fx"], torch.ones(4, 4), gram)
    with pytest.raises(LotteryError, match="does not use unused"):
        seen(net, ["unused"], torch.ones(4, 4), gram)
    recurrent = nn.Sequential(OrderedDict(lstm=nn.LSTM(4, 2)))
    with pytest.raises(LotteryError, match="lstm puts out tuple"):
        seen(recurrent, ["lstm"], torch.ones(5, 4), gram)
    assert not recurrent.lstm._forward_hooks
