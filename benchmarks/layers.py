"""What removed blocks save in a CIFAR ResNet, measured beside what is counted; and what finding and rebuilding take.

    python benchmarks/layers.py [--threads 2] [--repeats 7] [--batch 128]

All networks of one depth run in turn in each repeat, and the medians of the ratios within repeats are shown; random
images of 32x32 pixels, float32. Blocks leave stage by stage in turn, since which ones leave changes the time (early
stages have the largest maps) and not the multiply-adds. Published: Jordao et al., Table 4 (whose "4 blocks" of
ResNet-32 have the operations of 5).
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from itertools import chain, zip_longest
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from lottery.cost.counts import multiply_adds, training_memory
from lottery.cost.measure import inference, paired, speed_up, training_step
from lottery.layers.removal import Unit, check_removal, remove_
from lottery.layers.units import find_units
from lottery.models.resnet import resnet

PUBLISHED = {  # depth: {removed blocks: (training speed-up, memory saved)}
    32: {1: (1.10, 0.1013), 3: (1.35, 0.2529), 5: (1.57, 0.3011)},
    56: {3: (1.16, 0.1515), 4: (1.24, 0.1942), 5: (1.34, 0.2369), 12: (2.03, 0.4582)},
}
CPU = torch.device("cpu")


def in_turn(units: dict[str, Unit]) -> list[Unit]:
    """The units, one of each stage after the other."""
    stages: dict[str, list[Unit]] = {}
    for name, unit in units.items():
        stages.setdefault(name.rpartition(".")[0], []).append(unit)
    return [unit for unit in chain(*zip_longest(*stages.values())) if unit is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = torch.randn(options.batch, 3, 32, 32)
    labels = torch.arange(options.batch) % 10
    for depth, rows in PUBLISHED.items():
        dense = resnet(shape=(3, 32, 32), classes=10, depth=depth)
        began = perf_counter()
        units = find_units(dense, (3, 32, 32))
        found = perf_counter() - began
        networks = {0: dense}
        for count in sorted({*range(1, 6), *rows} if depth == 32 else rows):
            began = perf_counter()
            networks[count] = deepcopy(dense)
            remove_(networks[count], in_turn(units)[:count])
            check_removal(dense, in_turn(units)[:count], (3, 32, 32))
            rebuilt = perf_counter() - began
        steps = paired(
            {str(n): training_step(each, images, labels) for n, each in networks.items()}, options.repeats, CPU
        )
        ones = paired({str(n): inference(each, images[:1]) for n, each in networks.items()}, 10 * options.repeats, CPU)
        many = paired({str(n): inference(each, images) for n, each in networks.items()}, options.repeats, CPU)
        macs = {n: sum(multiply_adds(each, images).values()) for n, each in networks.items()}
        memory = {n: training_memory(each, images, labels) for n, each in networks.items()}
        title = f"ResNet-{depth}: {len(units)} units found in {found:.2f} s, rebuilt and checked in {rebuilt:.2f} s"
        table = Table(title=f"{title}; {options.threads} threads, batch {options.batch}")
        for column in ("removed", "multiply-adds saved", "their ratio", "step speed-up", "of the ratio", "published",
                       "inference, 1", f"inference, {options.batch}", "memory saved", "published "):  # fmt: skip
            table.add_column(column, justify="right")
        for count in networks:
            ratio, speed = macs[0] / macs[count], speed_up(steps["0"], steps[str(count)])
            published = rows.get(count)
            table.add_row(
                str(count), f"{1 - 1 / ratio:.2%}", f"{ratio:.3f}", f"{speed:.3f}", f"{speed / ratio:.2f}",
                f"{published[0]:.2f}" if published else "", f"{speed_up(ones['0'], ones[str(count)]):.2f}",
                f"{speed_up(many['0'], many[str(count)]):.2f}", f"{1 - memory[count] / memory[0]:.2%}",
                f"{published[1]:.2%}" if published else "",
            )  # fmt: skip
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
