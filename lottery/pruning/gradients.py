"""Criteria that look at gradients: SNIP, GraSP, SynFlow. Each scores once; a method may repeat it.

All work on a private copy of the network, whose weights and normalisation statistics therefore do not change. By
default SNIP and GraSP normalise by the sample's statistics; dropout and the like are off. So scores depend on the
weights, the mask and the sample alone.
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


def snip(at: Scoring, per_class: int = 10, statistics: str = "sample") -> dict[str, Tensor]:
    """Score by |w · ∂L/∂w| of the mean cross-entropy: the first-order effect of removing the weight (Lee et al. 2019).

    Uses one batch of `per_class` training images of each class. The authors' code also masks biases, and scores one
    draw of the weights but trains another, which is the reinit control here.

    statistics: of batch normalisation: "sample", those of the batch; "network", the network's, as in both released
                codes, which score in evaluation mode (at initialisation means of 0 and variances of 1)
    """
    if statistics not in ("sample", "network"):
        raise ConfigError.of("criterion.statistics", statistics, "one of sample, network")
    return {name: score.abs() for name, score in sensitivity(at, per_class, statistics == "sample").items()}


def sensitivity(at: Scoring, per_class: int = 10, by_sample: bool = True) -> dict[str, Tensor]:
    """Return w · ∂L/∂w of SNIP's loss.

    by_sample: batch normalisation uses the sample's statistics, otherwise the network's
    """
    network, weights = _differentiable(at, by_sample)
    images, labels = at.sample(per_class)
    gradients = _gradients(F.cross_entropy(network(images), labels), list(weights.values()))
    return {name: w.detach() * g for (name, w), g in zip(weights.items(), gradients, strict=True)}


def grasp(
    at: Scoring,
    per_class: int = 10,
    temperature: float = 200.0,
    variant: str = "signed",
    halves: str = "balanced",
    redraw: bool = False,
) -> dict[str, Tensor]:
    """Score by w · Hg, with gradient g and Hessian H of the loss in the prunable weights (Wang et al. 2020, GraSP).

    Removing a weight changes |g|² by -2 w · Hg, to first order. The paper prunes the *highest* of S = -w · Hg; here the
    lowest scores go first, so the score is -S. `per_class` images of each class are split into two halves, each
    normalised by its own statistics, and their mean losses are added; logits are divided by `temperature`.

    variant: "signed": the paper's; "magnitude": |S|; "reversed": S, which keeps the weights that the paper prunes first
    halves:  "balanced": every class in both; "by_class": the lower and the upper half of the classes, as in the
             authors' code, which sorts the images by class
    redraw:  only for scoring, draw the linear layers anew (Glorot's normal distribution), as in the authors' code
    """
    if variant not in _GRASP:
        raise ConfigError.of("criterion.variant", variant, f"one of {', '.join(_GRASP)}")
    if halves not in ("balanced", "by_class"):
        raise ConfigError.of("criterion.halves", halves, "one of balanced, by_class")
    if not temperature > 0:
        raise ConfigError.of("criterion.temperature", temperature, "a number > 0")
    network, weights = _differentiable(at)
    for module in network.modules() if redraw else ():
        if isinstance(module, nn.Linear):  # N(0, 2 / (fan_in + fan_out)), drawn on the CPU
            deviation = (2 / sum(module.weight.shape)) ** 0.5
            drawn = torch.empty(module.weight.shape).normal_(0.0, deviation, generator=at.generator)
            module.weight.data.copy_(drawn)
    images, labels = at.sample(per_class)
    if halves == "by_class":
        order = labels.argsort(stable=True)
        images, labels = images[order], labels[order]
    with sdpa_kernel(SDPBackend.MATH), _TwiceDifferentiable():  # fused attention has no second derivative
        halved = zip(images.chunk(2), labels.chunk(2), strict=True)
        losses = [F.cross_entropy(network(half) / temperature, of) for half, of in halved]
        product = hessian_gradient(torch.stack(losses).sum(), list(weights.values()))
    return {name: _GRASP[variant](w.detach() * h) for (name, w), h in zip(weights.items(), product, strict=True)}


def hessian_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return Hg, the Hessian times the gradient of `loss`, both in `parameters`; shaped as these.

    Hg is the gradient of g · g with one of the two held fixed.
    """
    gradients = _gradients(loss, parameters, create_graph=True)
    slope = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
    return _gradients(slope, parameters)


@in_steps(100)
def synflow(at: Scoring) -> dict[str, Tensor]:
    """Score by |w · ∂R/∂w|, where R sums the outputs of the network with absolute weights for one input of ones.

    Tanaka et al. 2020 prune in 100 steps with new scores before each, and so does method `pai`. No data are needed.
    Runs in float64, as products over many layers overflow float32, and in evaluation mode, with the network's
    statistics. As in their code, biases and buffers become absolute too.
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
    """A mode that computes hard sigmoids by operations with a second derivative, which torch's own kernel lacks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return (args[0] / 6 + 0.5).clamp(0, 1)
        return func(*args, **(kwargs or {}))


class _Unbounded(TorchFunctionMode):
    """A mode that computes ReLU6 as ReLU: SynFlow's activations grow with depth, and the bound passes no gradient.

    Batch and instance normalisation without running statistics use mean 0 and variance 1, as a new layer has. With the
    single input's statistics their outputs would add up to a constant, which has no gradient.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.relu6 or (func is F.hardtanh and (kwargs.get("min_val"), kwargs.get("max_val")) == (0, 6)):
            return F.relu(args[0])
        running_mean = args[1] if len(args) > 1 else kwargs.get("running_mean")
        if func in (F.batch_norm, F.instance_norm) and running_mean is None:
            return _affine(*args, **kwargs)
        return func(*args, **kwargs)


def _affine(
    input: Tensor, running_mean: None = None, running_var: None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = True, momentum: float = 0.1, eps: float = 1e-5, **kwargs: Any,
) -> Tensor:  # fmt: skip
    zeros = input.new_zeros(input.shape[1])
    return F.batch_norm(input, zeros, zeros + 1, weight, bias, training=False, eps=eps)


def _differentiable(at: Scoring, by_sample: bool = True) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return a private network in evaluation mode and its weights, none frozen.

    With `by_sample`, batch normalisation is in training mode.
    """
    network = at.network().eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train(by_sample)
    weights = layers(network, at)
    for weight in weights.values():
        weight.requires_grad_()
    return network, weights


def _gradients(loss: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Return ∂loss/∂parameters; zeros for a parameter that the forward pass does not use."""
    return torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _with_float64(device: torch.device) -> torch.device:
    """Return this device, or the CPU if the device (Apple's GPU) has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
