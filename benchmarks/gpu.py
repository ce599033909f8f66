"""What a GPU must do before its results are believed, in under ten minutes on one GPU.

    python benchmarks/gpu.py [--data DIR, or LOTTERY_DATA] [--device cuda] [--small] [--only parity speed]

parity   the same masks from the same scores as on the CPU; losses of trainings within rounding of the CPU's
waiting  training steps that never wait for the GPU, as CUDA itself tells
speed    steps a second against a bare PyTorch loop: plain, channels-last, in bf16, and compiled
recipe   +exp=fast_airbench: the dense training and one round

Without a GPU it prints these four lines and ends with status 0. With --device cpu --small all but `waiting` run on the
CPU, with small networks and embedded data, which checks this file. Status 1: a check failed.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from training import cifar_batches, measure, mnist_batches

from lottery.compose import composed
from lottery.config import settings
from lottery.errors import reported
from lottery.pruning.controls import shuffled
from lottery.pruning.prune import prune
from lottery.search.rules import NM, Rule, Swaps, TopGroups
from lottery.search.top import Top
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.study import Study
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining
from lottery.training.progress import Progress

STEPS = 20  # of the trainings whose losses are compared
CLOSE = {
    "32": 1e-3,
    "bf16": 3e-2,
}  # how far apart they may be, as a share, at a learning rate that amplifies no rounding
RESNET = ("+exp=lth_resnet20", "optim.lr=0.01")
SMALL = ("data=digits", "data.limit=500", "model.width=4")  # embedded data, a narrow network
SHORT = ("train.batch_size=50", "train.steps=20it", "schedule.warmup=5it", "rewind.to=5it", "model.depth=8")
FORMS = {
    "plain": (),
    "channels-last": ("train.channels_last=true",),
    "channels-last, bf16": ("train.channels_last=true", "train.precision=bf16"),
    "channels-last, bf16, compiled": ("train.channels_last=true", "train.precision=bf16", "train.compile=true"),
}
AS_FAST = 0.9  # our plain steps a second, in those of the bare loop
ACCURACY = 0.9  # that the fast recipe's dense network must reach


@dataclass(frozen=True)
class Row:
    """A line of the result. holds: None where nothing is demanded."""

    what: str
    found: str
    holds: bool | None = None


@dataclass(frozen=True)
class Setting:
    """Where the checks run: on which device, with data from which folder, whether with small networks."""

    device: str
    data: str
    small: bool

    def options(self, *overrides: str) -> list[str]:
        own = [
            f"paths.data={self.data}",
            f"trainer.accelerator={self.device}",
            "tracker=none",
            "trainer.progress=false",
        ]
        return [*overrides, *own]


# -- parity -----------------------------------------------------------------------------------------------------------


def parity(setting: Setting) -> Iterator[Row]:
    torch.backends.cudnn.allow_tf32 = False
    for name, equal in equal_masks(setting.device).items():
        yield Row(f"masks {name}", "the same" if equal else "others", equal)
    networks = (
        {"ResNet-20": (*RESNET, *SMALL)} if setting.small else {"LeNet": ("+exp=lth_lenet",), "ResNet-20": RESNET}
    )
    for name, overrides in networks.items():
        for precision, close in CLOSE.items():
            options = setting.options(*overrides, f"train.precision={precision}", "train.steps=1000it")
            lab = Lab(settings(composed(options)), StopFlag(), lambda *_: None)
            here, there = (begun(lab, device).advance(STEPS).cpu() for device in ("cpu", setting.device))
            apart = float(((here - there) / here).abs().max())
            yield Row(f"{STEPS} losses of {name}, precision {precision}", f"at most {apart:.1e} apart", apart < close)


def equal_masks(device: str) -> dict[str, bool]:
    """Whether the device gets the CPU's masks, for each way to prune. Many of the scores are equal."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv": torch.Size((64, 32, 3, 3)), "fc": torch.Size((256, 128))}
    scores = {name: (8 * torch.randn(shape, generator=generator)).round() / 8 for name, shape in shapes.items()}
    both, conv = list(scores.values()), {"conv": shapes["conv"]}
    counts = [int((score > 0).sum()) for score in both]

    def pruned(there: str, scope: str) -> str:
        found = prune(Mask.ones(shapes), {name: score.to(there) for name, score in scores.items()}, 0.8, scope=scope)  # type: ignore[arg-type]
        return found.digest

    return {
        **{f"pruned, {scope}": pruned("cpu", scope) == pruned(device, scope) for scope in ("global", "layer")},
        "searched for, global": follows(lambda: Top(sum(counts)), both, device),
        "searched for, by layer": follows(lambda: Top(counts), both, device),
        "searched for, short restriction": follows(lambda: Swaps(counts, 0.5), both, device),
        "searched for, 2:4": follows(lambda: NM(shapes, 2, 4), both, device),
        "searched for, filters": follows(lambda: TopGroups(conv, 0.3, 0), both[:1], device),
    }


