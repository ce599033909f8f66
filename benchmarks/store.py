"""What the store costs: a stage that is found, a lease, a checkpoint, a finished study run again, a resumed training.

python benchmarks/store.py [--repeats 20]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from lottery.compose import composed
from lottery.config import settings
from lottery.lease import Lease
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.state import snapshot
from lottery.study import Study
from lottery.ticket import Mask, Ticket
from lottery.training.checkpoint import load_checkpoint, save_checkpoint
from lottery.training.module import MaskedTraining
from lottery.training.progress import Progress

INTERVAL = 600.0  # seconds between checkpoints, by default
QUIET = ("tracker=none", "trainer=cpu", "trainer.progress=false", "trainer.threads=1")
STUDY = (
    "+exp=imp_rewind", *QUIET, "data=digits", "data.limit=300", "model.hidden=[30]", "train.steps=20it",
    "train.eval_every=10it", "rewind.to=5it", "method.rounds=20", "method.rate=0.1", "controls=none",
)  # fmt: skip
NETWORKS = {
    "LeNet-300-100, Adam": ("model=lenet_300_100", "data=digits", "optim=adam", "optim.lr=1e-3"),
    "ResNet-20, momentum": ("model=resnet20", "data=digits", "optim=momentum"),
    "VGG-19, momentum": ("model=vgg19", "data=digits", "optim=momentum"),
}


class Times:
    """Rows of minimum, median and maximum."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, float, float, float]] = []

    def __call__(self, what: str, work: Callable[[], object], repeats: int) -> float:
        seconds = []
        for _ in range(repeats):
            started = perf_counter()
            work()
            seconds.append(perf_counter() - started)
        self.rows.append((what, repeats, min(seconds), statistics.median(seconds), max(seconds)))
        return statistics.median(seconds)

    def table(self) -> Table:
        table = Table(title="milliseconds, one thread")
        for column in ("what", "n", "min", "median", "max"):
            table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
        for what, n, *seconds in self.rows:
            table.add_row(what, str(n), *(f"{1000 * value:.2f}" for value in seconds))
        return table


def training(lab: Lab) -> MaskedTraining:
    """A training as it is when a checkpoint is due: with momentum, and early-stop weights."""
    network = lab.network(0)
    ticket: Ticket = lab.initial
    module = MaskedTraining(network, ticket, lab.recipe, lab.data_on, Progress(0))
    module.prepare(module.configure_optimizers())
    module.progress.best_loss, module.progress.best_step = 1.0, 0
    module.progress.best_state = snapshot(network)
    module.advance(1)
    return module


def checkpoints(times: Times, folder: Path, repeats: int) -> None:
    """Writing and reading the state of networks of three sizes."""
    for name, overrides in NETWORKS.items():
        if name.startswith("VGG"):  # digits are too small for its pooling
            overrides = (*overrides, "data=cifar10") if (Path(data_folder()) / "cifar10.safetensors").exists() else ()
        if not overrides:
            print(f"{name}: left out, there is no CIFAR-10 in paths.data")
            continue
        lab = Lab(settings(composed([*QUIET, *overrides, "data.limit=300", "train.steps=10it"])), StopFlag(), _ignore)
        module, path = training(lab), folder / "checkpoint.safetensors"
        median = times(f"checkpoint of {name}: write", partial(save_checkpoint, module, path), repeats)
        times(f"checkpoint of {name}: read, verify", partial(load_checkpoint, path), repeats)
        size = path.stat().st_size / 1e6
        print(f"{name}: {size:.1f} MB; one every {INTERVAL:g} s takes {100 * median / INTERVAL:.4f} % of a training")


def data_folder() -> str:
    return settings(composed([])).paths.data


def _ignore(*_: object) -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    times = Times()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cfg = composed([*STUDY, f"paths.runs={folder / 'runs'}"])
        with redirect_stdout(StringIO()):
            Study(cfg).run()
        lab = Lab(settings(cfg), StopFlag(), _ignore)
        times("a stage that is found", lambda: lab._train_stage(lab.initial, None, set()), repeats)

        def leased() -> None:
            lease = Lease(folder / "stage")
            lease.acquire()
            lease.release()

        times("a lease: taken and given back", leased, repeats)
        held = Lease(folder / "stage")
        held.acquire()
        times("a lease: looked at before a write", held.check, repeats)
        held.release()
        mask = Mask.ones({"weight": torch.Size([300, 784])})
        times("a mask snapshot of 235,200 weights", lambda: mask.save(folder / "m", round=0, study="", parent=None), 20)

        def again() -> None:
            with redirect_stdout(StringIO()):
                Study(cfg).run()

        times("a finished study of 20 rounds, run again", again, 3)
        checkpoints(times, folder, repeats)
    Console(width=100).print(times.table())


if __name__ == "__main__":
    main()
