"""torch.compile in training: the same masks, names and (up to rounding) numbers, and the same bits after a resume."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_tools import AUGMENTED, MOMENTUM, assert_pruned_are_zero, assert_same_bits

from lottery.compose import composed
from lottery.errors import ConfigError, Interrupted, LotteryError
from lottery.models.mlp import mlp
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.stages.store import Store
from lottery.stages.trained import Trained
from lottery.state import State
from lottery.ticket import Mask
from lottery.training.compiled import compiled

SHORT = (*MOMENTUM, "train.batch_size=20")  # of 96 images: the fifth batch is short
NETWORKS = {  # overrides, and how far apart the results may be, as a share of the way from the start
    "mlp": (("model=mlp", "model.hidden=[20]"), 1e-5),
    "convolutional, channels_last, bf16": (
        ("model.dropout=0", "train.channels_last=true", "train.precision=bf16", *AUGMENTED), 0.03,
    ),
}  # fmt: skip


def distance(one: State, other: State) -> float:
    return float(sum((one[name].double() - other[name]).square().sum() for name in one) ** 0.5)


@pytest.mark.slow  # half a minute, most of it in the compiler
@pytest.mark.parametrize(("network", "apart"), NETWORKS.values(), ids=NETWORKS)
def test_compiled_agrees_with_eager_and_resumes_bit_for_bit(
    make_lab: Callable[..., Lab], half: Callable[..., Mask], signals: Callable[[], StopFlag],
    on_batch: list[Callable[[int], object]], tmp_path: Path, network: tuple[str, ...], apart: float,
) -> None:  # fmt: skip
    def train(name: str, *overrides: str, at: int | None = None) -> Trained:
        """Train half of the network, each time as in a fresh process; `at`: with an interruption at this step."""
        stop = signals()
        lab = make_lab(*SHORT, *network, *overrides, stop=stop)
        lab.store = Store(tmp_path / name)
        ticket = replace(lab.initial, mask=half(lab.initial.mask))
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        if at is not None:
            on_batch[:] = [lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == at else None]
            with pytest.raises(Interrupted):
                lab.train(ticket)
            on_batch.clear()
            stop.signum = None
            torch.compiler.reset()
        return lab.train(ticket)

    eager, fast = train("eager"), train("fast", "train.compile=true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "one for each size of a batch"
    assert fast.key != eager.key
    assert_pruned_are_zero(fast.state.tensors(), fast.ticket.mask)
    assert list(fast.state.tensors()) == list(eager.state.tensors())
    moved = distance(eager.state.tensors(), eager.ticket.state.tensors())
    assert 0 < distance(fast.state.tensors(), eager.state.tensors()) < apart * moved
    # Continued at the short batch, whose shape is then the first that the compiler sees.
    resumed = train("resumed", "train.compile=true", at=3)
    assert_same_bits(resumed.state.tensors(), fast.state.tensors())
    assert resumed.result["curve"] == fast.result["curve"]


@pytest.mark.slow
def test_networks_of_one_architecture_are_compiled_once() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(3):
        compiled(mlp(shape=(1, 4, 4), classes=3, hidden=[5]))(torch.randn(2, 1, 4, 4))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class Reading(nn.Module):
    """A network that reads a value, which no graph can hold."""

    def forward(self, images: Tensor) -> Tensor:
        return images * float(images.sum().item() > 0 and print("read") is None)


def test_a_network_that_cannot_be_compiled_is_one_line() -> None:
    with pytest.raises(LotteryError, match=r"^train.compile: torch cannot compile Reading here \(.*\); train"):
        compiled(Reading())(torch.ones(2, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo")
def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(LotteryError, match=r"train.compile: .*no-such-compiler") as caught:
        compiled(mlp(shape=(1, 4, 4), classes=3, hidden=[7]))(torch.randn(2, 1, 4, 4))
    assert "\n" not in str(caught.value)


def test_several_processes_do_not_compile() -> None:
    with pytest.raises(ConfigError, match=r"train.compile: got True, expected false where several processes"):
        composed(["+exp=imp_rewind", "train.compile=true", "trainer.devices=2"])
