"""`variant=repo` beside the released code (OPTML-Group/BiP), whose own trainer made the numbers here.

It ran on this network and these inputs. Its loop needs gradients that are set to zero rather than to None, as torch did
before version 2, and had them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lottery.config import Optim
from lottery.data.dataset import Batch
from lottery.methods.bip import BiP
from lottery.methods.bip_released import moved_by
from lottery.schedule import LearningRate
from lottery.stages.lab import Lab
from lottery.state import StateRef
from lottery.ticket import Mask, Ticket
from lottery.training.phases import Phase
from lottery.training.progress import Progress
from lottery.training.search import ScoreSearch

# Both optimizers: SGD at 0.1, momentum 0.9, weight decay 0.01. (norm, last entry) of each tensor after so many steps.
RELEASED = {
    ("unstructured", 0.25, 0.5, 1): {
        "conv1.weight": (2.0848, 0.0968), "bn1.weight": (2.1322, 0.8884), "bn1.bias": (0.7688, 0.3693),
        "bn1.running_var": (1.6169, 0.7644), "conv2.weight": (5.9766, 0.3604), "conv2.bias": (0.9708, -0.0952),
        "bn2.weight": (2.8975, 0.5159), "bn2.bias": (0.975, -0.4067), "bn2.running_mean": (0.529, 0.0445),
        "bn2.running_var": (2.463, 0.7801), "fc.weight": (6.3, 0.2297), "fc.bias": (1.1705, -0.485),
    },
    ("unstructured", 0.25, 0.5, 12): {
        "conv1.weight": (1.9103, 0.0527), "bn1.weight": (1.8973, 0.8468), "bn1.bias": (1.0672, 0.3488),
        "bn1.running_var": (2.5812, 1.2295), "conv2.weight": (5.0145, 0.3006), "conv2.bias": (0.8677, -0.0851),
        "bn2.weight": (1.1582, -0.0701), "bn2.bias": (0.9139, -0.4982), "bn2.running_mean": (2.2671, -0.2313),
        "bn2.running_var": (4.6319, 0.5703), "fc.weight": (4.7098, 0.1883), "fc.bias": (1.156, -0.4632),
    },
    ("filter", 0.5, 0.001, 6): {
        "conv1.weight": (2.2913, 0.0147), "bn1.weight": (2.0726, 0.7359), "bn1.bias": (0.869, -0.1601),
        "bn1.running_var": (2.6153, 0.9125), "conv2.weight": (70.4782, 0.2735), "conv2.bias": (0.9383, -0.0921),
        "bn2.weight": (2.3799, 0.4865), "bn2.bias": (0.9428, -0.3954), "bn2.running_mean": (61.6979, -0.0985),
        "bn2.running_var": (2728.6321, 0.1051), "fc.weight": (6.0124, 0.2202), "fc.bias": (1.0787, -0.4806),
    },
}  # fmt: skip


def wave(shape: tuple[int, ...], phase: float, scale: float) -> Tensor:
    """Numbers in [-scale, scale] that need no generator."""
    size = torch.Size(shape).numel()
    return (scale * torch.sin(torch.arange(size, dtype=torch.float64) * 1.7 + phase)).float().view(shape)


class Waves:
    """Batches of 16 images, made of waves."""

    def __init__(self, first: int) -> None:
        self.first = first

    def batch(self, step: int) -> Batch:
        return wave((16, 1, 8, 8), self.first + step, 2.0), torch.arange(16) % 10


@pytest.fixture
def begun(make_lab: Callable[..., Lab]) -> Callable[..., ScoreSearch]:
    """The search at its first step, in the network of tiny_networks.convolutional without dropout."""

    def make(pattern: str, density: float, inverse_gamma: float, lr: float = 0.1, decay: float = 0.01) -> ScoreSearch:
        lab = make_lab("optim.momentum=0.9", f"prunable.exclude={'[fc]' if pattern == 'filter' else '[]'}")
        network = lab.network(0)
        network.dropout.p = 0.0
        with torch.no_grad():
            for number, (name, parameter) in enumerate(network.named_parameters()):
                parameter.copy_(wave(parameter.shape, number, 0.5))
                if name in ("bn1.weight", "bn2.weight"):
                    parameter += 1
        optim, rate = Optim("sgd", lr, 0.9, weight_decay=decay), LearningRate("constant", lr, 100, gamma=1.0)
        method = BiP(density, pattern, "repo", "100it", gamma=1 / inverse_gamma if inverse_gamma else None)
        search = replace(method.search(lab), optim=optim, lr=rate)
        recipe = replace(lab.recipe, total=100, optim=optim, lr=rate)
        shapes = lab.initial.mask.shapes
        ticket = Ticket(Mask.ones(shapes), StateRef.of(network.state_dict()), 0, 0, 100, recipe=recipe)
        module = ScoreSearch(search, network, ticket, recipe, lab.data_on, Progress(0))
        module.prepare(module.configure_optimizers())
        module.network.train()
        module.stream, module.upper = Waves(200), Waves(100)  # type: ignore[assignment]
        return module

    return make


@pytest.mark.parametrize(("pattern", "density", "inverse_gamma", "steps"), RELEASED)
def test_the_numbers_are_those_of_the_released_code(
    begun: Callable[..., ScoreSearch], pattern: str, density: float, inverse_gamma: float, steps: int
) -> None:
    module = begun(pattern, density, inverse_gamma)
    module.advance(steps)
    state = module.network.state_dict()
    for name, expected in RELEASED[pattern, density, inverse_gamma, steps].items():
        found = float(state[name].double().norm()), float(state[name].flatten()[-1])
        assert found == pytest.approx(expected, rel=1e-3, abs=2e-4), name
    assert int(state["bn1.num_batches_tracked"]) == 4 * steps


def test_scores_and_weights_are_one_storage(begun: Callable[..., ScoreSearch]) -> None:
    module = begun("unstructured", 0.25, 0.0)
    module.advance(2)
    assert [s.data_ptr() for s in module.scores] == [w.data_ptr() for w in module.weights]


def test_decay_acts_on_shared_tensors_twice_in_each_optimizer(begun: Callable[..., ScoreSearch]) -> None:
    """Without a gradient: 1 + 2 entries step in the first step, and 2 + 2 later; a bias has 1 + 1 in every step."""
    module = begun("unstructured", 0.25, 0.0, decay=0.5)
    module.loss_of = lambda batch: sum((0 * z * z).sum() for z in module.effective)  # type: ignore[method-assign, misc]
    state = module.network.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    module.update(0)
    kept, once = module.found()["fc.weight"], 1 - 0.1 * 0.5
    torch.testing.assert_close(state["fc.weight"], before["fc.weight"] * once**3)
    torch.testing.assert_close(state["fc.bias"], before["fc.bias"] * once**2)
    assert kept.any()


def test_the_released_code_reads_the_options_of_the_weights() -> None:
    """SGD whatever moves the weights; at their peak rate, a tenth after half, a hundredth after three quarters."""
    optim, rate = moved_by(Phase("adam", lr=0.04, momentum=0.8, weight_decay=0.3), 12)
    assert optim == Optim("sgd", 0.04, 0.8, weight_decay=0.3)
    assert [rate(step) for step in range(12)] == pytest.approx([0.04] * 6 + [0.004] * 3 + [0.0004] * 3)
