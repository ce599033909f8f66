"""What a step of a search costs, as a multiple of a plain training step of the same network at the same batch.

    python benchmarks/search.py [--networks lenet resnet20] [--threads 2] [--steps 100 10] [--repeats 7]

Images are random. In each repeat every contender does its steps in turn, so that what else the machine does meets all;
the ratio is taken repeat by repeat, and its median and range are shown. Memory: all tensors that a search holds between
two steps (the network's own, scores, masks, z, optimizers), as a multiple of the prunable weights; a plain training
holds the weights and their momentum: 2.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from lottery.compose import composed
from lottery.config import settings
from lottery.methods.bip import BiP
from lottery.methods.edge_popup import EdgePopup
from lottery.methods.jackpot import Jackpot
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.ticket import Mask, Ticket
from lottery.training.module import MaskedTraining
from lottery.training.progress import Progress
from lottery.training.search import ScoreSearch

NETWORKS = {
    "lenet": ["data=mnist", "model=lenet_300_100", "train.batch_size=60"],
    "resnet20": ["data=cifar10", "model=resnet20", "train.batch_size=128"],
}
IMAGES = 2000


def laboratory(name: str, folder: Path) -> Lab:
    """The study of this network on random images."""
    cfg = composed([*NETWORKS[name], "optim=momentum", "data.validation=0", f"paths.runs={folder}"])
    cfg.paths.data = str(folder / "data")
    images = {part: torch.randint(0, 256, (IMAGES, *cfg.data.shape), dtype=torch.uint8) for part in ("train", "test")}
    labels = {part: torch.arange(IMAGES) % cfg.data.classes for part in images}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    arrays = {f"{part}_images": images[part] for part in images} | {f"{part}_labels": labels[part] for part in labels}
    save_file(arrays, folder / "data" / f"{cfg.data.name}.safetensors")
    return Lab(settings(cfg), StopFlag(), lambda *_: None)


def contenders(lab: Lab, steps: int) -> dict[str, MaskedTraining]:
    """A plain training under a mask of a tenth of the weights, and each search for such a mask, ready to go on."""
    full = Mask.ones(lab.initial.mask.shapes)
    recipe = replace(lab.recipe, total=steps, eval_every=10**9)
    ticket = Ticket(full, lab.initial.state, 0, 0, steps, recipe=recipe)
    tenth = lab.prune_to(full, lab.scores(lab.initial.state, full), 0.1)
    made: dict[str, MaskedTraining] = {
        "plain": MaskedTraining(lab.network(0), replace(ticket, mask=tenth), recipe, lab.data_on, Progress(0))
    }
    counts = dict(tenth.layer_kept)
    searches = {
        "jackpot": Jackpot(allocation={}).search(lab, counts),
        "edge_popup": replace(EdgePopup(density=0.1).search(lab), counts=counts),
        "bip": BiP().search(lab),
        "bip_repo": BiP(variant="repo").search(lab),
    }
    for kind, options in searches.items():
        search = replace(options, optim=lab.recipe.optim, lr=lab.recipe.lr)
        made[kind] = ScoreSearch(search, lab.network(0), ticket, recipe, lab.data_on, Progress(0))
    for module in made.values():
        module.prepare(module.configure_optimizers())
    return made


def held(module: MaskedTraining) -> float:
    """Bytes of all tensors that a search keeps between two steps, over those of the prunable weights."""
    weights = sum(shape.numel() for shape in module.ticket.mask.shapes.values()) * 4
    tensors = [*module.network.state_dict().values()]
    optimizers = [module.optimizer]
    if isinstance(module, ScoreSearch):
        tensors += [*module.masks, *module.effective]
        tensors += [*module.scores] if module.scores[0].data_ptr() != module.weights[0].data_ptr() else []
        optimizers += [optimizer for optimizer, _ in module.optimizers_beside.values()]
    else:
        tensors += module.masked_step.masks
    for optimizer in optimizers:
        tensors += [value for slots in optimizer.state.values() for value in slots.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / weights


def seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 10], help="a repeat, for each network")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, steps in zip(options.networks, options.steps, strict=False):
        with TemporaryDirectory() as folder:
            modules = contenders(laboratory(name, Path(folder)), steps * (options.repeats + 1))
            times: dict[str, list[float]] = {kind: [] for kind in modules}
            for repeat in range(options.repeats + 1):
                for kind, module in modules.items():
                    took = seconds(partial(module.advance, module.progress.step + steps))
                    if repeat:  # the first warms up
                        times[kind].append(took)
            table = Table(title=f"{name}: a step, in plain training steps ({options.threads} threads)")
            for column in ("contender", "ms", "ratio", "range", "memory"):
                table.add_column(column, justify="right")
            for kind, took in times.items():
                ratios = [one / plain for one, plain in zip(took, times["plain"], strict=True)]
                table.add_row(
                    kind,
                    f"{1000 * statistics.median(took) / steps:.2f}",
                    f"{statistics.median(ratios):.2f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                    f"{held(modules[kind]):.1f}",
                )
            Console().print(table)


if __name__ == "__main__":
    main()
