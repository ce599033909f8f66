"""What the tests of training share: small studies, composed as the command line composes them, under `tmp_path`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch.optim import Optimizer
from training_tools import Start, draw_nothing, small_config

from lottery.config import settings
from lottery.data.dataset import Batch
from lottery.data.tensors import TensorStream
from lottery.ranks import alone
from lottery.signals import HANDLED, StopFlag
from lottery.stages.lab import Lab
from lottery.state import snapshot
from lottery.ticket import Mask
from lottery.training.masking import MaskedStep
from lottery.training.module import MaskedTraining
from lottery.training.optim import optimizer_state


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tests run side by side. So each has one thread, studies have one process, and what they start is the same."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alone, "OWN_THREADS", 1)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Studies note which code of the user's own they ran, in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


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
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies end without figures and report: for tests that do not look at them."""
    draw_nothing(monkeypatch)


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
