"""Whole filters: those of lowest score, which normalisation they feed, and what has to be zero with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lottery.errors import ConfigError
from lottery.ticket import Mask


def normalised_by(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, str]:
    """For each convolution's weight, the batch normalisation that takes its very output: parameter -> module name.

    Found by one forward pass of an image of zeros, in evaluation mode: no statistic changes. A convolution whose output
    goes elsewhere first has none.
    """
    feeds: dict[str, str] = {}
    made_by: dict[int, tuple[str, Tensor]] = {}  # an output's identity: the convolution; kept alive, or ids recur

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def after_convolution(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            made_by[id(output)] = name, output

        def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            convolution, _ = made_by.get(id(inputs[0]), ("", None))
            if convolution:
                feeds[f"{convolution}.weight"] = name

        if isinstance(module, _ConvNd):
            return module.register_forward_hook(after_convolution)
        return module.register_forward_pre_hook(before_norm)

    modules = [(n, m) for n, m in network.named_modules() if isinstance(m, _ConvNd | _BatchNorm)]
    handles = [watch(name, module) for name, module in modules]
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
    """What goes with a whole filter: parameter -> the convolution's weight, whose filters are its entries.

    The convolution's own bias, and scale and shift of the normalisation that it feeds. A removed filter would otherwise
    go on as these constants.
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
    """These parameters -> bool [filters], False where the whole filter is pruned."""
    pairs = followers(network, image_shape).items()
    return {name: mask[weight].flatten(1).any(1) for name, weight in pairs if weight in mask}


def structured(mask: Mapping[str, Tensor]) -> bool:
    """Whether something is pruned, and in each layer whole filters and whole input channels alone."""
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
    """The mask without the filters of lowest mean score: int((1 - density) · filters) of each convolution.

    Of equal scores the earlier filter goes first. ConfigError where a tensor is no convolution's weight, or the density
    leaves it less than one filter.
    """
    kept = {}
    for name, score in scores.items():
        if score.dim() < 3:
            raise ConfigError(f"prunable.exclude: {name!r} is no convolution and has no filters; exclude it, too")
        filters = score.shape[0]
        if density * filters < 1 - 1e-5:
            expected = f"at least {1 / filters:.6g}: {name!r} has {filters} filters"
            raise ConfigError.of("method.density", density, expected)
        gone = int((1 - density) * filters + 1e-9)  # 1 - 0.8 is a little less than 0.2: of 5 filters, 1 should go
        means = score.double().flatten(1).mean(1)
        stay = torch.ones(filters, dtype=torch.bool)
        stay[torch.sort(means, stable=True).indices[:gone]] = False
        kept[name] = stay.view(-1, *[1] * (score.dim() - 1)).expand(score.shape)
    return Mask(kept)
