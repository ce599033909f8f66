"""What the probes of a round cost, beside the round's training, in one run.

python benchmarks/probes.py [--data DIR, or LOTTERY_DATA] [--steps 1000]

LeNet-300-100 on MNIST by `lth_lenet`; the training is timed at --steps and scaled to the preset's 50,000.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from lottery.compose import composed
from lottery.config import settings
from lottery.errors import reported
from lottery.parts import instantiated
from lottery.signals import StopFlag
from lottery.stages.bench import Bench
from lottery.stages.lab import Lab
from lottery.stages.round import Round


def seconds(work: object) -> float:
    """Of a call."""
    began = perf_counter()
    work()  # type: ignore[operator]
    return perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LOTTERY_DATA", "data"))
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["+exp=lth_lenet", "probes=[light,connectivity,alignment]", f"train.steps={asked.steps}it"]
        overrides += [f"paths.data={asked.data}", f"paths.runs={folder}", "tracker=none"]
        overrides += ["probes.connectivity.splits=[test]"]
        cfg = composed(overrides)
        config = settings(cfg)
        lab = Bench(Lab(config, StopFlag(), lambda *_: None))
        dense = lab.train(lab.initial)
        lab.history = [Round(0, lab.initial, dense)]
        mask = lab.prune(lab.initial.mask, lab.scores(dense.state, lab.initial.mask), 0.5)
        ticket = lab.rewind.ticket(dense, dense, mask)
        training = seconds(lambda: lab.train(ticket))
        round = Round(1, ticket, lab.train(ticket))
        lab.copies(ticket, 2)  # so that what is timed is the measuring
        whole = training * 50_000 / asked.steps
        table = Table(title=f"1 thread, one call each; a training of 50,000 steps: {whole:.0f} s")
        for column in ("probe", "s", "% of a round's training"):
            table.add_column(column, justify="right")
        for name, node in config.probes.items():
            probe = instantiated(node, f"probes.{name}")
            took = seconds(lambda probe=probe: probe(round, lab.history[0], lab))
            table.add_row(name, f"{took:.3f}", f"{100 * took / whole:.3f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(reported(main))
