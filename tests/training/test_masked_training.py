"""Pruned weights are exactly zero and without influence (docs/methods/index.md), whatever the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_networks import Partial
from torch import nn
from training_tools import AUGMENTED, MOMENTUM, assert_pruned_are_zero, assert_same_bits, pruned_values

from lottery.config import Optim
from lottery.pruning.prunable import prunable
from lottery.stages.lab import Lab
from lottery.state import State, StateRef, load_state, snapshot
from lottery.ticket import Mask, Ticket
from lottery.training.checkpoint import load_checkpoint
from lottery.training.evaluate import evaluate
from lottery.training.masking import MaskedStep, mask_optimizer_state
from lottery.training.module import Hooks, MaskedTraining
from lottery.training.optim import build_optimizer, load_optimizer_state_, optimizer_state
from lottery.training.progress import Progress

OPTIMIZERS = {
    "momentum": MOMENTUM,
    "nesterov": (*MOMENTUM, "optim.nesterov=true"),
    "clipped": (*MOMENTUM, "optim.clip_norm=0.05"),
    "adam": ("optim=adam", "optim.weight_decay=1e-2"),
    "adamw": ("optim=adamw", "optim.weight_decay=0.1"),
    "channels_last": (*MOMENTUM, "train.channels_last=true"),
    "bf16": (*MOMENTUM, "train.precision=bf16"),
}
every_optimizer = pytest.mark.parametrize("overrides", OPTIMIZERS.values(), ids=OPTIMIZERS)


def spoilt(state: State, mask: Mask) -> State:
    """The state with large, infinite and undefined values wherever the mask prunes."""
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([1e6, -1e6, torch.inf, torch.nan])
    hidden = {n: values[torch.randint(4, shape, generator=generator)] for n, shape in mask.shapes.items()}
    return {name: torch.where(mask[name], t, hidden[name]) if name in mask else t for name, t in state.items()}


def training(lab: Lab, ticket: Ticket, **options: object) -> MaskedTraining:
    """A training of the ticket, ready to advance without Lightning."""
    network = lab.network(0)
    network.load_state_dict(ticket.state.tensors())
    module = MaskedTraining(network, ticket, lab.recipe, lab.data_on, Progress(ticket.step), **options)  # type: ignore[arg-type]
    module.prepare(module.configure_optimizers())
    return module


def advancing(module: MaskedTraining, steps: int) -> Iterator[int]:
    for step in range(module.progress.step, module.progress.step + steps):
        module.advance(step + 1)
        yield step + 1


@every_optimizer
def test_the_hidden_value_of_a_pruned_weight_changes_no_bit(
    make_lab: Callable[..., Lab], half: Callable[..., Mask], overrides: tuple[str, ...]
) -> None:
    lab = make_lab(*overrides, *AUGMENTED)
    state, mask = lab.initial.state.tensors(), half(lab.initial.mask)
    hidden = replace(lab.initial, mask=mask, state=StateRef.of(spoilt(state, mask)))
    one, other = (training(lab, ticket) for ticket in (replace(lab.initial, mask=mask), hidden))
    images, _ = one.stream.batch(0)
    assert torch.equal(one.network.eval()(images), other.network.eval()(images))
    for _ in zip(advancing(one, 5), advancing(other, 5), strict=True):
        assert_same_bits(snapshot(one.network), snapshot(other.network))
        assert_pruned_are_zero(snapshot(one.network), mask)
    moved = snapshot(one.network)
    assert all(bool((moved[name] != state[name])[kept].all()) for name, kept in mask.items())


@every_optimizer
def test_hidden_optimizer_state_of_a_pruned_weight_changes_no_bit(
    make_lab: Callable[..., Lab], half: Callable[..., Mask], overrides: tuple[str, ...]
) -> None:
    lab = make_lab(*overrides, "rewind.optimizer=rewind", "train.steps=12it")
    dense, mask = lab.train(lab.initial, keep=[7]), half(lab.initial.mask)
    kept = dense.optimizer_at(7)
    assert kept is not None
    hidden = kept.tensors()
    for key in hidden:
        name, _, slot = key.rpartition("/")
        if name in mask and slot != "step":
            hidden[key] = spoilt({name: hidden[key]}, mask)[name]
    ticket = lab.rewind.ticket(dense, dense, mask)
    one, other = lab.train(ticket), lab.train(replace(ticket, optimizer=StateRef.of(hidden)))
    assert one.key != other.key
    assert_same_bits(one.state.tensors(), other.state.tensors())


@every_optimizer
def test_pruned_weights_are_plus_zero_at_every_step_and_in_every_file(
    make_lab: Callable[..., Lab], half: Callable[..., Mask], overrides: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lab = make_lab(*overrides, *AUGMENTED, "train.checkpoint_steps=1", "train.steps=12it")
    ticket = replace(lab.initial, mask=half(lab.initial.mask))
    from lottery.stages import train

    looked: list[int] = []

    def looking(module: MaskedTraining, path: Path, stage: str) -> None:
        save(module, path, stage)
        network, optimizer, progress = load_checkpoint(path, stage)
        for state in (network, snapshot(module.network), *([progress.best_state] if progress.best_state else [])):
            assert_pruned_are_zero(state, ticket.mask)
        for slot in {key.rpartition("/")[2] for key in optimizer} - {"step"}:
            slots = {name: optimizer[f"{name}/{slot}"] for name in ticket.mask}
            assert not pruned_values(slots, ticket.mask).any()
            assert any(value.any() for value in slots.values())
        looked.append(progress.step)

    save = train.save_checkpoint
    monkeypatch.setattr(train, "save_checkpoint", looking)
    trained = lab.train(ticket, keep=[4, 10, 12])
    assert looked == list(range(1, 13))
    files = sorted(trained.folder.glob("*state*.safetensors"))
    assert [file.name for file in files] == [
        "state.safetensors", "state_00000004.safetensors", "state_00000010.safetensors", "state_00000012.safetensors",
    ]  # fmt: skip
    for file in files:
        assert_pruned_are_zero(load_state(file), ticket.mask)


def test_the_clipping_norm_is_that_of_the_masked_gradients() -> None:
    torch.manual_seed(0)
    network, clip, rate = nn.Linear(50, 20), 0.01, 0.5
    mask = Mask({"weight": torch.rand(20, 50) < 0.1})
    masked_step = MaskedStep(network, mask, clip)
    before = snapshot(network)
    optimizer = build_optimizer(Optim(lr=rate), network)
    network(torch.randn(30, 50)).square().sum().backward()
    masked_step(optimizer)
    after = snapshot(network)
    moved = torch.cat([(after[name] - before[name]).flatten() for name in after]).double()
    # SGD moves by rate * gradient, and the norm of the clipped gradient is `clip`, to float32's accuracy.
    torch.testing.assert_close(moved.norm().item(), rate * clip, rtol=1e-3, atol=0.0)


def test_a_full_mask_trains_as_if_there_were_none(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(*MOMENTUM)
    assert training(lab, lab.initial).masked_step.weights == []
    almost = {name: torch.ones(shape, dtype=torch.bool) for name, shape in lab.initial.mask.shapes.items()}
    almost["fc.weight"][0, 0] = False
    ticket = replace(lab.initial, mask=Mask(almost))
    assert len(training(lab, ticket).masked_step.weights) == 1


def test_masked_weights_without_a_gradient_are_passed_over() -> None:
    torch.manual_seed(0)
    network = Partial(6, 3)
    full = Mask.ones(prunable(network))
    mask = Mask({name: torch.rand(shape) < 0.5 for name, shape in full.shapes.items()})
    masked_step = MaskedStep(network, mask)
    optimizer = build_optimizer(Optim(momentum=0.9, weight_decay=0.1), network)
    before = snapshot(network)
    for _ in range(3):
        network(torch.randn(4, 6)).square().sum().backward()
        masked_step(optimizer)
    after = snapshot(network)
    assert_pruned_are_zero(after, mask)
    for name in ("frozen.weight", "unused.weight"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["output.weight"], before["output.weight"])
    assert set(optimizer_state(optimizer, network)) >= {"output.weight/momentum_buffer"}


def test_what_the_optimizer_remembers_of_a_pruned_weight_does_not_bring_it_back() -> None:
    torch.manual_seed(0)
    network = nn.Linear(9, 5)
    optimizer = build_optimizer(Optim(momentum=0.9), network)
    network(torch.randn(4, 9)).square().sum().backward()
    optimizer.step()  # dense, so that every weight has momentum
    mask = Mask({"weight": torch.rand(5, 9) < 0.5})
    masked_step = MaskedStep(network, mask)
    for _ in range(3):
        network(torch.randn(4, 9)).square().sum().backward()
        masked_step(optimizer)
        assert not pruned_values(snapshot(network), mask).any()


def test_optimizer_state_is_masked_slot_by_slot() -> None:
    mask = Mask({"a.weight": torch.tensor([True, False, True])})
    state = {
        "a.weight/exp_avg": torch.tensor([1.0, float("nan"), 3.0]),
        "a.weight/step": torch.tensor(4.0),
        "a.bias/exp_avg": torch.tensor([5.0]),
    }
    masked = mask_optimizer_state(state, mask)
    assert masked["a.weight/exp_avg"].tolist() == [1.0, 0.0, 3.0]
    assert masked["a.weight/step"] == 4.0
    assert masked["a.bias/exp_avg"] == 5.0


@pytest.mark.parametrize("options", [Optim(momentum=0.9), Optim(name="adam", lr=1e-2), Optim(name="adamw", lr=1e-2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_optimizer_state_put_back_continues_bit_for_bit(options: Optim, layout: torch.memory_format) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(80, 4)).to(memory_format=layout)

    def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
            network(images.to(memory_format=layout)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, begun, continued = network(), network(), network()
    train(straight, build_optimizer(options, straight), range(6))
    first = build_optimizer(options, begun)
    train(begun, first, range(3))
    second = build_optimizer(options, continued)
    continued.load_state_dict(snapshot(begun))
    stored = {key: value.contiguous() for key, value in optimizer_state(first, begun).items()}  # as files hold it
    load_optimizer_state_(second, continued, stored)
    train(continued, second, range(3, 6))
    assert_same_bits(snapshot(continued), snapshot(straight))


def test_stop_and_due_are_asked_after_every_step(make_lab: Callable[..., Lab]) -> None:
    lab, asked = make_lab(), list[int]()

    def due(step: int) -> bool:
        asked.append(step)
        return step == 4

    module = training(lab, lab.initial, hooks=Hooks(due=due))
    assert len(module.advance(9)) == 4
    assert asked == [1, 2, 3, 4]
    module.hooks.stop = lambda: True
    assert len(module.advance(9)) == 1
    assert module.progress.step == 5


def test_labels_are_smoothed_in_training_alone(make_lab: Callable[..., Lab]) -> None:
    """The loss against 0.8 of the label and 0.02 of each of ten classes (Szegedy et al. 2016, section 7)."""
    lab = make_lab("train.label_smoothing=0.2", "model.dropout=0")
    module = training(lab, lab.initial)
    images, labels = module.stream.batch(0)
    log = module.network(images).log_softmax(1)
    target = 0.8 * nn.functional.one_hot(labels, 10) + 0.02
    losses = module.advance(1)
    torch.testing.assert_close(losses[0], -(target * log).sum(1).mean().detach())
    plain = evaluate(module.network, module.data.batches("validation", 1000))
    assert module.score("validation") == pytest.approx(plain)
