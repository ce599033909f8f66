"""Physically smaller networks: channels that cannot reach the output are cut out of their layers.

Which channels belong together is what Torch-Pruning's dependency graph says (Fang et al. 2023, "DepGraph"); whether
they may go is decided here, on the side of keeping them.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lottery.errors import LotteryError, cause
from lottery.export.channels import Cut, cut_, mixes_channels, widths
from lottery.export.group import Group, Seen


def shrink(network: nn.Module, images: Tensor) -> nn.Module:
    """A private copy in evaluation mode without the channels that are dead; its logits differ by rounding alone.

    A channel (of the layers that are coupled by additions, concatenations, depthwise convolutions) is dead where each
    layer that reads it ignores it, its weights there being zero, or is given exactly zero whatever the image: all that
    makes it is constant (a zero filter, a normalisation of scale zero) and comes to zero. Cutting channels may leave
    other filters without an input, so this is repeated until nothing more is dead. Of each layer a channel stays.

    images: [N, *shape], any few; the constants are measured on them and on noise. LotteryError where Torch-Pruning is
    not installed or cannot follow the network.
    """
    small = deepcopy(network).eval().requires_grad_(True)
    while cuts := dead(small, images):
        for name, cut in cuts.items():
            cut_(small.get_submodule(name), cut.outs, cut.ins)
    return small


def dead(network: nn.Module, images: Tensor) -> dict[str, Cut]:
    """The channels that may go: layer -> which. Nothing is changed."""
    graph, seen = traced(network, images), observed(network, images)
    names = {module: name for name, module in network.named_modules()}
    cuts: dict[str, Cut] = {}
    for root in [module for module in graph.module2node if mixes_channels(module)]:
        found = removable(graph, root, seen)
        wanted = {names[module]: cut for module, cut in found.items()}
        if all(_some_stay(network.get_submodule(name), cut, cuts.get(name, Cut())) for name, cut in wanted.items()):
            for name, cut in wanted.items():
                known = cuts.setdefault(name, Cut())
                known.outs |= cut.outs
                known.ins |= cut.ins
    return cuts


def _some_stay(module: nn.Module, cut: Cut, known: Cut) -> bool:
    outs, ins = widths(module)
    return len(cut.outs | known.outs) < outs and len(cut.ins | known.ins) < ins


def traced(network: nn.Module, images: Tensor) -> Any:
    """Torch-Pruning's dependency graph."""
    try:
        from torch_pruning import DependencyGraph
    except ImportError as error:
        raise LotteryError("torch-pruning is not installed: pip install 'lottery[export]'") from error

    def refusal(reason: str) -> LotteryError:
        kind = type(network).__name__
        return LotteryError(f"Torch-Pruning cannot follow {kind}: {reason}; --dense exports it with all its channels")

    def with_gradient(logits: Tensor) -> Tensor:
        if not logits.requires_grad:
            raise refusal("its logits have no gradient, which the graph is made from")
        return logits

    try:
        with torch.enable_grad():
            return DependencyGraph().build_dependency(
                network, (images[:2],), output_transform=with_gradient, verbose=False
            )
    except LotteryError:
        raise
    except Exception as error:
        raise refusal(cause(error)) from error


def removable(graph: Any, root: nn.Module, seen: Seen) -> dict[nn.Module, Cut]:
    """What goes from which layer with the dead ones of `root`'s output channels; nothing where it is not certain."""
    channels, pruner = widths(root)[0], graph.get_pruner_of_module(root)
    everything = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(channels)))
    group = Group(graph, everything, channels, seen)
    if not group.understood:
        return {}
    found = group.dead.nonzero().flatten().tolist()
    if len(found) == channels:
        found = found[1:]
    if not found:
        return {}
    cuts = group.cuts(set(found))
    again = Group(graph, graph.get_pruning_group(root, pruner.prune_out_channels, found), channels, seen)
    return cuts if again.cuts(set(found)) == cuts else {}  # else other channels hang on these


@torch.no_grad()
def observed(network: nn.Module, images: Tensor) -> Seen:
    """Run the network on the images and on noise."""
    zero: dict[nn.Module, Tensor] = {}
    flat: set[nn.Module] = set()
    calls: Counter[nn.Module] = Counter()

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if mixes_channels(module):
            channel = 1 if not isinstance(module, nn.Linear) else inputs[0].dim() - 1
            zero[module] = (inputs[0] == 0).transpose(0, channel).flatten(1).all(1)
            if inputs[0].dim() == 2 and len(inputs[0]) == 2 * len(images):
                flat.add(module)

    handles = [module.register_forward_pre_hook(before) for module in network.modules()]
    try:
        generator = torch.Generator().manual_seed(0)
        network(torch.cat([images, torch.randn(images.shape, generator=generator, dtype=images.dtype)]))
    finally:
        for handle in handles:
            handle.remove()
    owners = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    own = {m for m in calls if all(owners[id(parameter)] == 1 for parameter in m.parameters(recurse=False))}
    once = frozenset(module for module in own if calls[module] == 1)
    return Seen(zero, frozenset(flat), frozenset(network.modules()), once)
