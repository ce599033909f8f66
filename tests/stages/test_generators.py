"""Networks that draw from numpy's and Python's generators, built, trained and measured: equal keys, equal bits."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from training_tools import assert_same_bits

from lottery.config import settings
from lottery.errors import Interrupted
from lottery.seeding import seeded
from lottery.signals import StopFlag
from lottery.stages.bench import Bench
from lottery.stages.lab import Lab
from lottery.stages.trained import Trained

MODEL = {"_target_": "test_generators.Drawing"}


class Drawing(nn.Module):
    """Its weights, and what it does to its inputs in training and in evaluation, come from generators of all three."""

    def __init__(self, *, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(int(np.prod(shape)), classes)
        with torch.no_grad():
            self.fc.weight += torch.from_numpy(np.random.standard_normal(self.fc.weight.shape)).float()  # noqa: NPY002
            self.fc.bias += random.random()

    def forward(self, images: Tensor) -> Tensor:
        scale = 1 + 0.1 * random.random() + 0.1 * np.random.random() + 0.1 * float(torch.rand(()))  # noqa: NPY002
        return self.fc(images.flatten(1) * scale)


def disturbed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def drawn() -> list[float]:
    return [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002


@pytest.fixture
def trained(
    configure: Callable[..., DictConfig], on_batch: list[Callable[[int], object]]
) -> Callable[..., tuple[Lab, Trained]]:
    """Trains with the process's generators anywhere; with `stop_at` it is cut short and continued."""

    def train(runs: str, seed: int, stop_at: int | None = None) -> tuple[Lab, Trained]:
        cfg, stop = configure(runs=runs), StopFlag()
        cfg.model = MODEL
        disturbed(seed)
        lab = Lab(settings(cfg), stop, lambda *_: None)
        if stop_at is not None:
            on_batch.append(lambda step: setattr(stop, "signum", signal.SIGTERM if step == stop_at else None))
            with pytest.raises(Interrupted, match=f"step {stop_at + 1}"):
                lab.train(lab.initial)
            on_batch.clear()
            stop.signum = None
            disturbed(seed + 1)
        return lab, lab.train(lab.initial)

    return train


def test_what_is_drawn_from_any_generator_is_a_function_of_the_key(trained: Callable[..., tuple[Lab, Trained]]) -> None:
    (lab, first), (_, other), (_, continued) = (trained(*how) for how in (("a", 1), ("b", 2), ("c", 3, 9)))
    assert first.key == other.key == continued.key
    for again in (other, continued):
        assert_same_bits(first.state.tensors(), again.state.tensors())
        assert {**first.result, "seconds": 0} == {**again.result, "seconds": 0}
    bare = nn.Linear(64, 10)
    start = lab.initial.state.tensors()
    assert start["fc.weight"].std() > 3 * bare.weight.std()  # numpy's part is in it
    assert start["fc.bias"].mean() > 0.1


def test_scores_are_a_function_of_the_key(trained: Callable[..., tuple[Lab, Trained]]) -> None:
    def look() -> dict[str, float]:
        return {"drawn": sum(drawn())}

    found = []
    for runs, seed in (("a", 1), ("b", 2)):
        lab = trained(runs, seed)[0]
        disturbed(seed)
        found.append(Bench(lab).evaluated("any", {"version": 1}, look))
    assert found[0] == found[1]


def test_the_callers_generators_are_left_as_they_were(trained: Callable[..., tuple[Lab, Trained]]) -> None:
    disturbed(5)
    expected = drawn()
    trained("a", 5)
    assert drawn() == expected
    disturbed(5)
    with seeded(1):
        drawn()
    assert drawn() == expected
