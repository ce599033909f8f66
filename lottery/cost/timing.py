"""How long networks take, measured side by side: each repeat runs all of them in turn, and is compared in itself.

What else the machine does then meets all of them alike; a network is never compared with a time of another run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARM_UP = 1  # turns before those that count


def paired(works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of each piece of work in so many repeats, all of them in turn in every repeat."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(-WARM_UP, repeats):
        for name, work in works.items():
            seconds = timed(work, device)
            if repeat >= 0:
                times[name].append(seconds)
    return times


def speed_up(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as fast: the median over the repeats of the ratio within each."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the device's own work included."""
    finish(device)
    started = perf_counter()
    work()
    finish(device)
    return perf_counter() - started


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def inference(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """A forward pass in evaluation mode."""
    network.eval()

    @torch.no_grad()
    def run() -> object:
        return network(images)

    return run


def training_step(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """Forward, backward and a step of SGD with momentum 0.9, at a rate of zero: the weights stay what they are."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def run() -> None:
        network.train()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run
