"""The cost of a training under a mask that moves, relative to the dense training of as many steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def relative_cost(
    multiply_adds: Mapping[str, int], sizes: Mapping[str, int], history: Sequence[Sequence[int]], steps: int
) -> float:
    """Return the multiply-adds of a training relative to a dense one, as Evci et al. 2020 (RigL) count.

    A pass forward costs f, the sum over layers of density · multiply-adds; a step costs 3 f, one in which the dense
    gradient was taken 2 f + f_dense. Layers that are never pruned count as dense.

    multiply_adds: layer -> multiply-adds of a pass forward when dense
    sizes:         prunable weight -> its number of entries
    history:       [step, dense gradients taken, weights each layer keeps], from each change of these on, ascending
    """
    dense = sum(multiply_adds.values())
    layers = [multiply_adds.get(name.removesuffix("_weight").removesuffix(".weight"), 0) for name in sizes]
    ends = [entry[0] for entry in history[1:]] + [steps]
    total = 0.0
    for (step, gradients, *kept), end in zip(history, ends, strict=True):
        saved = sum(cost * (1 - count / size) for cost, count, size in zip(layers, kept, sizes.values(), strict=True))
        total += 3 * (end - step) * (dense - saved) + gradients * saved
    return total / (3 * dense * steps)
