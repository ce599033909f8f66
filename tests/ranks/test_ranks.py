"""Several processes that train together do what one does: same batches, statistics, gradients, and the same bits again.

Networks agree with one process's up to the order of additions, and bit for bit where there are as many processes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_tools import met, on_ranks
from safetensors.torch import load_file
from tiny_networks import Partial
from torch import Tensor, nn
from training_tools import AUGMENTED, MOMENTUM, TINY, assert_same_bits, small_config

from lottery.config import Optim, settings
from lottery.data.dataset import Batch
from lottery.data.order import Order, Share
from lottery.errors import LotteryError
from lottery.ranks.alone import Abandoned, Alone
from lottery.ranks.batch_norm import GlobalNorms
from lottery.ranks.follow import join_trainings
from lottery.ranks.group import Ranks
from lottery.signals import StopFlag
from lottery.stages import train
from lottery.stages.lab import Lab
from lottery.stages.store import Store
from lottery.state import State
from lottery.ticket import Mask
from lottery.training.optim import build_optimizer

# Of weights of order 1, after 12 steps and after 30. Below 1e-6 is found; but rounding may move an activation across
# the kink of a ReLU, and then it grows. (So it does between one thread and two.)
EARLY, LATE = 1e-5, 1e-3
# 96 images: five batches of 19 and one of a single image, which leaves nothing for all ranks but one.
UNEVEN = ("train.batch_size=19", *AUGMENTED, *MOMENTUM)
RECIPES = {
    "nesterov, clipped": (*UNEVEN, "optim.nesterov=true", "optim.clip_norm=0.5"),
    # A bias before a normalisation has no gradient but rounding, which a small eps would blow up to the full rate.
    "adamw, channels_last": (*UNEVEN, "optim=adamw", "optim.lr=1e-2", "optim.eps=1e-2", "train.channels_last=true"),
}


# -- the share of a batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("drop_last", [False, True])
def test_shares_divide_every_batch(world: int, drop_last: bool) -> None:
    whole = Order(96, 19, 0, drop_last)
    shares = [Order(96, 19, 0, drop_last, Share(rank, world)) for rank in range(world)]
    for step in range(2 * whole.steps_per_epoch):
        epoch, batch = whole.locate(step)
        found = []
        for order in shares:
            own, total = order.sizes(step)
            its_epoch, part = order.locate(step)
            images = range(96)[part]
            assert (its_epoch, total) == (epoch, len(range(96)[batch]))
            assert len(images) == max(1, own)  # never empty
            assert total // world <= own <= -(-total // world)
            found += list(images)[:own]
        assert found == list(range(96)[batch])


# -- what ranks do together -------------------------------------------------------------------------------------------


def test_ranks_agree() -> None:
    """On sums, maxima, digests, on when to leave, and on what rank 0 could not do; and go on afterwards."""

    def work(ranks: Ranks, stop: StopFlag) -> list[Any]:
        rank = ranks.rank
        found: list[Any] = [ranks.sum(torch.tensor([rank + 1.0, 1e-9])).tolist(), ranks.maximum(rank, -rank)]
        ranks.check_same("mask", lambda: "ab" * 32)
        try:
            ranks.check_same("mask", lambda: ("ab" if rank != 2 else "cd") * 32)
        except LotteryError as error:
            found.append(str(error))

        def fail() -> None:
            raise LotteryError("no space left")

        try:
            ranks.on_first(fail)
        except (LotteryError, Abandoned) as error:
            found.append(repr(error))
        done: list[int] = []
        ranks.on_first(lambda: done.append(rank))
        asked: list[int] = []
        leaving = ranks.agreement(lambda: len(asked) > 3 and rank == 1, lambda step: bool(asked.append(step)))
        left = next(step for step in range(1, 1000) if leaving(step))
        return [*found, done, left, len(asked) < left]

    found = on_ranks(3, met(work))
    sums, largest = [6.0, pytest.approx(3e-9)], [2, 0]
    differ = "rank 2 has another mask than rank 0: another kind of processor, or a fault"
    assert not isinstance(found[0], str), found
    left = found[0][5]
    assert 3 < left < 1000
    for rank in range(3):
        failed = "LotteryError('no space left')" if rank == 0 else "Abandoned()"
        assert found[rank] == [sums, largest, differ, failed, [0] if rank == 0 else [], left, True]


@pytest.mark.slow
def test_parting_right_after_a_message_does_not_hang() -> None:
    """Before torch 2.8 it did, more often than not (its pull request 154976)."""
    work = met(lambda ranks, stop: ranks.sum(torch.ones(1000)).tolist()[0])
    for _ in range(8):
        assert on_ranks(3, work) == [3.0, 3.0, 3.0]


def test_one_process_alone_asks_and_sends_nothing() -> None:
    ranks, values = Alone(), torch.ones(3)
    assert ranks.sum(values) is values
    assert ranks.maximum(3, 4) == [3, 4]
    ranks.check_same("mask", lambda: "not even a digest")
    leaving = ranks.agreement(lambda: False, lambda step: step == 3)
    assert [leaving(step) for step in (1, 2, 3)] == [False, False, True]
    assert not torch.distributed.is_initialized()


# -- batch normalisation ----------------------------------------------------------------------------------------------


def timm_norm(channels: int) -> nn.Module:
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d(channels)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(3), (7, 3)),
    "2d": (lambda: nn.BatchNorm2d(3), (7, 3, 4, 2)),
    "3d, cumulative": (lambda: nn.BatchNorm3d(3, momentum=None), (2, 3, 2, 2, 2)),
    "no affine, no statistics": (lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False), (7, 3, 4, 2)),
    "timm's, with an activation": (lambda: timm_norm(3), (7, 3, 4, 2)),
}


def normalised(norm: nn.Module, images: Tensor, weight: Tensor, own: bool = True) -> list[Tensor]:
    """Output and gradients of two passes through a layer, for a loss that weights each output by itself."""
    found = []
    for factor in (1.0, 3.0):
        images = (images.detach() * factor + factor).requires_grad_()
        out = norm(images)
        norm.zero_grad()
        (out * weight).sum().mul(float(own)).backward()
        assert images.grad is not None
        found += [out.detach(), images.grad, *(p.grad.clone() for p in norm.parameters() if p.grad is not None)]
    return found


@pytest.mark.parametrize("name", NORMS)
def test_normalisation_is_over_the_whole_batch(name: str) -> None:
    """Outputs, gradients and running statistics of three ranks with uneven shares, against torch with all images.

    Of two images the third rank has none; what it feeds in instead must not count.
    """
    make, shape = NORMS[name]
    generator = torch.Generator().manual_seed(0)
    images, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    whole = make().double()
    expected = normalised(whole, images, weight)
    order = [Order(shape[0], shape[0], 0, share=Share(rank, 3)) for rank in range(3)]

    def work(ranks: Ranks, stop: StopFlag) -> Any:
        norm, (own, total), (_, part) = make().double(), order[ranks.rank].sizes(0), order[ranks.rank].locate(0)
        with GlobalNorms(own, total):
            found = normalised(norm, images[part], weight[part], own > 0)
        norm.eval()
        with GlobalNorms(own, total), torch.no_grad():  # here as always
            evaluated = norm(images[part]) if whole.running_mean is not None else torch.zeros(())
        return [t.numpy() for t in found], {k: v.numpy() for k, v in norm.state_dict().items()}, evaluated.numpy(), own

    answers = on_ranks(3, met(work))
    assert not isinstance(answers[0], str), answers[0]
    each = len(expected) // 2
    for i, tensor in enumerate(expected):
        per_image = i % each < 2
        parts = [torch.from_numpy(found[i])[: own if per_image else None] for found, *_, own in answers]
        got = torch.cat(parts) if per_image else torch.stack(parts).sum(0)
        torch.testing.assert_close(got, tensor, rtol=1e-9, atol=1e-9)
    for _, state, _, _ in answers:
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(torch.from_numpy(state[key]), value, rtol=1e-9, atol=1e-9)
    if whole.running_mean is not None:
        evaluated = torch.cat([torch.from_numpy(out)[:own] for *_, out, own in answers])
        torch.testing.assert_close(evaluated, whole.eval()(images).detach(), rtol=1e-9, atol=1e-9)


# -- training ---------------------------------------------------------------------------------------------------------


def training(folder: Path, *overrides: str, dropout: float = 0.0) -> Callable[[Alone, StopFlag], str]:
    """Trains half of the small network, in a store in `folder`, on as many ranks as there are."""

    def work(ranks: Alone, stop: StopFlag) -> str:
        torch.set_num_threads(1)
        cfg = small_config((*overrides, f"model.dropout={dropout}", f"trainer.devices={ranks.world}"))
        if not ranks.first:
            assert isinstance(ranks, Ranks)
            assert ranks.wait_for_start()
        lab = Lab(settings(cfg), stop, lambda *_: None, ranks=ranks)
        if isinstance(ranks, Ranks) and not ranks.first:
            ranks.join()
            join_trainings(lab, ranks)
            return "followed"
        lab.store = Store(folder, stop=stop)
        generator = torch.Generator().manual_seed(0)
        mask = Mask({n: torch.rand(s, generator=generator) < 0.5 for n, s in lab.initial.mask.shapes.items()})
        return lab.train(replace(lab.initial, mask=mask), keep=[12]).key

    return work


def trained(world: int, folder: Path, *overrides: str, **options: float) -> tuple[State, State, dict[str, Any]]:
    """The same on one process or several: the network after 12 steps, at the end, and what was measured."""
    work = training(folder, *overrides, **options)
    answers = on_ranks(world, work) if world > 1 else [work(Alone(), StopFlag())]
    assert answers[1:] == ["followed"] * (world - 1)
    return outcome(folder / "train" / answers[0])


def outcome(stage: Path) -> tuple[State, State, dict[str, Any]]:
    assert (stage / "DONE").exists(), stage
    early, late = load_file(stage / "state_00000012.safetensors"), load_file(stage / "state.safetensors")
    return early, late, json.loads((stage / "result.json").read_text())


def distance(one: State, other: State) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def assert_close(one: tuple[State, State, dict[str, Any]], other: tuple[State, State, dict[str, Any]]) -> None:
    """Networks, curves and scores within the tolerance; the same steps, zeros and counts."""
    (early, late, result), (other_early, other_late, other_result) = one, other
    assert distance(early, other_early) < EARLY
    assert distance(late, other_late) < LATE
    assert all(torch.equal(late[n] == 0, other_late[n] == 0) for n in late if n.endswith("weight"))
    assert [point[:2] for point in result["curve"]] == [point[:2] for point in other_result["curve"]]
    losses = [[point[2] for point in found["curve"]] for found in (result, other_result)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)
    for name in ("test_accuracy", "train_accuracy", "early_stop_test_accuracy"):
        assert result[name] == pytest.approx(other_result[name], abs=0.03), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_training_of_one_process(recipe: str, tmp_path: Path) -> None:
    alone = trained(1, tmp_path / "1", *RECIPES[recipe])
    assert max(float(tensor.abs().max()) for name, tensor in alone[0].items() if name.endswith("weight")) > 0.5
    for world in (2, 3):
        assert_close(trained(world, tmp_path / str(world), *RECIPES[recipe]), alone)


@pytest.mark.parametrize(("world", "again", "dropout"), [(3, 3, 0.25), (2, 1, 0.0)])
def test_interrupted_on_any_rank_and_continued(
    world: int, again: int, dropout: float, tmp_path: Path, on_batch: list[Callable[[int], object]]
) -> None:
    """Only the last rank gets the signal, and all leave at the same step. Continued by as many, the bits are the same,
    dropout included; by another number of processes, all is the same up to rounding, but for the noise of dropout.
    """
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    last = False

    def terminate(step: int) -> None:
        if step == 13 and last:
            os.kill(os.getpid(), signal.SIGTERM)

    def work(ranks: Ranks, stop: StopFlag) -> str:
        nonlocal last
        last = ranks.rank == world - 1
        return training(folder, *UNEVEN, dropout=dropout)(ranks, stop)

    expected = trained(world, whole, *UNEVEN, dropout=dropout)
    on_batch[:] = [terminate]
    answers = on_ranks(world, work)
    on_batch.clear()
    assert answers[0].startswith("Interrupted: interrupted by SIGTERM at step ")
    assert answers[1:] == ["followed"] * (world - 1)
    assert not list(folder.rglob("DONE"))
    found = trained(again, folder, *UNEVEN, dropout=dropout)
    if again == world:
        assert_same_bits(found[0], expected[0])
        assert_same_bits(found[1], expected[1])
        assert found[2]["curve"] == expected[2]["curve"]
        kept = [next(path.rglob("optimizer_00000012.safetensors")) for path in (folder, whole)]
        assert_same_bits(load_file(kept[0]), load_file(kept[1]))
    else:
        assert_close(found, expected)


def test_noise_is_a_function_of_seed_step_and_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout must not be the same for the images of two ranks; the first one draws as one process does."""
    states: list[int] = []
    forward = nn.Dropout.forward

    def recorded(module: nn.Dropout, images: Tensor) -> Tensor:
        if module.training:
            states.append(hash(torch.get_rng_state().numpy().tobytes()))
        return forward(module, images)

    monkeypatch.setattr(nn.Dropout, "forward", recorded)

    def drawn(ranks: Ranks, stop: StopFlag) -> list[int]:
        training(tmp_path / str(ranks.world), dropout=0.25)(ranks, stop)
        return states

    one, two = on_ranks(1, drawn), on_ranks(2, drawn)
    assert len(set(one[0])) == 30
    assert two[0] == one[0]
    assert len({*two[0], *two[1]}) == 60


