"""Criteria that look at gradients: SNIP, GraSP, SynFlow. One scoring each; the method repeats it as often as it likes.

All work on a private copy of the network, so its weights and normalisation statistics stay as they are. SNIP and GraSP
normalise by the sample's own statistics (at initialisation there are no others) but leave dropout and its kind out: the
scores depend on nothing but the weights, the mask and the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lottery.errors import ConfigError
from lottery.pruning.scoring import Scoring, in_steps, layers

_GRASP = {"signed": lambda score: score, "reversed": torch.neg, "magnitude": torch.abs}


def snip(at: Scoring, per_class: int = 10) -> dict[str, Tensor]:
    """|w · ∂L/∂w| of the mean cross-entropy: what removing the weight would change, to first order (Lee et al. 2019).

    One batch of `per_class` training images of each class. The authors' code masks biases too, and scores one draw of
    the weights but trains another, which here is the reinit control.
    """
    return {name: score.abs() for name, score in sensitivity(at, per_class).items()}


def sensitivity(at: Scoring, per_class: int = 10, by_sample: bool = True) -> dict[str, Tensor]:
    """w · ∂L/∂w of that loss: SNIP before the absolute value is taken.

    by_sample: batch normalisation takes the sample's statistics; else those that the network has
    """
    network, weights = _differentiable(at, by_sample)
    images, labels = at.sample(per_class)
    gradients = _gradients(F.cross_entropy(network(images), labels), list(weights.values()))
    return {name: w.detach() * g for (name, w), g in zip(weights.items(), gradients, strict=True)}


def grasp(at: Scoring, per_class: int = 10, temperature: float = 200.0, variant: str = "signed") -> dict[str, Tensor]:
    """w · Hg, with the gradient g and the Hessian H of the loss in the prunable weights (Wang et al. 2020, GraSP).

    Removing a weight changes |g|² by -2 w · Hg, to first order. The paper's score is S = -w · Hg, of which the
    *highest* go; here the lowest go first, so the score is -S. As in the authors' code `per_class` images of each class
    are taken in two halves, whose mean losses are added up, and logits are divided by `temperature`; their code also
    redraws the classifier before scoring.

    variant: "signed", the paper's; "magnitude", |S|; "reversed", S: those stay that the paper would prune first
    """
    if variant not in _GRASP:
        raise ConfigError.of("criterion.variant", variant, f"one of {', '.join(_GRASP)}")
    if not temperature > 0:
        raise ConfigError.of("criterion.temperature", temperature, "a number > 0")
    network, weights = _differentiable(at)
    images, labels = at.sample(per_class)
    with sdpa_kernel(SDPBackend.MATH), _TwiceDifferentiable():  # fused attention has no second derivative
        losses = [
            F.cross_entropy(network(half) / temperature, of)
            for half, of in zip(images.chunk(2), labels.chunk(2), strict=True)
        ]
        product = hessian_gradient(torch.stack(losses).sum(), list(weights.values()))
    return {name: _GRASP[variant](w.detach() * h) for (name, w), h in zip(weights.items(), product, strict=True)}


def hessian_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Hg, the Hessian times the gradient, both of `loss` in `parameters`; shaped as these.

    It is the gradient of g · g with one of the two held fixed.
    """
    gradients = _gradients(loss, parameters, create_graph=True)
    slope = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
    return _gradients(slope, parameters)


@in_steps(100)
def synflow(at: Scoring) -> dict[str, Tensor]:
    """|w · ∂R/∂w|, R being the summed outputs of the network with absolute weights, for one input of ones.

    Tanaka et al. 2020, who prune in 100 steps with new scores before each, and so does method `pai`. Needs no data. In
    float64, because products over many layers overflow float32, and in evaluation mode, with the statistics that the
    network has. As in their code biases and buffers become absolute too.
    """
    network, weights = _differentiable(at)
    network.to(_with_float64(next(iter(weights.values())).device), torch.float64).eval()
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            if value.is_floating_point():
                value.abs_()
    weights = layers(network, at)
    ones = torch.ones(1, *at.shape, dtype=torch.float64, device=next(iter(weights.values())).device)
    with _Unbounded():
        output = network(ones).sum()
    gradients = _gradients(output, list(weights.values()))
    return {name: (w.detach() * g).abs() for (name, w), g in zip(weights.items(), gradients, strict=True)}


class _TwiceDifferentiable(TorchFunctionMode):
    """Computes hard sigmoids by operations that have a second derivative; torch's kernel for them has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return (args[0] / 6 + 0.5).clamp(0, 1)
        return func(*args, **(kwargs or {}))


class _Unbounded(TorchFunctionMode):
    """ReLU6 is ReLU here: SynFlow's activations grow with depth, and at the bound nothing below has a gradient."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.relu6 or (func is F.hardtanh and (kwargs.get("min_val"), kwargs.get("max_val")) == (0, 6)):
            return F.relu(args[0])
        return func(*args, **kwargs)


def _differentiable(at: Scoring, by_sample: bool = True) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A private network in evaluation mode (`by_sample`: but for batch normalisation), its weights, none frozen."""
    network = at.network().eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train(by_sample)
    weights = layers(network, at)
    for weight in weights.values():
        weight.requires_grad_()
    return network, weights


def _gradients(loss: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """∂loss/∂parameters; zeros for a parameter that the forward pass does not use."""
    return torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _with_float64(device: torch.device) -> torch.device:
    """This device, or the CPU where it is one (Apple's GPU) that has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
