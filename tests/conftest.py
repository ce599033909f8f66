"""What the tests of training share: small studies, composed as the command line composes them, under `tmp_path`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from training_tools import Start

from lottery.compose import checked, composed
from lottery.config import settings
from lottery.data.dataset import Batch
from lottery.data.tensors import TensorStream
from lottery.stages.lab import Lab
from lottery.ticket import Mask
from lottery.training.masking import MaskedStep
from lottery.training.module import MaskedTraining, snapshot
from lottery.training.optim import optimizer_state
from lottery.training.signals import HANDLED, StopFlag

TINY = {"_target_": "tiny_networks.convolutional", "dropout": 0.25}

# 96 images in batches of 16, so 6 steps an epoch; 30 steps, measured every 10, which the rewind step does not divide.
SMALL = (
    "data=digits", "data.limit=96", "data.validation=40", "model=mlp",
    "train.steps=30it", "train.batch_size=16", "train.eval_every=10it",
    "method.rounds=2", "rewind=weights", "rewind.to=7it", "optim.lr=0.05",
    "probes=none", "tracker=none", "trainer=cpu", "trainer.progress=false",
)  # fmt: skip
AUGMENTED = ("data.flip=true", "data.crop=1")
MOMENTUM = ("optim.momentum=0.9", "optim.weight_decay=1e-3")
STEPWISE = ("schedule.name=multistep", "schedule.milestones=[12it,20it]", "schedule.warmup=9it")


@cache
def base_config(choices: tuple[str, ...]) -> DictConfig:
    """The small study with these options of config groups: composing takes longer than training it."""
    cfg = composed([*SMALL, *choices])
    if not any(choice.startswith("model=") for choice in choices):
        OmegaConf.update(cfg, "model", TINY, merge=False)
    return cfg


def small_config(overrides: tuple[str, ...]) -> DictConfig:
    """The small study; overrides are options of groups (`optim=adam`) and values (`optim.lr=0.1`)."""
    choices = tuple(override for override in overrides if "." not in override.partition("=")[0])
    values = OmegaConf.from_dotlist([override for override in overrides if override not in choices])
    return checked(OmegaConf.merge(base_config(choices), values))  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., DictConfig]:
    """The small study with these overrides. `runs` tells run folders and stores apart."""

    def configure(*overrides: str, runs: str = "runs") -> DictConfig:
        cfg = small_config(overrides)
        cfg.paths.runs = str(tmp_path / runs)
        return cfg

    return configure


@pytest.fixture
def make_lab(configure: Callable[..., DictConfig]) -> Callable[..., Lab]:
    """The lab of the small study with these overrides."""

    def make(*overrides: str, runs: str = "runs", stop: StopFlag | None = None) -> Lab:
        return Lab(settings(configure(*overrides, runs=runs)), StopFlag() if stop is None else stop, lambda *_: None)

    return make


@pytest.fixture
def signals() -> Iterator[Callable[[], StopFlag]]:
    """Makes stop flags that listen to the process's signals; the handlers are put back at the end."""
    before = {signum: signal.getsignal(signum) for signum in HANDLED}

    def listening() -> StopFlag:
        flag = StopFlag()
        flag.install()
        return flag

    yield listening
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def on_batch(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[int], object]]:
    """Functions appended here are called with the step each time a training draws a batch, before its update."""
    listeners: list[Callable[[int], object]] = []
    original = TensorStream.batch

    def batch(stream: TensorStream, step: int) -> Batch:
        for listener in listeners:
            listener(step)
        return original(stream, step)

    monkeypatch.setattr(TensorStream, "batch", batch)
    return listeners


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Start]:
    """Every training that is begun or continued, in order."""
    found: list[Start] = []
    prepare, step = MaskedTraining.prepare, MaskedStep.__call__

    def spied_prepare(module: MaskedTraining, optimizer: Optimizer) -> None:
        prepare(module, optimizer)
        found.append(Start(module, snapshot(module.network), optimizer_state(optimizer, module.network)))

    def spied_step(masked: MaskedStep, optimizer: Optimizer) -> None:
        found[-1].rates.append(optimizer.param_groups[0]["lr"])
        step(masked, optimizer)

    monkeypatch.setattr(MaskedTraining, "prepare", spied_prepare)
    monkeypatch.setattr(MaskedStep, "__call__", spied_step)
    return found


@pytest.fixture
def half() -> Callable[..., Mask]:
    """A random mask of half of the weights of every layer."""

    def draw(of: Mask, seed: int = 0) -> Mask:
        generator = torch.Generator().manual_seed(seed)
        return Mask({name: torch.rand(shape, generator=generator) < 0.5 for name, shape in of.shapes.items()})

    return draw
