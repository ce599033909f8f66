"""The fast gradient sign method, on linear models in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from lottery.config.data import Data
from lottery.data.order import Split
from lottery.data.tensors import Arrays, TensorDataset
from lottery.errors import ConfigError
from lottery.probes.adversarial import FGSM, attack, margin
from lottery.training.evaluate import evaluate


@pytest.fixture
def images() -> Tensor:
    return torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def linear() -> nn.Sequential:
    """Two classes; the logits' difference is (w1 - w0)·x."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network.eval()


def moved(network: nn.Module, images: Tensor, labels: Tensor, epsilon: float, scaled=torch.clone) -> Tensor:
    [(found, kept)] = attack(network, [(images.clone(), labels)], scaled, epsilon)
    assert torch.equal(kept, labels)
    return found


@pytest.mark.parametrize("epsilon", [8 / 255, 0.3])
def test_closed_form_on_a_linear_model(images: Tensor, linear: nn.Sequential, epsilon: float) -> None:
    """The loss grows along w_other - w_label, whatever the image: each pixel moves by epsilon that way."""
    labels = torch.arange(40) % 2
    away = linear[1].weight[1 - labels] - linear[1].weight[labels]
    expected = (images + epsilon * away.sign().view_as(images)).clamp(0, 1)
    found = moved(linear, images, labels, epsilon)
    torch.testing.assert_close(found, expected.detach())
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((found == 0) | (found == 1)).any()  # clipping took place


def test_margins_shrink_by_epsilon_times_the_l1_norm(linear: nn.Sequential) -> None:
    """Far from 0 and 1, the label's margin falls by exactly epsilon * |w_label - w_other|_1, so accuracy is known."""
    generator = torch.Generator().manual_seed(2)
    images = 0.5 + 0.2 * (torch.rand(200, 1, 4, 4, generator=generator) - 0.5)
    weight, bias = (parameter.detach().double() for parameter in linear[1].parameters())
    margin = (images.flatten(1).double() @ (weight[0] - weight[1])) + bias[0] - bias[1]
    labels = (margin < 0).long()  # all are right before the attack
    epsilon = float(margin.abs().median() / (weight[0] - weight[1]).abs().sum())
    assert epsilon < 0.4
    _, accuracy = evaluate(linear, attack(linear, [(images, labels)], torch.clone, epsilon))
    expected = (margin.abs() > epsilon * (weight[0] - weight[1]).abs().sum()).double().mean()
    assert accuracy == pytest.approx(float(expected), abs=1 / 200 + 1e-9)
    assert 0.4 < accuracy < 0.6


@pytest.mark.parametrize("scaling", ["unit", "standard", "l2"])
def test_epsilon_is_in_pixels_whatever_the_scaling(scaling: str, linear: nn.Sequential) -> None:
    """What the network sees is the scaling of pixels that are at most epsilon away: 51/255 is a fifth."""
    generator = torch.Generator().manual_seed(3)
    raw, labels = torch.randint(60, 180, (8, 1, 4, 4), generator=generator).byte(), torch.arange(8) % 2
    data = Arrays("made", raw, labels, raw, labels).dataset(
        Data("none", "made", 2, [1, 4, 4], scaling, [0.3], [0.2]), Split.draw(8, 0, None, 0)
    )
    assert isinstance(data, TensorDataset)
    seen: list[Tensor] = []

    def scaled(pixels: Tensor) -> Tensor:
        seen.append(pixels.detach().clone())
        return data.scaled(pixels)

    [(inputs, _)] = attack(linear, data.pixels("test", 8), scaled, 0.2)
    before, after = seen
    torch.testing.assert_close((after - before).abs(), torch.full_like(after, 0.2))
    torch.testing.assert_close(inputs, data.scaled(after))


def test_the_margin_is_the_cross_entropys() -> None:
    scores = 3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(50) % 7
    torch.testing.assert_close(softplus(margin(scores, labels)), cross_entropy(scores, labels, reduction="none"))


def test_a_network_that_is_very_sure_is_not_robust_for_that(images: Tensor) -> None:
    """Confidence of 1 in float32, margins of 20 to 80: the direction is still that of the gradient in float64.

    The runner-up takes nearly all of what is left: away from the label and towards that. The cross-entropy's own
    gradient in float32 has forgotten the label there.
    """
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(3, 16, generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(30 * weight)
    scores = network(images).detach()
    first, second = scores.topk(2).indices.T
    gaps = scores.topk(3).values.diff(dim=1).abs().amin(1)
    clear = (gaps > 20) & (scores.topk(2).values.diff(dim=1)[:, 0].abs() < 80)
    assert clear.sum() > 10
    images, first, second = images[clear], first[clear], second[clear]
    expected = (images + 0.05 * (weight[second] - weight[first]).sign().view_as(images)).clamp(0, 1)
    assert float((moved(network, images, first, 0.05) - expected).abs().max()) < 1e-6
    start = images.clone().requires_grad_()
    cross_entropy(network(start), first, reduction="sum").backward()
    assert not torch.equal(start.grad.sign().flatten(1), (weight[second] - weight[first]).sign())


def test_a_pixel_that_does_not_matter_stays(images: Tensor, linear: nn.Sequential) -> None:
    with torch.no_grad():
        linear[1].weight[:, 3] = 0
    labels = torch.zeros(40, dtype=torch.long)
    found = moved(linear, images, labels, 0.1)
    assert torch.equal(found.flatten(1)[:, 3], images.flatten(1)[:, 3])


def test_it_hurts_at_least_as_much_as_noise_of_the_same_size(images: Tensor, linear: nn.Sequential) -> None:
    labels = torch.arange(40) % 2
    sign = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(4)) * 2.0 - 1
    attacked, _ = evaluate(linear, [(moved(linear, images, labels, 0.1), labels)])
    noisy, _ = evaluate(linear, [((images + 0.1 * sign).clamp(0, 1), labels)])
    assert attacked > noisy


def test_the_network_keeps_its_weights_and_has_no_gradients(images: Tensor, linear: nn.Sequential) -> None:
    before = [parameter.detach().clone() for parameter in linear.parameters()]
    moved(linear, images, torch.zeros(40, dtype=torch.long), 0.1)
    for parameter, value in zip(linear.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("epsilon", [0.0, 8.0, -0.1])
def test_epsilon_out_of_range(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"^epsilon: got .*, expected a number > 0 and ≤ 1, of pixels in \[0, 1\]"):
        FGSM(epsilon=epsilon)


def test_limit_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"^limit: got 0, expected a number of test images ≥ 1, or null for all$"):
        FGSM(limit=0)
