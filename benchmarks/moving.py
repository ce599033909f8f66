"""What a mask that moves every 100 steps costs: training time against the same training under a static mask.

    python benchmarks/moving.py [--networks lenet resnet20] [--threads 2] [--every 100] [--repeats 5]

Images are random. In each repeat every contender does `--every` steps in turn, with one move of its mask, so that what
else the machine does meets all; the ratio is taken repeat by repeat, and its median and range are shown. Memory: all
tensors held between two steps, as a multiple of the prunable weights.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from search import NETWORKS, laboratory, seconds

from lottery.methods.gmp import GMP
from lottery.methods.granet import GraNet
from lottery.methods.moving import Moving
from lottery.methods.set import SET, RigL
from lottery.moving.plan import Plan
from lottery.stages.lab import Lab
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining
from lottery.training.moving import MovingTraining
from lottery.training.progress import Progress

METHODS: dict[str, Moving] = {"SET": SET(), "RigL": RigL(), "GMP": GMP(), "GraNet": GraNet()}


def contenders(lab: Lab, every: int, steps: int) -> dict[str, MaskedTraining]:
    """A training under a static mask of a tenth of the weights, and each method, ready to go on."""
    full = Mask.ones(lab.initial.mask.shapes)
    tenth = lab.prune_to(full, lab.scores(lab.initial.state, full), 0.1)
    recipe = replace(lab.recipe, total=steps, eval_every=10**9)
    ticket = replace(lab.initial, mask=tenth, steps=steps, recipe=recipe)
    made = {"static": MaskedTraining(lab.network(0), ticket, recipe, lab.data_on, Progress(0))}
    plan = Plan(every, every // 2 - every, steps, steps)  # each turn has one move, in its middle
    for name, method in METHODS.items():
        start = replace(ticket, mask=full) if name == "GMP" else ticket
        made[name] = MovingTraining(method, plan, 0, lab.network(0), start, recipe, lab.data_on, Progress(0))
    for module in made.values():
        module.prepare(module.configure_optimizers())
    return made


def held(module: MaskedTraining) -> float:
    """Bytes of all tensors that a training keeps between two steps, over those of the prunable weights."""
    weights = sum(shape.numel() for shape in module.ticket.mask.shapes.values()) * 4
    masks = module.masks if isinstance(module, MovingTraining) else module.masked_step.masks
    tensors = [*module.network.state_dict().values(), *masks]
    tensors += [
        value for slots in module.optimizer.state.values() for value in slots.values() if torch.is_tensor(value)
    ]
    tensors += [parameter.grad for parameter in module.network.parameters() if parameter.grad is not None]
    explored = sum(bits.nbytes for bits in module.explored) if isinstance(module, MovingTraining) else 0
    return (sum(tensor.numel() * tensor.element_size() for tensor in tensors) + explored) / weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=100, help="steps of a repeat; the mask moves in one of them")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.networks:
        with TemporaryDirectory() as folder:
            steps = options.every * (options.repeats + 1)
            modules = contenders(laboratory(name, Path(folder)), options.every, steps)
            times: dict[str, list[float]] = {kind: [] for kind in modules}
            for repeat in range(options.repeats + 1):
                for kind, module in modules.items():
                    took = seconds(partial(module.advance, module.progress.step + options.every))
                    if repeat:  # the first warms up
                        times[kind].append(took)
            table = Table(
                title=f"{name}: {options.every} steps with a move, against a static mask ({options.threads} threads)"
            )
            for column in ("contender", "ms a step", "ratio", "range", "memory", "moves"):
                table.add_column(column, justify="right")
            for kind, all_took in times.items():
                module, ratios = modules[kind], [one / own for one, own in zip(all_took, times["static"], strict=True)]
                table.add_row(
                    kind,
                    f"{1000 * statistics.median(all_took) / options.every:.2f}",
                    f"{statistics.median(ratios):.2f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                    f"{held(module):.2f}",
                    str(module.moves) if isinstance(module, MovingTraining) else "",
                )
            Console().print(table)


if __name__ == "__main__":
    main()