def test_ranks_that_hold_different_masks_do_not_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = train.Broadcast.read

    def damaged(facts: dict[str, Any], tensors: State) -> train.Broadcast:
        tensors["mask/fc.weight"][0, 0] ^= True
        return read(facts, tensors)

    monkeypatch.setattr(train.Broadcast, "read", damaged)
    answers = on_ranks(2, training(tmp_path))
    assert answers[0].startswith("RanksDiffer: rank 1 has another mask than rank 0: ")
    assert answers[1] == "followed"
    assert not list(tmp_path.rglob("DONE"))


def test_ranks_whose_networks_drift_apart_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient_sum = Ranks.gradient_sum

    def drifting(ranks: Ranks, parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
        trained = list(parameters)
        add = gradient_sum(ranks, trained)

        def add_and_drift() -> None:
            add()
            assert trained[0].grad is not None
            trained[0].grad.mul_(1 + 1e-6 * ranks.rank)

        return add_and_drift

    monkeypatch.setattr(Ranks, "gradient_sum", drifting)
    answers = on_ranks(2, training(tmp_path))
    assert answers[0].startswith("RanksDiffer: rank 1 has another trained network than rank 0: ")
    assert not list(tmp_path.rglob("DONE"))


def test_what_goes_wrong_on_another_rank_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_batch: list[Callable[[int], object]]
) -> None:
    from lottery.ranks.follow import follow

    def broken(step: int) -> None:
        if step == 9 and os.environ.get("OTHER"):
            raise LotteryError("img_9.jpg: cannot be read as an image")

    on_batch.append(broken)
    work = training(tmp_path)

    def on_the_other(ranks: Ranks, stop: StopFlag) -> Any:
        if ranks.first:
            return work(ranks, stop)
        os.environ["OTHER"] = "1"
        cfg = small_config(("model.dropout=0.0", "trainer.devices=2"))
        return follow(cfg, ranks, stop)

    answers = on_ranks(2, on_the_other)
    assert answers == ["RankLost: rank 1: img_9.jpg: cannot be read as an image", 1]


