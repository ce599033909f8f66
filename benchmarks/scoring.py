"""What pruning at initialisation costs: the criteria on ResNet-20, allocations and masks for many layers and weights.

python benchmarks/scoring.py [--threads 2] [--per-class 13] [--weights 25000000] [--repeats 3]

Scores: seconds, and as a multiple of one forward and backward pass over the same images, timed in the same run.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from time import perf_counter

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lottery.models.build import build
from lottery.pruning.allocations import Budget, counts, drawn, erk
from lottery.pruning.gradients import grasp, snip, synflow
from lottery.pruning.prunable import prunable
from lottery.pruning.prune import prune_to
from lottery.pruning.scoring import Criterion, Scoring
from lottery.ticket import Mask

SHAPE, CLASSES = (3, 32, 32), 10


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Minimum, median and maximum seconds."""
    seconds = []
    for _ in range(repeats):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return min(seconds), statistics.median(seconds), max(seconds)


def pruned(network: nn.Module, criterion: Criterion, steps: int, per_class: int) -> Mask:
    """Down to 5 % in `steps` steps, the network copied and scored anew before each."""
    mask = Mask.ones(prunable(network))
    images = torch.randn(per_class * CLASSES, *SHAPE)
    labels = torch.arange(CLASSES).repeat(per_class)
    for step in range(1, steps + 1):

        def copy(kept: Mask = mask) -> nn.Module:
            private = deepcopy(network)
            private.load_state_dict(kept.apply(network.state_dict()))
            return private

        weights = {name: network.get_parameter(name).detach() for name in mask}
        at = Scoring(weights, mask, torch.Generator(), copy, lambda per_class: (images, labels), SHAPE)
        mask = prune_to(mask, criterion(at), 0.05 ** (step / steps))
    return mask


def one_pass(network: nn.Module, per_class: int) -> None:
    """One forward and backward pass over as many images as a criterion sees."""
    labels = torch.arange(CLASSES).repeat(per_class)
    F.cross_entropy(network(torch.randn(len(labels), *SHAPE)), labels).backward()


def unscored(criterion: Criterion) -> Mapping[str, Tensor]:
    raise NotImplementedError


def allocated(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """ERK at 10 %, in whole weights."""
    return counts(erk(Budget(shapes, 0.1, unscored)), shapes, 0.1)


def allocated_and_drawn(shapes: Mapping[str, tuple[int, ...]]) -> Mask:
    return drawn(allocated(shapes), shapes, torch.Generator().manual_seed(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--per-class", type=int, default=13, help="images of each of 10 classes: about a batch of 128")
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = build({"_target_": "lottery.models.resnet.resnet", "depth": 20}, SHAPE, CLASSES, seed=0)
    per_class, repeats = arguments.per_class, arguments.repeats
    one_pass(network, per_class)  # warm-up
    rows = {
        "one forward and backward": timed(lambda: one_pass(network, per_class), repeats),
        "SNIP": timed(lambda: pruned(network, partial(snip, per_class=per_class), 1, per_class), repeats),
        "GraSP": timed(lambda: pruned(network, partial(grasp, per_class=per_class), 1, per_class), repeats),
        "SynFlow, 100 steps": timed(lambda: pruned(network, synflow, 100, per_class), repeats),
    }
    side = math.isqrt(arguments.weights // 50)
    large = {f"layer{i}": (side, side) for i in range(50)}
    deep = {f"layer{i}": (8 + i % 512, 8 + i // 2, 3, 3) for i in range(1000)}
    more = {
        f"ERK and drawing, {50 * side**2:,} weights": timed(lambda: allocated_and_drawn(large), repeats),
        "ERK densities, 1,000 layers": timed(lambda: erk(Budget(deep, 0.1, unscored)), repeats),
        "ERK counts, 1,000 layers": timed(lambda: allocated(deep), repeats),
    }
    base = rows["one forward and backward"][1]
    images = per_class * CLASSES
    table = Table(title=f"ResNet-20, {images} images, pruning included; {arguments.threads} thread(s), n = {repeats}")
    for column in ("what", "min s", "median s", "max s", "passes"):
        table.add_column(column, justify="right")
    for what, (low, median, high) in {**rows, **more}.items():
        ratio = f"{median / base:.1f}" if what in rows else ""
        table.add_row(what, f"{low:.4f}", f"{median:.4f}", f"{high:.4f}", ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
