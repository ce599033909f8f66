"""Rewinding, item by item (docs/methods/imp.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from training_tools import AUGMENTED, MOMENTUM, STEPWISE, Start, assert_same_bits

from lottery.errors import ConfigError
from lottery.stages.lab import Lab
from lottery.stages.trained import Trained
from lottery.state import State
from lottery.ticket import Mask
from lottery.training.masking import mask_optimizer_state
from lottery.training.rewind import is_statistic

OPTIMIZERS = {
    "sgd": (),
    "momentum": MOMENTUM,
    "adam": ("optim=adam", "optim.lr=1e-2"),
    "adamw": ("optim=adamw", "optim.lr=1e-2"),
    "channels_last": (*MOMENTUM, "train.channels_last=true"),
    "bf16": (*MOMENTUM, "train.precision=bf16"),
}


@pytest.mark.parametrize("overrides", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("to", [7, 10])
def test_a_full_mask_with_everything_rewound_repeats_the_dense_run(
    make_lab: Callable[..., Lab], overrides: tuple[str, ...], to: int
) -> None:
    """Weights, statistics, optimizer, schedule, data order, augmentation and dropout all come from the dense run."""
    lab = make_lab(*overrides, *AUGMENTED, *STEPWISE, f"rewind.to={to}it", "rewind.optimizer=rewind")
    dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
    ticket = lab.rewind.ticket(dense, dense, lab.initial.mask)
    assert ticket.steps == 30 - to
    again = lab.train(ticket)
    assert again.key != dense.key
    assert_same_bits(again.state.tensors(), dense.state.tensors())
    tail = [point for point in dense.result["curve"] if point[0] > 10]
    assert [point for point in again.result["curve"] if point[0] > 10] == tail


def test_the_state_of_step_k_is_that_of_a_training_of_k_steps(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(*MOMENTUM, *AUGMENTED)
    dense = lab.train(lab.initial, keep=[7, 30])
    short = lab.train(replace(lab.initial, steps=7))
    assert_same_bits(dense.at(7).tensors(), short.state.tensors())
    assert_same_bits(dense.at(30).tensors(), dense.state.tensors())
    assert_same_bits(dense.at(0).tensors(), lab.network(0).state_dict())


@pytest.mark.parametrize(("to", "overrides"), [("7it", ()), ("init", ()), ("1ep", ("train.channels_last=true",))])
def test_every_round_starts_from_the_dense_state_of_step_k(
    make_lab: Callable[..., Lab], starts: list[Start], to: str, overrides: tuple[str, ...]
) -> None:
    """Over three rounds, and the stored state stays as it was: what Lightning's own pruning callback fails at."""
    lab = make_lab(*MOMENTUM, *AUGMENTED, *overrides, f"rewind.to={to}", "method.rounds=3", "method.rate=0.4")
    from lottery.methods.imp import IMP

    rounds = IMP(rounds=3, rate=0.4)(lab)
    dense = next(rounds).trained
    expected = dense.at(lab.rewind.step).tensors()
    written = {path: path.read_bytes() for path in dense.folder.iterdir()}
    assert any(is_statistic(name) for name in expected)
    for index, round in enumerate(rounds, start=1):
        assert_same_bits(round.ticket.state.tensors(), expected)
        assert_same_bits(starts[-1].network, round.mask.apply(expected))
        assert starts[-1].optimizer == {}
        assert starts[-1].module.progress.step <= 30
        assert not torch.equal(round.trained.state.tensors()["conv2.bias"], expected["conv2.bias"])
        assert {path: path.read_bytes() for path in dense.folder.iterdir()} == written
        assert index <= 3
    assert len(starts) == 4


@pytest.fixture(scope="module")
def trained_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Trained, Trained, Mask]:
    """A dense run, a half-dense ticket trained after it with optimizer kept, and a mask for the next ticket."""
    from training_tools import small_config

    from lottery.config import settings
    from lottery.signals import StopFlag

    cfg = small_config((*MOMENTUM, "rewind.optimizer=keep"))
    cfg.paths.runs = str(tmp_path_factory.mktemp("pair"))
    lab = Lab(settings(cfg), StopFlag(), lambda *_: None)
    dense = lab.train(lab.initial, keep={7, 30})
    generator = torch.Generator().manual_seed(0)
    mask = Mask({n: torch.rand(s, generator=generator) < 0.5 for n, s in lab.initial.mask.shapes.items()})
    sparse = lab.train(replace(lab.initial, mask=mask, state=dense.at(7), step=7, order_step=9, steps=23), keep={30})
    return lab, dense, sparse, mask


@pytest.mark.parametrize(("weights", "batchnorm"), product(["rewind", "reset", "keep"], repeat=2))
def test_weights_and_statistics_come_from_where_the_policy_says(
    trained_pair: tuple[Lab, Trained, Trained, Mask], weights: str, batchnorm: str
) -> None:
    lab, dense, sparse, mask = trained_pair
    policy = replace(lab.rewind, options=replace(lab.rewind.options, weights=weights, batchnorm=batchnorm))
    sources = {"rewind": dense.at(7).tensors(), "reset": lab.initial.state.tensors(), "keep": sparse.state.tensors()}
    state = policy.ticket(dense, sparse, mask).state.tensors()
    assert set(state) == set(sources["reset"])
    for name, value in state.items():
        statistic = name.startswith("bn") and not name.endswith(("weight", "bias"))
        assert torch.equal(value, sources[batchnorm if statistic else weights][name]), name
    for one, other in (("rewind", "reset"), ("rewind", "keep"), ("reset", "keep")):
        assert all(not torch.equal(sources[one][name], sources[other][name]) for name in state)


