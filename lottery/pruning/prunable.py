"""Which parameters of a network may be pruned, and the name patterns that select among them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lottery.errors import ConfigError

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable(network: nn.Module, exclude: Sequence[str] = ()) -> dict[str, torch.Size]:
    """Return the parameters that may be pruned: names -> shapes, in the order of the network's modules.

    These are the weights of convolutions, linear layers and attention projections, never biases, normalisation,
    embeddings or a weight tied to an embedding. `exclude` holds fnmatch patterns (`output`, `*shortcut*`) for names of
    modules or parameters. ConfigError if a pattern fits nothing, if nothing is left, if a layer computes with other
    weights than its parameter, or if a weight left has two names in the state_dict (a mask covers only one).
    """
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    weights = dict(_weights(network))
    excluded = {name for pattern in patterns for name in matching(pattern, weights, "prunable.exclude")}
    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    left = {name: w for name, w in weights.items() if name not in excluded and id(w) not in embeddings}
    if not left:
        raise ConfigError.of("prunable.exclude", patterns, "at least one convolution or linear layer to be left")
    # A layer that standardises its weight computes with other weights, in which pruned ones are not zero.
    if standardised := [name for name in left if not _uses_weight_itself(network.get_submodule(module_of(name)))]:
        first, more = standardised[0], f" and {len(standardised) - 1} more" if standardised[1:] else ""
        kind = type(network.get_submodule(module_of(first))).__name__
        raise ConfigError(
            f"prunable.exclude: {first}{more} cannot be pruned: {kind} computes with other weights, made of these "
            "(weight standardisation?), so a pruned weight would not be zero; exclude them, or choose another model"
        )
    for weight in left.values():
        tied = [other for other, w in network.named_parameters(remove_duplicate=False) if w is weight]
        if len(tied) > 1:
            raise ConfigError(f"prunable.exclude: {' and '.join(tied)} are one tied weight, exclude all its names")
    return {name: weight.shape for name, weight in left.items()}


def weight_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every convolution, linear and attention weight, prunable or not, in the order of the modules.

    A tied weight has the first of its names.
    """
    found: dict[int, tuple[str, torch.Size]] = {}
    for name, weight in _weights(network):
        found.setdefault(id(weight), (name, weight.shape))
    return dict(found.values())


def module_of(name: str) -> str:
    """Return the module of a parameter: `block1.conv2` for `block1.conv2.weight`."""
    return name.rpartition(".")[0]


def matching(pattern: str, names: Iterable[str], key: str) -> list[str]:
    """Return the parameters whose name, or whose module's, fits the pattern. ConfigError about `key` if none does."""
    names = list(names)
    found = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(module_of(name), pattern)]
    if not found:
        modules = list(dict.fromkeys(module_of(name) for name in names))
        nearest = difflib.get_close_matches(pattern, modules + names, n=3, cutoff=0.4) or modules[:3]
        raise ConfigError.of(key, pattern, f"a pattern that fits a layer, such as {', '.join(nearest)}")
    return found


@torch.no_grad()
def _uses_weight_itself(layer: nn.Module) -> bool:
    """Whether a layer's output, without the bias, is proportional to its weight. Tries only layers with custom code."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if not isinstance(layer, kinds) or any(type(layer).forward is kind.forward for kind in kinds):
        return True
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (2, layer.in_features)
    else:
        spans = [dilation * (size - 1) + 1 for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        shape = (2, layer.in_channels, *spans)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator)
    try:
        copy = deepcopy(layer).to("cpu", torch.float32).eval()
        weight, outputs = torch.randn(copy.weight.shape, generator=generator), []
        for factor in (0, 1, 2):
            copy.get_parameter("weight").copy_(factor * weight)
            outputs.append(copy(inputs))
        none, once, twice = outputs
    except Exception:  # the layer needs more than one input: unknown
        return True
    return torch.allclose(twice - once, once - none, rtol=1e-3, atol=1e-3 * float(once.abs().max()))


def _weights(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every convolution, linear and attention weight under each name in the state_dict (tied: several)."""
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, _ConvNd | nn.Linear):
            attributes: Sequence[str] = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            attributes = [name for name in _ATTENTION if getattr(module, name) is not None]
        else:
            continue
        parameters = dict(module.named_parameters(recurse=False))
        for attribute in attributes:
            name = f"{path}.{attribute}" if path else attribute
            weight = parameters.get(attribute)
            if weight is None or is_lazy(weight):
                # A mask acts on the parameter, so a weight computed from other parameters would silently stay dense.
                raise ConfigError.of("model", name, "a plain parameter, not a parametrised or lazy weight")
            yield name, weight
