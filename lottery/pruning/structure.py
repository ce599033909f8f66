"""Whole filters: prune those with the lowest scores, and find the parameters that must be zero with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lottery.errors import ConfigError
from lottery.ticket import Mask


def normalised_by(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, str]:
    """Map each convolution's weight to the batch normalisation that takes its output directly: parameter -> module.

    Found by a forward pass of an image of zeros in evaluation mode, which changes no statistics. A convolution whose
    output first goes elsewhere has no entry.
    """
    feeds: dict[str, str] = {}
    made_by: dict[int, tuple[str, Tensor]] = {}  # by the output's id; outputs are kept alive, so ids stay unique

    def after_convolution(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made_by[id(output)] = name, output

    def before_norm(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made_by:
            feeds[f"{made_by[id(inputs[0])][0]}.weight"] = name

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd):
            handles.append(module.register_forward_hook(partial(after_convolution, name)))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(partial(before_norm, name)))
    was_training = network.training
    try:
        parameter = next(network.parameters())
        with torch.no_grad():
            network.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return feeds


def followers(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, str]:
    """Map parameters with one entry per filter of a convolution to that convolution's weight.

    They are its bias, and the scale and shift of the normalisation after it. They must be removed with a filter, which
    would otherwise continue to output these constants.
    """
    named = dict(network.named_parameters())
    found: dict[str, str] = {}
    norms = normalised_by(network, image_shape)
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd):
            weight = f"{name}.weight"
            parts = (f"{name}.bias", *(f"{norms[weight]}.{part}" for part in ("weight", "bias") if weight in norms))
            found |= {part: weight for part in parts if part in named}
    return found


def silent(network: nn.Module, mask: Mapping[str, Tensor], image_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return, for each parameter of `followers`, bool [filters]: False where the whole filter is pruned."""
    pairs = followers(network, image_shape).items()
    return {name: mask[weight].flatten(1).any(1) for name, weight in pairs if weight in mask}


def structured(mask: Mapping[str, Tensor]) -> bool:
    """Whether something is pruned, and in each layer only whole filters and whole input channels."""
    pruned = {name: kept for name, kept in mask.items() if not kept.all()}
    for kept in pruned.values():
        if kept.dim() < 2:
            return False
        filters, inputs = kept.flatten(1).any(1), kept.transpose(0, 1).flatten(1).any(1)
        lattice = filters.view(-1, 1) & inputs.view(1, -1)
        if not torch.equal(kept, lattice.view(*lattice.shape, *[1] * (kept.dim() - 2)).expand_as(kept)):
            return False
    return bool(pruned)


def lowest_filters(scores: Mapping[str, Tensor], density: float) -> Mask:
    """Return a mask without the int((1 - density) · filters) filters of lowest mean score in each convolution.

    Of equal scores the earlier filter goes first. Raises ConfigError where a tensor is not a convolution's weight, or
    the density leaves less than one filter of it.
    """
    kept = {}
    for name, score in scores.items():
        if score.dim() < 3:
            raise ConfigError(f"prunable.exclude: {name!r} is no convolution and has no filters; exclude it, too")
        gone = groups_to_remove(name, len(score), density, "filters")
        stay = without_lowest(score.double().flatten(1).mean(1), gone)
        kept[name] = stay.view(-1, *[1] * (score.dim() - 1)).expand(score.shape)
    return Mask(kept)


def groups_to_remove(name: str, groups: int, density: float, what: str) -> int:
    """Return int((1 - density) · groups) without rounding error. ConfigError where layer `name` would keep no group."""
    if density * groups < 1 - 1e-5:  # so that the least density, as rounded in the message, is allowed
        raise ConfigError.of("method.density", density, f"at least {1 / groups:.6g}: {name!r} has {groups} {what}")
    return int((1 - density) * groups + 1e-9)  # 1 - 0.8 is a little less than 0.2: of 5 groups, 1 should go


def without_lowest(values: Tensor, gone: int) -> Tensor:
    """Return bool [n], False for the `gone` lowest of the values [n]; of equal values the earlier go first."""
    stay = torch.ones_like(values, dtype=torch.bool)
    return stay.index_fill_(0, torch.sort(values, stable=True).indices[:gone], False)