@pytest.mark.parametrize("optimizer", ["rewind", "reset", "keep"])
def test_optimizer_state_comes_from_where_the_policy_says(
    trained_pair: tuple[Lab, Trained, Trained, Mask], starts: list[Start], optimizer: str
) -> None:
    lab, dense, sparse, mask = trained_pair
    policy = replace(lab.rewind, options=replace(lab.rewind.options, optimizer=optimizer))
    ticket = policy.ticket(dense, sparse, mask)
    lab.train(ticket)
    if optimizer == "reset":
        assert ticket.optimizer is None
        assert starts[-1].optimizer == {}
        return
    source = dense.optimizer_at(7) if optimizer == "rewind" else sparse.optimizer_at(30)
    assert source is not None
    expected: State = mask_optimizer_state(source.tensors(), mask)
    assert set(expected) == {f"{name}/momentum_buffer" for name in dict(lab.network(0).named_parameters())}
    assert set(starts[-1].optimizer) == set(expected)
    for key, value in starts[-1].optimizer.items():
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize(
    ("schedule", "step", "steps", "hold"), [("rewind", 7, 23, False), ("reset", 0, 30, False), ("keep", 7, 23, True)]
)
@pytest.mark.parametrize(("order", "order_step"), [("rewind", 7), ("reset", 0), ("keep", 32)])
def test_schedule_and_data_order_start_where_the_policy_says(
    trained_pair: tuple[Lab, Trained, Trained, Mask],
    on_batch: list[Callable[[int], object]], starts: list[Start],
    schedule: str, step: int, steps: int, hold: bool, order: str, order_step: int,
) -> None:  # fmt: skip
    lab, dense, sparse, mask = trained_pair
    policy = replace(lab.rewind, options=replace(lab.rewind.options, schedule=schedule, order=order))
    ticket = policy.ticket(dense, sparse, mask)
    assert (ticket.step, ticket.steps, ticket.hold_lr) == (step, steps, hold)
    drawn: list[int] = []
    on_batch.append(drawn.append)
    trained = lab.train(ticket)
    # The ticket before this one drew the batches 9 … 31, so the next that it had not drawn is 32.
    if not trained.cached:
        assert drawn == list(range(order_step, order_step + steps))
    assert ticket.order_step == order_step


@pytest.mark.parametrize("preset", ["weights", "lr", "finetune"])
def test_rewinding_to_the_end(make_lab: Callable[..., Lab], half: Callable[..., Mask], preset: str) -> None:
    """T2.3: k = T gives the final weights; nothing is left to train."""
    lab = make_lab(*MOMENTUM, f"rewind={preset}", "rewind.to=5ep")
    dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
    ticket = lab.rewind.ticket(dense, dense, half(lab.initial.mask))
    assert (ticket.step, ticket.steps) == (30, 0)
    trained = lab.train(ticket)
    final = ticket.mask.apply(dense.state.tensors())
    assert_same_bits(trained.state.tensors(), final)
    assert trained.result["steps"] == 0
    assert [point[:2] for point in trained.result["curve"]] == [[30, "validation"]]
    assert trained.result["early_stop_step"] == 30
    assert trained.result["test_accuracy"] == trained.result["early_stop_test_accuracy"]


def test_rewinding_to_step_0_is_resetting(make_lab: Callable[..., Lab], half: Callable[..., Mask]) -> None:
    """T2.3 and T2.8: the same ticket, so the same stage."""
    tickets = []
    for overrides in (
        ("rewind=init", "rewind.to=init"),
        ("rewind=weights", "rewind.to=0it"),
        ("rewind=weights", "rewind.to=init"),
        ("rewind.to=12it", *(f"rewind.{item}=reset" for item in ("weights", "batchnorm", "schedule", "order"))),
    ):
        lab = make_lab(*MOMENTUM, *overrides)
        dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
        tickets.append(lab.rewind.ticket(dense, dense, half(lab.initial.mask)))
    assert all(ticket == tickets[0] for ticket in tickets)
    assert tickets[0].steps == 30
    assert_same_bits(tickets[0].state.tensors(), lab.initial.state.tensors())


@pytest.mark.parametrize("epochs", [1, 3, 5])
def test_learning_rate_rewinding_trains_the_last_t_epochs(
    make_lab: Callable[..., Lab], starts: list[Start], epochs: int
) -> None:
    """T2.8, with six steps an epoch and T = 5 epochs."""
    lab = make_lab("rewind=lr", f"rewind.to={5 - epochs}ep")
    dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
    trained = lab.train(lab.rewind.ticket(dense, dense, lab.initial.mask))
    assert trained.result["steps"] == len(starts[-1].rates) == 6 * epochs
    assert_same_bits(starts[-1].network, dense.state.tensors())


def test_a_rewind_step_past_the_end_is_refused(make_lab: Callable[..., Lab]) -> None:
    with pytest.raises(ConfigError, match=r"^rewind.to: got '31it', expected .*30"):
        make_lab("rewind.to=31it")
