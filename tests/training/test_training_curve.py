"""What a training measures: the curve, the early-stop step (docs/methods/imp.md), losses that are no number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_tools import AUGMENTED, MOMENTUM, Start, assert_same_bits

from lottery.stages.lab import Lab
from lottery.state import snapshot
from lottery.training.evaluate import evaluate
from lottery.training.module import MaskedTraining
from lottery.training.progress import NonFiniteLoss, Progress


def points(curve: list[list[Any]], split: str) -> dict[int, float]:
    return {point[0]: point[2] for point in curve if point[1] == split}


@pytest.mark.parametrize(
    ("every", "start", "steps", "expected"),
    [
        ("10it", 0, 30, [0, 10, 20, 30]),
        ("10it", 7, 23, [7, 10, 20, 30]),  # starts between two points
        ("10it", 10, 15, [10, 20, 25]),  # ends between two points
        ("1000it", 0, 12, [0, 12]),  # longer than the training
        ("1ep", 0, 13, [0, 6, 12, 13]),
        ("1it", 3, 3, [3, 4, 5, 6]),
    ],
)
def test_the_curve_has_a_point_at_every_multiple_and_at_both_ends(
    make_lab: Callable[..., Lab], every: str, start: int, steps: int, expected: list[int]
) -> None:
    lab = make_lab(f"train.eval_every={every}")
    trained = lab.train(replace(lab.initial, step=start, order_step=start, steps=steps))
    curve = trained.result["curve"]
    assert list(points(curve, "validation")) == expected
    assert list(points(curve, "train")) == expected[1:]
    assert trained.result["steps"] == steps
    assert trained.result["val_loss"] == points(curve, "validation")[expected[-1]]


def test_the_train_loss_is_the_mean_over_the_steps_since_the_last_point(make_lab: Callable[..., Lab]) -> None:
    fine, coarse = make_lab("train.eval_every=1it"), make_lab("train.eval_every=10it")
    each = points(fine.train(fine.initial).result["curve"], "train")
    means = points(coarse.train(coarse.initial).result["curve"], "train")
    for end in (10, 20, 30):
        expected = torch.tensor([each[step] for step in range(end - 9, end + 1)], dtype=torch.float32).mean().item()
        assert means[end] == expected


def test_kept_steps_and_checkpoints_do_not_show_in_the_curve(make_lab: Callable[..., Lab]) -> None:
    plain = make_lab(*AUGMENTED, runs="plain")
    divided = make_lab(*AUGMENTED, "train.checkpoint_steps=3", runs="divided")
    one, other = plain.train(plain.initial), divided.train(divided.initial, keep=[4, 7, 29])
    assert one.key == other.key
    assert one.result["curve"] == other.result["curve"]
    assert one.result["state_digest"] == other.result["state_digest"]


def scored(lab: Lab, losses: list[float]) -> MaskedTraining:
    """A training whose validation losses are made up; its weights count the measurements."""
    module = MaskedTraining(lab.network(0), lab.initial, lab.recipe, lab.data_on, Progress(0))
    module.prepare(module.configure_optimizers())
    module.progress = Progress(0)
    made_up: Iterator[float] = iter(losses)
    module.score = lambda split: (next(made_up), 0.5)  # type: ignore[method-assign]
    for index in range(len(losses)):
        module.progress.step = 10 * index
        nn.init.constant_(module.network.fc.bias, index)  # type: ignore[union-attr, arg-type]
        module.measure()
    return module


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([2.0, 1.0, 1.5, 1.0, 3.0], 1),  # the first of equal ones
        ([1.0, 1.0, 1.0], 0),
        ([3.0, 2.0, 1.0], 2),
        ([1.0, 2.0, 0.5, 0.25, 0.3], 3),
    ],
)
def test_the_early_stop_step_is_the_first_argmin_of_the_validation_loss(
    make_lab: Callable[..., Lab], losses: list[float], best: int
) -> None:
    progress = scored(make_lab(), losses).progress
    assert [point[2] for point in progress.curve] == losses
    assert progress.best_step == 10 * best
    assert progress.best_loss == losses[best]
    assert progress.best_state is not None
    assert progress.best_state["fc.bias"].tolist() == [float(best)] * 10


def test_the_early_stop_test_accuracy_is_that_of_the_network_at_that_step(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("optim.lr=2.5", *MOMENTUM)  # so high that the loss goes up again
    trained = lab.train(lab.initial, keep=[10, 20])
    validation = points(trained.result["curve"], "validation")
    best = min(validation, key=lambda step: validation[step])
    assert trained.result["early_stop_step"] == best
    states = {0: lab.initial.state, 10: trained.at(10), 20: trained.at(20), 30: trained.state}
    network = lab.network(0)
    network.load_state_dict(states[best].tensors())
    loss, accuracy = evaluate(network, lab.dataset.batches("test", 1000))
    assert trained.result["early_stop_test_accuracy"] == accuracy
    assert (trained.result["test_loss"] == loss) == (best == 30)


def test_without_a_validation_set_there_is_no_early_stop(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("data.validation=0")
    result = lab.train(lab.initial).result
    assert points(result["curve"], "validation") == {}
    assert list(points(result["curve"], "train")) == [10, 20, 30]
    for name in ("early_stop_step", "early_stop_test_accuracy", "val_loss", "val_accuracy"):
        assert result[name] is None
    assert result["test_accuracy"] > 0.1


def test_evaluating_changes_no_buffer_no_mode_and_draws_nothing(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    network = lab.network(0)
    before, random = snapshot(network), torch.get_rng_state()
    assert network.training
    loss, accuracy = evaluate(network, lab.dataset.batches("test", 1000))
    assert network.training
    assert torch.equal(torch.get_rng_state(), random)
    assert_same_bits(snapshot(network), before)
    assert evaluate(network, lab.dataset.batches("test", 7)) == pytest.approx((loss, accuracy))  # a short last batch
    images, labels = next(lab.dataset.batches("test", 1000))
    logits = network.eval()(images)
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()
    with pytest.raises(ValueError, match="no batches"):
        evaluate(network, iter(()))


@pytest.mark.parametrize("bad", [3, 9, 14])
def test_a_loss_that_is_no_number_ends_the_training_and_names_the_step(
    make_lab: Callable[..., Lab], on_batch: list[Callable[[int], object]], starts: list[Start], bad: int
) -> None:
    lab = make_lab()

    def spoil(step: int) -> None:
        if step == bad:
            nn.init.constant_(starts[-1].module.network.fc.bias, float("nan"))  # type: ignore[union-attr, arg-type]

    on_batch.append(spoil)
    with pytest.raises(NonFiniteLoss, match=f"the loss became nan at step {bad}; "):
        lab.train(lab.initial)
    assert list(Path(lab.store.root).rglob("DONE")) == []


def test_an_update_that_goes_wrong_at_the_very_end_is_found_too(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("train.steps=1it", "rewind.to=init", "optim.lr=1e38", "optim.weight_decay=1e30", "data.validation=0")
    with pytest.raises(NonFiniteLoss, match=r"the train loss became (nan|inf) at step 1; "):
        lab.train(lab.initial)
    assert list(Path(lab.store.root).rglob("DONE")) == []


def test_bf16_computes_in_bf16_and_keeps_everything_in_float32(make_lab: Callable[..., Lab]) -> None:
    single, half = make_lab(*MOMENTUM), make_lab(*MOMENTUM, "train.precision=bf16")
    one, other = (lab.train(lab.initial, keep=[7]) for lab in (single, half))
    assert one.key != other.key
    assert one.result["state_digest"] != other.result["state_digest"]
    stored = other.optimizer_at(7)
    assert stored is not None
    for state in (other.state.tensors(), other.at(7).tensors(), stored.tensors()):
        assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}
    # The same network before its first step, to bf16's 8 bits: close, and not equal.
    exact, rounded = (points(trained.result["curve"], "validation")[0] for trained in (one, other))
    assert rounded == pytest.approx(exact, rel=2**-6)
    assert rounded != exact