def test_a_loss_that_explodes_ends_the_training_on_every_rank(tmp_path: Path) -> None:
    answers = on_ranks(2, training(tmp_path, "optim.lr=1e30"))
    assert answers[0].startswith("NonFiniteLoss: the loss became ")
    assert answers[1] == "followed"


def test_parameters_that_the_network_does_not_use_stay_as_they_are() -> None:
    """No gradient is not a gradient of zero: weight decay would shrink what is never trained."""

    def work(ranks: Ranks, stop: StopFlag) -> list[bool]:
        torch.manual_seed(0)
        network = Partial(4, 3)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        optimizer = build_optimizer(Optim(lr=0.1, momentum=0.9, weight_decay=0.1), network)
        add = ranks.gradient_sum(network.parameters())
        for step in range(2):
            images = torch.randn(2, 4, generator=torch.Generator().manual_seed(10 * step + ranks.rank))
            network(images).square().sum().backward()
            add()
            optimizer.step()
            optimizer.zero_grad()
        after = network.state_dict()
        names = ("frozen.weight", "unused.weight", "unused.bias", "output.weight")
        ranks.check_same("network", lambda: train.state_digest(after))
        return [torch.equal(before[name], after[name]) for name in names]

    assert on_ranks(2, met(work)) == [[True, True, True, False]] * 2


def test_batches_of_one_rank_are_not_those_of_the_other(make_lab: Callable[..., Lab]) -> None:
    """Evaluation: every batch is measured by one rank, the same batches as one process measures."""
    data = make_lab().dataset
    whole = list(data.batches("test", 100))
    shares = [list(data.batches("test", 100, Share(rank, 2))) for rank in range(2)]

    def same(one: Batch, other: Batch) -> bool:
        return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])

    assert len(whole) == sum(map(len, shares))
    assert all(same(batch, shares[i % 2][i // 2]) for i, batch in enumerate(whole))


def test_a_lab_for_several_processes_does_not_pass_for_one(make_lab: Callable[..., Lab]) -> None:
    with pytest.raises(LotteryError, match=r"trainer.devices=2, trainer.nodes=1: 1 process\(es\) train here"):
        make_lab("trainer.devices=2")


assert TINY["dropout"], "tests above switch it off, or on"
