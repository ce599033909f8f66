"""What the lab hands to methods: initial weights, controls, and noise that is paired between rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from training_tools import AUGMENTED, MOMENTUM, Start, assert_pruned_are_zero, assert_same_bits

from lottery.data.tensors import TensorStream
from lottery.stages.controls import run_control
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.state import digest_of, save_state, state_digest
from lottery.ticket import Mask, Ticket
from lottery.training.rewind import is_statistic

NETWORKS = {
    "mlp": ("model=mlp", "model.hidden=[40,30]"),
    "resnet20": ("model=resnet20", "model.bn_scale=uniform"),
    "conv2": ("model=conv2",),
}


def pruned_round(lab: Lab, mask: Mask, index: int = 1) -> Round:
    dense = lab.train(lab.initial, keep=lab.rewind.keep_dense())
    ticket = lab.rewind.ticket(dense, dense, mask)
    return Round(index, ticket, lab.train(ticket))


@pytest.mark.parametrize("overrides", NETWORKS.values(), ids=NETWORKS)
def test_reinitialised_weights_are_another_draw_from_the_same_distribution(
    make_lab: Callable[..., Lab], overrides: tuple[str, ...]
) -> None:
    """T1.6: each layer's mean and standard deviation within four standard errors of the first draw's."""
    lab = make_lab(*overrides)
    first, second = lab.initial.state.tensors(), lab.initial_state(1234).tensors()
    assert set(first) == set(second)
    for name, shape in lab.initial.mask.shapes.items():
        a, b, n = first[name].double().flatten(), second[name].double().flatten(), shape.numel()
        assert (a != b).all()
        spread = a.std()
        assert abs(a.mean() - b.mean()) < 4 * spread * (2 / n) ** 0.5
        # The normal distribution's standard error; the uniform one's is smaller.
        assert abs(a.std() - b.std()) < 4 * spread * (1 / n) ** 0.5
    for name in first:
        if is_statistic(name):
            assert torch.equal(first[name], second[name])


def test_the_reinit_control_shares_mask_schedule_and_order_with_its_ticket(
    make_lab: Callable[..., Lab], half: Callable[..., Mask], starts: list[Start]
) -> None:
    lab = make_lab(*MOMENTUM)
    round = pruned_round(lab, half(lab.initial.mask))
    controls = [run_control(lab, round, "reinit", copy) for copy in (0, 1)]
    for control, start in zip(controls, starts[-2:], strict=True):
        assert (control.index, control.control) == (1, "reinit")
        assert control.mask == round.mask
        assert replace(control.ticket, state=round.ticket.state) == round.ticket
        assert_same_bits(start.network, control.mask.apply(control.ticket.state.tensors()))
        for name, kept in control.mask.items():
            assert (control.ticket.state.tensors()[name] != round.ticket.state.tensors()[name])[kept].all()
        assert_pruned_are_zero(control.trained.state.tensors(), control.mask)
    assert controls[0].ticket.state != controls[1].ticket.state
    # Another round's copies are other draws; the same one's are the same.
    assert run_control(lab, replace(round, index=2), "reinit", 0).ticket.state != controls[0].ticket.state
    assert run_control(lab, round, "reinit", 0).ticket == controls[0].ticket


@pytest.mark.parametrize("kind", ["random", "shuffle"])
def test_mask_controls_keep_the_weights_and_the_count_of_every_layer(
    make_lab: Callable[..., Lab], half: Callable[..., Mask], starts: list[Start], kind: str
) -> None:
    lab = make_lab(*MOMENTUM)
    round = pruned_round(lab, half(lab.initial.mask))
    control = run_control(lab, round, kind, 0)
    assert control.mask != round.mask
    assert control.mask.layer_kept == round.mask.layer_kept
    assert replace(control.ticket, mask=round.mask) == round.ticket
    assert_same_bits(starts[-1].network, control.mask.apply(round.ticket.state.tensors()))
    assert_pruned_are_zero(control.trained.state.tensors(), control.mask)


def test_a_reinitialised_control_forgets_pretrained_weights(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    source = make_lab("model=mlp", "model.hidden=[12]").network(99).state_dict()
    path = tmp_path / "weights.safetensors"
    save_state(source, path)
    lab = make_lab("model=mlp", "model.hidden=[12]", f"model.weights={path}")
    assert_same_bits(lab.initial.state.tensors(), source)
    drawn = lab.initial_state(5).tensors()
    assert all((drawn[name] != source[name]).all() for name in source)
    assert_same_bits(drawn, make_lab("model=mlp", "model.hidden=[12]").network(5).state_dict())


def drawn_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Every batch as it is drawn: its step, and the digest of its images and labels."""
    found: list[tuple[int, str]] = []
    original = TensorStream.batch

    def batch(stream: TensorStream, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = original(stream, step)
        found.append((step, digest_of([("images", images), ("labels", labels)])))
        return images, labels

    monkeypatch.setattr(TensorStream, "batch", batch)
    return found


def dropout_states(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The state of the random generator each time that a training applies dropout."""
    found: list[str] = []
    original = nn.Dropout.forward

    def forward(module: nn.Dropout, images: torch.Tensor) -> torch.Tensor:
        if module.training:
            found.append(state_digest({"": torch.get_rng_state()}))
        return original(module, images)

    monkeypatch.setattr(nn.Dropout, "forward", forward)
    return found


def test_noise_is_a_function_of_seed_and_step_alone(
    make_lab: Callable[..., Lab], half: Callable[..., Mask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, augmentation and dropout of step s are the same in the dense run, its tickets and their controls."""
    batches, dropout = drawn_batches(monkeypatch), dropout_states(monkeypatch)
    lab = make_lab(*AUGMENTED, "rewind.to=7it")
    round = pruned_round(lab, half(lab.initial.mask))
    for kind in ("reinit", "random", "shuffle"):
        run_control(lab, round, kind, 0)
    dense, *others = [0, *range(30, 30 + 4 * 23, 23)]
    assert [step for step, _ in batches[:30]] == list(range(30))
    assert len(batches) == len(dropout) == 30 + 4 * 23
    assert len({data for _, data in batches[:30]}) == len(set(dropout[:30])) == 30
    for start in others:
        assert batches[start : start + 23] == batches[dense + 7 : 30]
        assert dropout[start : start + 23] == dropout[dense + 7 : 30]


def test_noise_goes_with_the_position_in_the_data_order_not_in_the_schedule(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, dropout = drawn_batches(monkeypatch), dropout_states(monkeypatch)
    lab = make_lab(*AUGMENTED)
    lab.train(lab.initial)
    lab.train(replace(lab.initial, step=7, order_step=11, steps=10))
    assert batches[30:] == batches[11:21]
    assert dropout[30:] == dropout[11:21]


@pytest.mark.parametrize("seed", ["seeds.order=1", "seeds.init=1", "seeds.mask=1", "seeds.split=1"])
def test_each_seed_drives_its_own_stream(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, seed: str
) -> None:
    batches, dropout = drawn_batches(monkeypatch), dropout_states(monkeypatch)
    outcomes = []
    for runs, overrides in (("one", ()), ("two", (seed,))):
        lab = make_lab(*AUGMENTED, *overrides, "train.steps=6it", "rewind.to=init", runs=runs)
        first = len(batches)
        lab.train(lab.initial)
        outcomes.append((lab.initial.state.digest, batches[first:], dropout[first:]))
    (init, data, noise), (other_init, other_data, other_noise) = outcomes
    assert (init != other_init) == (seed == "seeds.init=1")
    assert (data != other_data) == (seed in ("seeds.order=1", "seeds.split=1"))
    assert (noise != other_noise) == (seed == "seeds.order=1")


def test_scores_are_a_function_of_seed_and_mask(make_lab: Callable[..., Lab], half: Callable[..., Mask]) -> None:
    mask = half(make_lab().initial.mask)
    found = {}
    for overrides in ((), ("seeds.mask=1",)):
        lab = make_lab("criterion=random", *overrides)
        trained = lab.train(lab.initial)
        scores = [state_digest(lab.scores(trained.state, m)) for m in (mask, mask, lab.initial.mask)]
        assert scores[0] == scores[1] != scores[2]
        found[overrides] = scores
    assert len({*found[()], *found[("seeds.mask=1",)]}) == 4


def test_the_initial_ticket_is_the_whole_network_at_step_0(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("prunable.exclude=[fc]")
    assert lab.initial == Ticket(lab.initial.mask, lab.initial.state, step=0, order_step=0, steps=30)
    assert list(lab.initial.mask) == ["conv1.weight", "conv2.weight"]
    assert lab.initial.mask.density == 1
    assert lab.total_weights == sum(t.numel() for n, t in lab.network(0).state_dict().items() if t.dim() > 1)
    assert_same_bits(lab.initial.state.tensors(), lab.network(0).state_dict())
