"""`MaskedOptimizer`: pruned weights stay at zero in anyone's loop, and kept ones train as in a step written out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from training_tools import assert_pruned_are_zero, assert_same_bits, pruned_values

from lottery import MaskedOptimizer
from lottery.errors import LotteryError
from lottery.models.mlp import mlp
from lottery.state import State, snapshot
from lottery.ticket import Mask

Make = Callable[[Iterator[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return mlp(shape=(1, 8), classes=3, hidden=[6])


@pytest.fixture
def mask(network: nn.Module) -> Mask:
    return draw_mask(network, 0)


def draw_mask(network: nn.Module, seed: int) -> Mask:
    draw = torch.Generator().manual_seed(seed)
    weights = {name: p for name, p in network.named_parameters() if p.dim() > 1}
    return Mask({name: torch.rand(p.shape, generator=draw) < 0.5 for name, p in weights.items()})


def batch(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(5, 1, 8, generator=draw), torch.randint(3, (5,), generator=draw)


def loss_of(network: nn.Module, seed: int) -> Tensor:
    images, labels = batch(seed)
    return F.cross_entropy(network(images), labels)


def train(network: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for seed in steps:
        optimizer.zero_grad()
        loss_of(network, seed).backward()
        optimizer.step()


def slots(optimizer: Optimizer, network: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """What the optimizer remembers of pruned weights, by slot."""
    named = dict(network.named_parameters())
    return {
        f"{name}/{slot}": value[~mask[name]]
        for name in mask
        for slot, value in optimizer.state[named[name]].items()
        if value is not None and value.shape == mask.shapes[name]
    }


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step(make: Make, network: nn.Module, mask: Mask) -> None:
    """Also where a dense training comes first, with its momentum and moments."""
    optimizer = make(network.parameters())
    train(network, optimizer, range(3))
    assert pruned_values(snapshot(network), mask).any()
    wrapped = MaskedOptimizer(optimizer, network, mask)
    before = snapshot(network)
    assert_pruned_are_zero(before, mask)
    for step in range(3, 8):
        train(network, wrapped, range(step, step + 1))
        assert_pruned_are_zero(snapshot(network), mask)
        found = slots(optimizer, network, mask)
        assert found
        assert not any(value.any() for value in found.values())
    after = snapshot(network)
    assert all((after[name] != before[name])[mask[name]].all() for name in mask)  # and kept ones move


def test_kept_weights_train_as_in_a_step_written_out(network: nn.Module, mask: Mask) -> None:
    """Gradient times mask, clipped, in SGD with momentum: the same bits."""
    twin = mlp(shape=(1, 8), classes=3, hidden=[6])
    twin.load_state_dict(mask.apply(network.state_dict()))
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer = MaskedOptimizer(OPTIMIZERS["momentum and decay"](network.parameters()), network, mask)
    for seed in range(5):
        plain.zero_grad()
        loss_of(twin, seed).backward()
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if name in mask:
                    parameter.grad.mul_(mask[name])
        expected = nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        plain.step()
        optimizer.zero_grad()
        loss_of(network, seed).backward()
        assert nn.utils.clip_grad_norm_(network.parameters(), 0.1) == expected > 0.1, "it clips by pruned gradients"
        optimizer.step()
    assert_same_bits(snapshot(network), snapshot(twin))


def test_gradients_add_up_over_several_batches(network: nn.Module, mask: Mask) -> None:
    optimizer = MaskedOptimizer(torch.optim.Adam(network.parameters()), network, mask)
    for seed in range(3):
        loss_of(network, seed).backward()
        grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        assert not pruned_values(grads, mask).any()
    together = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for seed in range(3):
        parts = torch.autograd.grad(loss_of(network, seed), list(network.parameters()))
        for total, part in zip(together.values(), parts, strict=True):
            total += part
    torch.testing.assert_close(grads["fc1.weight"], together["fc1.weight"] * mask["fc1.weight"])
    optimizer.step()
    assert_pruned_are_zero(snapshot(network), mask)


@pytest.mark.parametrize("kind", ["autocast", "true"])
def test_bf16(kind: str, network: nn.Module, mask: Mask) -> None:
    if kind == "true":
        network.to(torch.bfloat16)
    optimizer = MaskedOptimizer(OPTIMIZERS["AdamW"](network.parameters()), network, mask)
    for seed in range(4):
        images, labels = batch(seed)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            loss = F.cross_entropy(network(images.to(network.fc1.weight.dtype)), labels)
        loss.backward()
        optimizer.step()
        assert_pruned_are_zero(snapshot(network), mask)


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_divides_its_scale_out(fused: bool, network: nn.Module, mask: Mask) -> None:
    """With a fused optimizer too, whose own step would take the scale: steps are as without a scaler."""
    twin = mlp(shape=(1, 8), classes=3, hidden=[6])
    twin.load_state_dict(network.state_dict())
    train(twin, MaskedOptimizer(torch.optim.SGD(twin.parameters(), lr=0.1, fused=fused), twin, mask), range(3))
    optimizer = MaskedOptimizer(torch.optim.SGD(network.parameters(), lr=0.1, fused=fused), network, mask)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(network, seed)).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(snapshot(network), snapshot(twin))


def test_a_learning_rate_scheduler_takes_it(network: nn.Module, mask: Mask) -> None:
    optimizer = MaskedOptimizer(torch.optim.SGD(network.parameters(), lr=1.0), network, mask)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(network, optimizer, range(1))
    scheduler.step()
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.5
    assert_pruned_are_zero(snapshot(network), mask)


def test_a_closure_is_masked(network: nn.Module, mask: Mask) -> None:
    """LBFGS computes gradients several times within a step."""
    optimizer = MaskedOptimizer(torch.optim.LBFGS(network.parameters(), max_iter=4), network, mask)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(network, 0)
        loss.backward()
        return loss.item()

    before = loss_of(network, 0).item()
    optimizer.step(closure)
    assert_pruned_are_zero(snapshot(network), mask)
    assert loss_of(network, 0).item() < before


def test_a_step_that_adds_noise_leaves_pruned_weights_at_zero(network: nn.Module, mask: Mask) -> None:
    class Noisy(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            super().step(closure)
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter += 1.0

    optimizer = MaskedOptimizer(Noisy(network.parameters(), lr=0.1), network, mask)
    train(network, optimizer, range(2))
    assert not pruned_values(snapshot(network), mask).any()


def test_a_weight_that_thaws_is_masked(network: nn.Module, mask: Mask) -> None:
    network.fc1.weight.requires_grad_(False)
    optimizer = MaskedOptimizer(torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), network, mask)
    assert not network.fc1.weight.requires_grad
    network.fc1.weight.requires_grad_(True)
    loss_of(network, 0).backward()
    assert not pruned_values({name: network.get_parameter(name).grad for name in mask}, mask).any()
    optimizer.step()
    assert_pruned_are_zero(snapshot(network), mask)


def test_a_training_continues_from_its_checkpoint(network: nn.Module, mask: Mask) -> None:
    """The same bits as without a stop; the plain optimizer reads the state, too."""

    def fresh(state: State) -> tuple[nn.Module, Optimizer]:
        other = mlp(shape=(1, 8), classes=3, hidden=[6])
        other.load_state_dict(state)
        return other, OPTIMIZERS["Adam"](other.parameters())

    begun, plain = fresh(network.state_dict())
    optimizer = MaskedOptimizer(plain, begun, mask)
    train(begun, optimizer, range(4))
    saved = deepcopy(optimizer.state_dict())  # as a file is; its tensors are the optimizer's own
    assert saved["mask"] == mask.digest
    continued, plain = fresh(snapshot(begun))
    again = MaskedOptimizer(plain, continued, mask)
    again.load_state_dict(saved)
    train(begun, optimizer, range(4, 8))
    train(continued, again, range(4, 8))
    assert_same_bits(snapshot(continued), snapshot(begun))
    fresh(snapshot(begun))[1].load_state_dict(saved)


def test_a_checkpoint_of_another_mask_is_refused(network: nn.Module, mask: Mask) -> None:
    other = draw_mask(network, 1)
    saved = MaskedOptimizer(torch.optim.Adam(network.parameters()), network, other).state_dict()
    optimizer = MaskedOptimizer(torch.optim.Adam(network.parameters()), network, mask)
    with pytest.raises(LotteryError, match=f"trained under mask {other.digest[:12]}, and this is mask") as caught:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(caught.value)


def test_a_dense_optimizers_state_is_zeroed_when_it_is_loaded(network: nn.Module, mask: Mask) -> None:
    dense = OPTIMIZERS["Adam"](network.parameters())
    train(network, dense, range(3))
    optimizer = MaskedOptimizer(OPTIMIZERS["Adam"](network.parameters()), network, mask)
    optimizer.load_state_dict(dense.state_dict())
    found = slots(optimizer.optimizer, network, mask)
    assert len(found) == 2 * len(mask)
    assert not any(value.any() for value in found.values())


# -- which network, which mask ----------------------------------------------------------------------------------------


def test_a_plain_mapping_is_a_mask(network: nn.Module, mask: Mask) -> None:
    assert MaskedOptimizer(torch.optim.SGD(network.parameters(), lr=0.1), network, dict(mask)).mask == mask
    with pytest.raises(
        LotteryError, match=r"mask 'fc1\.weight': got 48 entries of torch\.float32, expected torch\.bool"
    ):
        MaskedOptimizer(torch.optim.SGD(network.parameters()), network, {"fc1.weight": torch.ones(6, 8)})


def test_a_network_inside_of_another_module_is_found(network: nn.Module, mask: Mask) -> None:
    outer = nn.ModuleDict({"net": network, "extra": nn.Linear(2, 2)})
    optimizer = MaskedOptimizer(torch.optim.SGD(outer.parameters(), lr=0.1, weight_decay=0.1), outer, mask)
    train(network, optimizer, range(2))
    assert_pruned_are_zero(snapshot(network), mask)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ({"fc1.weight": (6, 8), "x": (3, 6)}, r"not fit Sequential: it prunes 'x' \[3, 6\], which it does not have"),
        ({"fc1.weight": (6, 9)}, r"it prunes 'fc1\.weight' \[6, 9\], which is \[6, 8\] in it"),
    ],
    ids=["name", "shape"],
)  # fmt: skip
def test_a_mask_of_another_network_is_refused(
    bits: dict[str, tuple[int, ...]], expected: str, network: nn.Module
) -> None:
    wrong = Mask({name: torch.zeros(shape, dtype=torch.bool) for name, shape in bits.items()})
    before = snapshot(network)
    with pytest.raises(LotteryError, match=expected):
        MaskedOptimizer(torch.optim.SGD(network.parameters(), lr=0.1), network, wrong)
    assert_same_bits(snapshot(network), before)


def test_two_networks_that_fit_must_be_told_apart(network: nn.Module, mask: Mask) -> None:
    both = nn.ModuleDict({"student": network, "teacher": mlp(shape=(1, 8), classes=3, hidden=[6])})
    with pytest.raises(
        LotteryError, match="fits several parts of ModuleDict: student, teacher; pass the network itself"
    ):
        MaskedOptimizer(torch.optim.SGD(both.parameters(), lr=0.1), both, mask)


@pytest.mark.parametrize("how", ["released", "forgotten"])
def test_a_mask_ends_with_its_optimizer(how: str, network: nn.Module, mask: Mask) -> None:
    """So that the next round's optimizer on the same network prunes by its own mask alone."""
    plain = torch.optim.SGD(network.parameters(), lr=0.1)
    optimizer = MaskedOptimizer(plain, network, mask)
    if how == "released":
        optimizer.release()
    else:
        del optimizer
        gc.collect()
    train(network, plain, range(1))
    assert pruned_values(snapshot(network), mask).all()
