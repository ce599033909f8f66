"""Steps per second of our training against a bare PyTorch loop that does the same arithmetic, in one run.

    python benchmarks/training.py [--data DIR, or LOTTERY_DATA] [--pairs 5]

Each pair times the bare loop and ours one after the other, in turn; the ratio is taken pair by pair, so that a machine
whose speed drifts does not bias it. Ours is the whole of Lightning's `fit`, with masks, progress and loss recording.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lottery.compose import composed
from lottery.config import settings
from lottery.data.load import load
from lottery.errors import reported
from lottery.models.build import build
from lottery.pruning.controls import shuffled
from lottery.pruning.prunable import prunable
from lottery.pruning.prune import prune
from lottery.recipe import Recipe
from lottery.state import StateRef
from lottery.ticket import Mask, Ticket
from lottery.tracking.terminal import Terminal
from lottery.training.fit import fit
from lottery.training.module import Hooks, MaskedTraining
from lottery.training.progress import Progress

Batch = tuple[Tensor, Tensor]


def indices(labels: Tensor, size: int) -> Iterator[Tensor]:
    """Shuffled index batches, epoch after epoch, on the labels' device."""
    while True:
        yield from torch.randperm(len(labels), device=labels.device).split(size)


def mnist_batches(images: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
    """Shuffled batches of x/255, gathered from memory."""
    for index in indices(labels, size):
        yield images[index].float().div_(255), labels[index]


def cifar_batches(images: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
    """The same with flips, shifted crops of a 4-pixel border, and standardisation."""
    padded, there = F.pad(images, (4, 4, 4, 4)), images.device
    mean = torch.tensor([0.4914, 0.4822, 0.4465], device=there).view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616], device=there).view(3, 1, 1)
    span, channels = torch.arange(32, device=there), torch.arange(3, device=there).view(1, 3, 1, 1)
    for index in indices(labels, size):
        rows = torch.randint(0, 9, (len(index), 1), device=there) + span
        columns = torch.randint(0, 9, (len(index), 1), device=there) + span
        columns = torch.where(torch.rand(len(index), 1, device=there) < 0.5, columns.flip(1), columns)
        cropped = padded[index[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]
        yield cropped.float().div_(255).sub_(mean).div_(std), labels[index]


def bare(
    network: nn.Module, mask: Mask, optimizer: torch.optim.Optimizer, batches: Iterator[Batch], steps: int
) -> float:
    """Seconds of the loop that anyone would write: forward, backward, mask, step, mask."""
    named = dict(network.named_parameters())
    weights = [named[name] for name in mask]
    masks = [mask[name].to(named[name]) for name in mask]
    wait()
    started = perf_counter()
    for images, labels in islice(batches, steps):
        F.cross_entropy(network(images), labels).backward()
        torch._foreach_mul_([weight.grad for weight in weights], masks)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(weights, masks)
        optimizer.zero_grad(set_to_none=True)
    wait()
    return perf_counter() - started


def wait() -> None:
    """Wait until a GPU, if there is one, has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(
    preset: str, overrides: list[str], steps: int, pairs: int, batches: Callable[..., Iterator[Batch]],
    device: str = "cpu",
) -> list[str]:  # fmt: skip
    """One row of the table."""
    config = settings(composed([f"+exp={preset}", f"train.steps={steps}it", "train.eval_every=1000000it", *overrides]))
    data = load(config.data, Path(config.paths.data), 0).to(device)
    recipe = Recipe.resolve(config, data.sizes["train"])
    network = build(config.model, data.shape, data.classes, 0)
    full = Mask.ones(prunable(network, config.prunable.exclude))
    mask = shuffled(prune(full, {name: torch.rand(shape) for name, shape in full.shapes.items()}, 0.8), 0)
    ticket = Ticket(mask, StateRef.of(mask.apply(network.state_dict())), 0, 0, steps)
    images, labels = data.splits["train"]  # type: ignore[attr-defined]
    terminal = Terminal()

    def ours() -> float:
        module = MaskedTraining(
            build(config.model, data.shape, data.classes, 0), ticket, recipe, lambda device: data, Progress(0),
            hooks=Hooks(tick=partial(terminal.tick, ticket)),
        )  # fmt: skip
        module.measure = lambda: None  # type: ignore[method-assign] # the bare loop does not evaluate either
        started = perf_counter()
        fit(module, device, Path("."))
        wait()
        return perf_counter() - started

    def theirs() -> float:
        module = MaskedTraining(network, ticket, recipe, lambda device: data, Progress(0))
        return bare(network, mask, module.configure_optimizers(), batches(images, labels, recipe.batch_size), steps)

    network.to(device)
    ours(), theirs()  # warm-up
    times = [(theirs(), ours()) for _ in range(pairs)]
    ratios = [a / b for a, b in times]
    rate = [statistics.median(steps / t[i] for t in times) for i in (0, 1)]
    spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
    shown = [*(name for name in ("channels_last", "compile") if getattr(config.train, name))]
    shown += [config.train.precision] if config.train.precision != "32" else []
    return [
        " ".join((preset, *shown)),
        str(steps),
        f"{rate[0]:.1f}",
        f"{rate[1]:.1f}",
        f"{statistics.median(ratios):.3f}",
        spread,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LOTTERY_DATA", "data"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    paths = [f"paths.data={arguments.data}", "tracker=none"]
    table = Table(title=f"Training, {arguments.threads} thread(s), n = {arguments.pairs} pairs, medians")
    for column in ("preset", "steps", "bare steps/s", "ours steps/s", "ratio", "min - max"):
        table.add_column(column, justify="right")
    table.add_row(*measure("lth_lenet", paths, 2000, arguments.pairs, mnist_batches))
    table.add_row(*measure("lth_resnet20", paths, 20, arguments.pairs, cifar_batches))
    table.add_row(*measure("lth_resnet20", [*paths, "train.channels_last=true"], 20, arguments.pairs, cifar_batches))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(reported(main))