def follows(rule: Callable[[], Rule], scores: list[Tensor], device: str) -> bool:
    """Whether a rule gives the same masks on CPU and device, for two sets of scores one after the other."""
    found = []
    for there in ("cpu", device):
        masks, step = [(score > 0).float().to(there) for score in scores], rule()
        for sign in (1, -1):
            step([sign * score.to(there) for score in scores], masks, 0.5)
        found.append([mask.cpu() for mask in masks])
    return all(map(torch.equal, *found)) and not torch.equal(found[0][0], (scores[0] > 0).float())


def begun(lab: Lab, device: str) -> MaskedTraining:
    """A training under a mask of a fifth of the weights, with neither measurements nor a terminal."""
    mask = shuffled(prune(lab.initial.mask, lab.initial.state.tensors(), 0.8), 0)
    module = MaskedTraining(lab.network(), replace(lab.initial, mask=mask), lab.recipe, lab.data_on, Progress(0))
    module.measure_when_due = lambda: None  # type: ignore[method-assign]
    module.next_tick = float("inf")
    module.to(device)
    module.prepare(module.configure_optimizers())
    return module


# -- the other checks -------------------------------------------------------------------------------------------------


def waiting(setting: Setting) -> Iterator[Row]:
    what = f"{STEPS} steps of ResNet-20, bf16"
    if setting.device == "cpu":
        yield Row(what, "left out: nothing to wait for")
        return
    module = begun(
        Lab(settings(composed(setting.options(*RESNET, *FORMS["channels-last, bf16"]))), StopFlag(), lambda *_: None),
        setting.device,
    )
    module.advance(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.advance(2 + STEPS)
        yield Row(what, "no wait", True)
    except RuntimeError as error:
        yield Row(what, str(error).splitlines()[0], False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def speed(setting: Setting) -> Iterator[Row]:
    if not setting.small:
        yield timed("lth_lenet", setting.options(), 2000, mnist_batches, setting)
    for name, form in FORMS.items():
        overrides = setting.options(*(SMALL if setting.small else ()), *form)
        batches = mnist_batches if setting.small else cifar_batches
        yield timed("lth_resnet20", overrides, 3 if setting.small else 200, batches, setting, name == "plain")


def timed(
    preset: str,
    overrides: list[str],
    steps: int,
    batches: Callable[..., Iterator[tuple[Tensor, Tensor]]],
    setting: Setting,
    plain: bool = True,
) -> Row:
    what, _, bare, ours, ratio, spread = measure(
        preset, overrides, steps, 1 if setting.small else 3, batches, setting.device
    )
    holds = float(ratio) >= AS_FAST if plain and not setting.small else None
    return Row(what, f"{ours} steps/s, {ratio} ({spread}) times the bare loop's {bare}", holds)


def recipe(setting: Setting) -> Iterator[Row]:
    preset = ("+exp=fast_resnet20", *SMALL, *SHORT) if setting.small else ("+exp=fast_airbench",)
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        options = setting.options(*preset, "method.rounds=1", "controls=none", "probes=none", f"paths.runs={folder}")
        started = perf_counter()
        rows = Study(composed(options)).run()
        seconds = perf_counter() - started
    dense, ticket = (row["test_accuracy"] for row in rows)
    holds = None if setting.small else dense >= ACCURACY
    yield Row(f"{preset[0]}, dense and one ticket", f"{dense:.2%}, {ticket:.2%} in {seconds:.0f} s", holds)


CHECKS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "parity": parity, "waiting": waiting, "speed": speed, "recipe": recipe
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LOTTERY_DATA", "data"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(CHECKS), choices=list(CHECKS))
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        lines = str(__doc__).split("\n\n")[2]
        print(f"No GPU here. On one, this checks:\n\n{lines}")
        return 0
    setting = Setting(given.device, given.data, given.small)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    table, failed = Table(title=f"{name}, torch {torch.__version__}"), False
    for column in ("check", "what", "found", ""):
        table.add_column(column)
    for check in given.only:
        for row in CHECKS[check](setting):
            failed |= row.holds is False
            table.add_row(check, row.what, row.found, {True: "holds", False: "FAILS", None: ""}[row.holds])
    Console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(reported(main))
