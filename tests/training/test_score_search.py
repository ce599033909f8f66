"""The search for a mask, step by step: what may change in which half of a step, and what may not.

T-numbers are those of the method specification: T4 for bi-level pruning, T5 for jackpots.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_tools import assert_same_bits

from lottery.config import Optim
from lottery.methods.bip import BiP
from lottery.methods.edge_popup import EdgePopup
from lottery.methods.jackpot import Jackpot
from lottery.schedule import LearningRate
from lottery.stages.lab import Lab
from lottery.state import StateRef, snapshot
from lottery.ticket import Mask, Ticket
from lottery.training.module import MaskedTraining
from lottery.training.progress import Progress
from lottery.training.search import ScoreSearch

STEPS, DENSITY = 12, 0.3
KINDS = {
    "jackpot": partial(Jackpot, allocation={}),
    "edge_popup": EdgePopup,
    "bip": BiP,
    "bip_repo": partial(BiP, variant="repo"),
}
Make = Callable[..., ScoreSearch]


def sgd(lr: float, weight_decay: float = 0.0, momentum: float = 0.9) -> Optim:
    return Optim("sgd", lr, momentum, weight_decay=weight_decay)


@pytest.fixture
def begun(make_lab: Callable[..., Lab]) -> Make:
    """A search at its first step, in a small convolutional network with batch normalisation and dropout."""

    def make(kind: str, weights: Optim | None = None, network: StateRef | None = None, **options: Any) -> ScoreSearch:
        whole = {"filter": "[fc]", "channel": "[conv1,fc]"}.get(options.get("pattern", ""), "[]")
        lab = make_lab("optim.momentum=0.9", f"prunable.exclude={whole}")
        sizes = {name: shape.numel() for name, shape in lab.initial.mask.shapes.items()}
        optim = options.pop("optim", sgd(0.5))
        given = {
            "optim": optim,
            "lr": LearningRate("constant", optim.lr, STEPS, gamma=1.0),
            "initial": {"jackpot": "two_level", "edge_popup": "kaiming_uniform"}.get(kind, "scaled"),
            "seed": 0,
            "density": DENSITY,
            "counts": {name: round(DENSITY * n) for name, n in sizes.items()} if kind == "jackpot" else None,
        }
        moved = weights or sgd(0.05)
        rate = LearningRate("constant", moved.lr, STEPS, gamma=1.0)
        recipe = replace(
            lab.recipe, total=STEPS, optim=moved, lr=rate, channels_last=options.pop("channels_last", False)
        )
        shape = {name: options.pop(name) for name in ("pattern", "inner") if name in options}
        method = KINDS[kind](steps=f"{STEPS}it", **shape)
        search = replace(method.search(lab, *[{}] * (kind == "jackpot")), **{**given, **options})
        state = network or lab.initial.state
        ticket = Ticket(Mask.ones(lab.initial.mask.shapes), state, 0, 0, STEPS, recipe=recipe)
        built = lab.network(0)
        built.load_state_dict(state.tensors())
        module = ScoreSearch(search, built, ticket, recipe, lab.data_on, Progress(0))
        module.prepare(module.configure_optimizers())
        module.network.train()
        return module

    return make


def bits(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {str(index): tensor.detach().clone() for index, tensor in enumerate(tensors)}


def kept(module: ScoreSearch) -> list[int]:
    return [int(mask.sum()) for mask in module.masks]


# -- what stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jackpot", "edge_popup"])
def test_frozen_weights_keep_their_bits_and_statistics_follow_the_mask(begun: Make, kind: str) -> None:
    """T5.1: every weight, bias and normalisation parameter; running means do change."""
    module = begun(kind)
    before = snapshot(module.network)
    module.advance(STEPS)
    after = snapshot(module.network)
    parameters = dict(module.network.named_parameters())
    assert_same_bits({n: after[n] for n in parameters}, {n: before[n] for n in parameters})
    means = [name for name in before if name.endswith("running_mean")]
    assert means
    assert all(not torch.equal(after[name], before[name]) for name in means)


@pytest.mark.parametrize("kind", KINDS)
def test_the_count_holds_after_every_step(begun: Make, kind: str) -> None:
    """T4.2, T5.2: of all weights together, or of each layer."""
    module = begun(kind)
    whole = module.ticket.mask.size
    before = kept(module)
    seen = {tuple(before)}
    for step in range(STEPS):
        module.update(step)
        module.progress.step = step + 1
        seen.add(tuple(kept(module)))
        assert sum(kept(module)) == round(DENSITY * whole)
    if kind == "jackpot":
        assert seen == {tuple(before)}
    assert float(module.swaps) > 0, "the mask has moved"


@pytest.mark.parametrize(("pattern", "dim"), [("filter", 0), ("channel", 1)])
@pytest.mark.parametrize("kind", ["bip", "edge_popup"])
def test_groups_stay_whole_and_as_many(begun: Make, kind: str, pattern: str, dim: int) -> None:
    """T4.2: a group is all in or all out, and each layer keeps the same share of its groups."""
    module = begun(kind, pattern=pattern, density=0.5)
    for step in range(4):
        module.update(step)
        for mask in module.masks:
            groups = mask.transpose(0, dim).flatten(1)
            share = groups.mean(1)
            assert set(share.tolist()) <= {0.0, 1.0}
            assert int(share.sum()) == len(groups) - int(0.5 * len(groups))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_where_the_mask_changed_is_all_of_it(begun: Make, kind: str) -> None:
    """Before each forward pass z = m ⊙ θ, to the bit, though only few entries of it are written."""
    module = begun(kind)
    seen = 0

    def check(batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal seen
        loss = ScoreSearch.loss_of(module, batch, *args, **kwargs)
        seen += 1
        for z, mask, weight in zip(module.effective, module.held_masks, module.held, strict=True):
            assert_same_bits({"z": z.detach()}, {"z": mask * weight.detach()})
        return loss

    module.loss_of = check  # type: ignore[method-assign]
    for step in range(STEPS):
        module.update(step)
        assert module.flat
        assert step == 0 or module.rule.changed is not None, "few entries are written"
    assert seen >= STEPS


# -- bi-level ---------------------------------------------------------------------------------------------------------


def test_without_a_step_of_the_scores_bip_is_masked_training(begun: Make) -> None:
    """T4.3: β = 0 leaves the mask as it is, and kept weights, biases and statistics go as in a masked training."""
    module = begun("bip", optim=sgd(0.0))
    mask = module.found()
    network = deepcopy(module.network)
    ticket = replace(module.ticket, mask=mask)
    plain = MaskedTraining(network, ticket, module.recipe, module.data_on, Progress(0))
    plain.prepare(plain.configure_optimizers())
    losses, expected = module.advance(STEPS), plain.advance(STEPS)
    assert module.found() == mask
    assert torch.allclose(losses, expected, atol=1e-6)
    found, masked = module.snapshot(), plain.snapshot()
    for name in found:
        assert torch.allclose(found[name].float(), masked[name].float(), atol=1e-6), name


@pytest.mark.parametrize("kind", ["bip", "edge_popup"])
def test_the_two_halves_of_a_step_leave_each_other_alone(begun: Make, kind: str) -> None:
    """T4.5: the scores' half changes no weight, the weights' half no score; they share no storage."""
    module = begun(kind)
    assert not {t.data_ptr() for t in module.weights} & {t.data_ptr() for t in module.scores}
    weights, scores = bits([*module.network.parameters()]), bits([*module.scores])
    if kind == "bip":
        module.move_weights(module.loss_of(module.stream.batch(0)), 0)
        assert_same_bits(bits([*module.scores]), scores)
        moved = bits([*module.network.parameters()])
        assert sum(not torch.equal(moved[name], weights[name]) for name in weights) >= len(weights) - 1  # a bias before
        # normalisation has no gradient
        weights = moved
    q = module.gradient(module.loss_of(module.upper.batch(0), statistics=False))
    module.move_scores(q, 0)
    assert_same_bits(bits([*module.network.parameters()]), weights)
    assert all(not torch.equal(now, before) for now, before in zip(module.scores, scores.values(), strict=True))


def test_the_data_move_kept_weights_only_and_decay_all(begun: Make) -> None:
    """T4.6: without weight decay a pruned weight keeps its bits; with it, it shrinks by 1 - lr · decay."""
    for decay in (0.0, 0.5):
        module = begun("bip", weights=sgd(0.1, weight_decay=decay))
        before, masks = bits(module.weights), [mask.bool() for mask in module.masks]
        module.move_weights(module.loss_of(module.stream.batch(0)), 0)
        for weight, old, kept in zip(module.weights, before.values(), masks, strict=True):
            assert torch.allclose(weight[~kept], old[~kept] * (1 - 0.1 * decay), atol=1e-8)
            assert decay or torch.equal(weight[~kept], old[~kept])
            assert not torch.equal(weight[kept], old[kept])


def test_statistics_are_updated_in_the_lower_level_alone(begun: Make) -> None:
    module = begun("bip")
    torch.manual_seed(0)
    before = bits([*module.network.buffers()])
    module.move_weights(module.loss_of(module.stream.batch(0)), 0)
    after_lower = bits([*module.network.buffers()])
    assert all(not torch.equal(after_lower[name], before[name]) for name in before)
    module.gradient(module.loss_of(module.upper.batch(0), statistics=False))
    assert_same_bits(bits([*module.network.buffers()]), after_lower)


def test_the_levels_have_batches_of_their_own(begun: Make) -> None:
    """T4.7: in other orders, from the same images; exchanged, they change the result through the data alone."""
    module = begun("bip")
    lower, upper = module.stream.batch(0), module.upper.batch(0)
    assert not torch.equal(lower[0], upper[0])

    class Fixed:
        def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
            self.held = batch

        def batch(self, step: int) -> tuple[Tensor, Tensor]:
            return self.held

    def after(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        run = begun("bip")
        run.stream, run.upper = Fixed(first), Fixed(second)  # type: ignore[assignment]
        run.advance(1)
        return bits([*run.network.parameters(), *run.scores])

    assert_same_bits(after(lower, upper), after(lower, upper))
    with pytest.raises(AssertionError):
        assert_same_bits(after(lower, upper), after(upper, lower))


def test_inner_steps_are_steps_of_the_weights(begun: Make) -> None:
    module = begun("bip", inner=3)
    drawn: list[tuple[str, int]] = []
    for name in ("stream", "upper"):
        stream = getattr(module, name)
        original = stream.batch
        stream.batch = lambda step, name=name, original=original: drawn.append((name, step)) or original(step)
    module.advance(2)
    assert drawn == [
        *(("stream", n) for n in range(3)),
        ("upper", 0),
        *(("stream", n) for n in range(3, 6)),
        ("upper", 1),
    ]
    assert module.search.batches == 4


def test_the_upper_level_follows_the_papers_formula(begun: Make) -> None:
    """s moves by -β (θ ⊙ q - (1/γ) m ⊙ q²), q from a network that holds m ⊙ θ."""
    module = begun("bip", optim=sgd(0.5, momentum=0.0), inverse_gamma=0.25)
    module.network.dropout.p = 0.0
    batch, before = module.upper.batch(0), bits([*module.scores])
    q = gradients_at(module, batch)
    masks = [mask.clone() for mask in module.masks]
    module.stream.batch = lambda step: batch  # type: ignore[method-assign]
    module.move_weights = lambda loss, step: None  # type: ignore[method-assign]
    module.update(0)
    for index, (score, weight, mask) in enumerate(zip(module.scores, module.weights, masks, strict=True)):
        expected = before[str(index)] - 0.5 * (weight * q[index] - 0.25 * mask * q[index] ** 2)
        assert torch.allclose(score, expected, atol=1e-6)


def gradients_at(module: ScoreSearch, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    """∂loss/∂z, by a plain copy of the network that holds z."""
    network = deepcopy(module.network).train()
    with torch.no_grad():
        named = dict(network.named_parameters())
        for name, mask in zip(module.names, module.masks, strict=True):
            named[name].mul_(mask)
    F.cross_entropy(network(batch[0]), batch[1]).backward()
    return [named[name].grad for name in module.names]  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["jackpot", "edge_popup"])
def test_the_scores_of_pruned_weights_have_a_gradient_too(begun: Make, kind: str) -> None:
    """T5.4: ∂loss/∂s = q ⊙ w for kept and pruned weights; edge-popup, which ranks |s|, has the sign of s in it."""
    module = begun(kind, optim=sgd(1.0, momentum=0.0))
    module.network.dropout.p = 0.0
    batch, before = module.stream.batch(0), bits([*module.scores])
    q, masks = gradients_at(module, batch), [mask.bool() for mask in module.masks]
    module.update(0)
    for index, (score, weight, mask) in enumerate(zip(module.scores, module.weights, masks, strict=True)):
        old = before[str(index)]
        expected = q[index] * weight * (old.sign() if kind == "edge_popup" else 1)
        assert torch.allclose(old - score, expected, atol=1e-6)
        assert (old - score)[~mask].abs().max() > 0


def test_the_released_update_ranks_the_weights_themselves(begun: Make) -> None:
    """Its scores and weights are one storage: the mask is the global top of |θ| after every step."""
    module = begun("bip_repo", weights=sgd(0.05, weight_decay=1e-4))
    for step in range(4):
        module.update(step)
        values = torch.cat([weight.detach().abs().flatten() for weight in module.weights])
        mask = torch.cat([mask.flatten() for mask in module.masks]).bool()
        assert values[mask].min() >= values[~mask].max()


# -- structures, and what comes out ------------------------------------------------------------------------------------


def test_a_removed_filter_is_silent(begun: Make) -> None:
    """Its normalisation is zero too: it would go on as the bias of that otherwise."""
    module = begun("bip", pattern="filter", density=0.5)
    module.advance(3)
    state = module.snapshot()
    assert not state["conv2.bias"][~module.found()["conv2.weight"].flatten(1).any(1)].any()
    for layer, norm in (("conv1", "bn1"), ("conv2", "bn2")):
        gone = ~module.found()[f"{layer}.weight"].flatten(1).any(1)
        assert gone.any()
        assert not state[f"{norm}.weight"][gone].any()
        assert not state[f"{norm}.bias"][gone].any()
        assert state[f"{norm}.weight"][~gone].all()


@pytest.mark.parametrize("kind", ["bip", "edge_popup"])
def test_the_scores_of_a_removed_filter_move_and_so_does_the_mask(begun: Make, kind: str) -> None:
    """What is silent with it has no gradient, so the scores' gradient is taken without that. (The shifts are those of a
    trained network: at a shift of 0 the ReLU that follows has no gradient either.)"""
    module = begun(kind, pattern="filter", density=0.5, optim=sgd(5.0))
    for norm in (module.network.bn1, module.network.bn2):
        torch.nn.init.constant_(norm.bias, 0.5)
    gone, before, mask = [~m.bool() for m in module.masks], bits([*module.scores]), module.found()
    module.update(0)
    for index, score in enumerate(module.scores):
        assert gone[index].any()
        assert (score.detach() - before[str(index)])[gone[index]].abs().max() > 0
    module.progress.step = 1
    module.advance(STEPS)
    assert module.found() != mask
    assert float(module.swaps) > 0


@pytest.mark.parametrize("pattern", ["filter", "channel"])
@pytest.mark.parametrize("kind", ["bip", "edge_popup"])
def test_a_group_that_is_pushed_out_stays_out(begun: Make, kind: str, pattern: str) -> None:
    """A loss that grows with one kept group of conv2, by the same amount all the time.

    Without the sign of s in the gradient the scores would fall below 0 and on, and the norm would grow again.
    """
    module = begun(kind, pattern=pattern, density=0.5, initial="magnitude", optim=sgd(1.0))
    at, dim = module.names.index("conv2.weight"), ("filter", "channel").index(pattern)
    first = int(module.masks[at].transpose(0, dim).flatten(1).any(1).nonzero()[0])
    index = (first,) if pattern == "filter" else (slice(None), first)
    module.move_weights = lambda loss, step: None  # type: ignore[attr-defined, method-assign]

    def constant(loss: Tensor) -> list[Tensor]:
        gradients = [torch.zeros_like(weight) for weight in module.weights]
        gradients[at][index] = 5e-4 / module.weights[at].detach()[index]
        return gradients

    module.gradient = constant  # type: ignore[method-assign]
    kept = []
    for step in range(80):
        module.update(step % STEPS)
        kept.append(bool(module.masks[at][index].any()))
    assert (kept[0], kept[-1]) == (True, False)
    assert kept == sorted(kept, reverse=True), "once out, out for good"


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_holds_zeros_and_is_what_was_measured(begun: Make, kind: str) -> None:
    module = begun(kind)
    module.advance(3)
    before = snapshot(module.network)
    measured = module.score("validation")
    assert_same_bits(snapshot(module.network), before)
    state, mask = module.snapshot(), module.found()
    for name, kept in mask.items():
        assert not state[name][~kept].any()
        assert not torch.signbit(state[name][~kept]).any()
    module.network.load_state_dict(state)
    assert MaskedTraining.score(module, "validation") == measured


def test_jackpots_start_from_the_magnitude_mask_of_each_layer(begun: Make) -> None:
    """T5.3, with scores of 0.99 and 1; the log says that the overlap is whole, and how it shrinks."""
    module = begun("jackpot")
    for score, mask, weight in zip(module.scores, module.masks, module.weights, strict=True):
        kept = mask.bool()
        assert weight[kept].abs().min() >= weight[~kept].abs().max()
        assert score.unique().tolist() == pytest.approx([0.99, 1.0])
        assert torch.equal(score == 1, kept)
    module.advance(STEPS)
    module.measure()
    first, last = module.progress.log[0], module.progress.log[-1]
    assert first["magnitude_iou"] == 1.0
    assert last["magnitude_iou"] < 1.0
    assert last["swaps"] > 0
    assert sum(last["score_histogram"]) == module.ticket.mask.size


def test_at_random_both_levels_have_the_same_sizes(begun: Make) -> None:
    module = begun("jackpot", initial="two_level_random")
    usual = begun("jackpot")
    assert kept(module) == kept(usual)
    assert module.found() != usual.found()
    assert all(torch.equal(score == 1, mask.bool()) for score, mask in zip(module.scores, module.masks, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_format_changes_rounding_alone(begun: Make, kind: str) -> None:
    """Fused optimizers would mix up scores and gradients of different formats, and say nothing."""
    module, other = begun(kind), begun(kind, channels_last=True)
    assert other.weights[1].is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(module.advance(4), other.advance(4), atol=1e-4)
    for one, two in zip(module.scores, other.scores, strict=True):
        assert torch.allclose(one, two, atol=1e-3)


def test_a_restriction_of_zero_freezes_the_mask(begun: Make) -> None:
    module = begun("jackpot", restriction=0.0)
    before = module.found()
    module.advance(STEPS)
    assert module.found() == before
    assert float(module.swaps) == 0
