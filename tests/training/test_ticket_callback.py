"""`TicketCallback`: pruned weights stay at zero in anyone's LightningModule and Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_tools import assert_pruned_are_zero, assert_same_bits, pruned_values

from lottery.errors import LotteryError
from lottery.lightning import TicketCallback
from lottery.models.mlp import mlp
from lottery.state import snapshot
from lottery.ticket import Mask
from lottery.training.lightning import pl

Module = pl.LightningModule
MANUAL_CLIP = 0.05
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


class Someones(pl.LightningModule):
    """A LightningModule as anyone would write it, which knows nothing of masks."""

    def __init__(self, optimizer: str = "momentum", manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp(shape=(1, 8), classes=3, hidden=[6])
        self.optimizer, self.automatic_optimization = optimizer, not manual
        self.norms: list[float] = []

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0].to(self.net.fc1.weight.dtype)), batch[1])
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.norms.append(float(nn.utils.clip_grad_norm_(self.net.parameters(), MANUAL_CLIP)))
            optimizer.step()
        return loss

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        self.norms.append(norm(self.net))
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.net.parameters())


class Watch(pl.Callback):
    """Looks at weights and optimizer after every batch, and at what the gradients' norm is over kept weights."""

    def __init__(self, mask: Mask) -> None:
        self.mask, self.batches, self.slots, self.norms = mask, 0, 0, list[float]()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Module, optimizer: Any) -> None:
        self.norms.append(norm(pl_module.net, self.mask))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Module, *_: Any) -> None:
        named = dict(pl_module.net.named_parameters())
        assert_pruned_are_zero(snapshot(pl_module.net), self.mask)
        for optimizer in trainer.optimizers:
            for name, kept in self.mask.items():
                for slot in optimizer.state[named[name]].values():
                    if slot is not None and slot.shape == kept.shape:
                        assert not slot[~kept].any()
                        self.slots += 1
        self.batches += 1


def norm(network: nn.Module, mask: Mask | None = None) -> float:
    """Of the gradients, over kept weights where there is a mask."""
    grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    parts = [grad * mask[name] if mask and name in mask else grad for name, grad in grads.items()]
    return float(torch.stack([part.float().norm() for part in parts]).norm())


@pytest.fixture
def mask() -> Mask:
    return draw_mask(0)


def draw_mask(seed: int) -> Mask:
    draw = torch.Generator().manual_seed(seed)
    weights = {name: p for name, p in Someones().net.named_parameters() if p.dim() > 1}
    return Mask({name: torch.rand(p.shape, generator=draw) < 0.5 for name, p in weights.items()})


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Fit a module for two epochs of four batches."""
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(20, 1, 8, generator=draw), torch.randint(3, (20,), generator=draw)

    def fit(module: Module, *callbacks: pl.Callback, ckpt_path: Path | None = None, **options: Any) -> pl.Trainer:
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        options = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path} | options
        trainer = pl.Trainer(**quiet, **options, callbacks=list(callbacks))
        trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=5), ckpt_path=ckpt_path)
        return trainer

    return fit


@pytest.mark.filterwarnings("ignore")
class TestFitting:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}], ids=str)
    def test_pruned_weights_are_zero_after_every_batch(
        self, optimizer: str, options: dict[str, Any], fit: Callable[..., pl.Trainer], mask: Mask
    ) -> None:
        module, watch = Someones(optimizer), Watch(mask)
        before = snapshot(module.net)
        fit(module, TicketCallback(mask), watch, **options)
        assert watch.batches == 8
        assert watch.slots
        assert module.norms == pytest.approx(watch.norms)  # what is clipped has kept weights only
        after = snapshot(module.net)
        assert all((after[name] != before[name])[mask[name]].all() for name in mask)

    @pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
    def test_bf16(self, precision: str, fit: Callable[..., pl.Trainer], mask: Mask) -> None:
        watch = Watch(mask)
        fit(Someones("Adam"), TicketCallback(mask), watch, precision=precision)
        assert watch.batches == 8

    def test_manual_optimization(self, fit: Callable[..., pl.Trainer], mask: Mask) -> None:
        """The module clips by itself, before any hook of Lightning's: by the same norm as is clipped to."""
        module, watch = Someones(manual=True), Watch(mask)
        fit(module, TicketCallback(mask), watch)
        assert watch.batches == 8
        clipped = [min(MANUAL_CLIP, each) for each in module.norms]
        assert watch.norms == pytest.approx(clipped, rel=1e-3)

    def test_a_training_continues_from_its_checkpoint(
        self, fit: Callable[..., pl.Trainer], mask: Mask, tmp_path: Path
    ) -> None:
        """With the weights of one that was not stopped."""
        whole, begun, continued = Someones("Adam"), Someones("Adam"), Someones("Adam")
        fit(whole, TicketCallback(mask))
        fit(begun, TicketCallback(mask), max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
        watch = Watch(mask)
        fit(continued, TicketCallback(mask), watch, ckpt_path=tmp_path / "last.ckpt")
        assert watch.batches == 4
        assert_same_bits(snapshot(continued.net), snapshot(whole.net))

    def test_a_checkpoint_of_another_mask_is_refused(
        self, fit: Callable[..., pl.Trainer], mask: Mask, tmp_path: Path
    ) -> None:
        other = draw_mask(1)
        fit(Someones(), TicketCallback(other), max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
        with pytest.raises(LotteryError, match=f"trained under mask {other.digest[:12]}, and this is mask") as caught:
            fit(Someones(), TicketCallback(mask), ckpt_path=tmp_path / "last.ckpt")
        assert "\n" not in str(caught.value)

    def test_a_dense_checkpoint_goes_on_under_a_mask(
        self, fit: Callable[..., pl.Trainer], mask: Mask, tmp_path: Path
    ) -> None:
        """Its momentum is zeroed with its weights."""
        dense = Someones("Adam")
        fit(dense, max_epochs=1).save_checkpoint(tmp_path / "dense.ckpt")
        assert pruned_values(snapshot(dense.net), mask).all()
        watch = Watch(mask)
        fit(Someones("Adam"), TicketCallback(mask), watch, ckpt_path=tmp_path / "dense.ckpt")
        assert watch.batches == 4

    def test_a_mask_of_another_network_is_refused(self, fit: Callable[..., pl.Trainer]) -> None:
        wrong = Mask({"fc1.weight": torch.ones(6, 9, dtype=torch.bool)})
        with pytest.raises(LotteryError, match=r"it prunes 'fc1\.weight' \[6, 9\], which is \[6, 8\] in it"):
            fit(Someones(), TicketCallback(wrong))

    def test_of_two_networks_one_is_named(self, fit: Callable[..., pl.Trainer], mask: Mask) -> None:
        module = Someones()
        module.teacher = mlp(shape=(1, 8), classes=3, hidden=[6])
        teacher = snapshot(module.teacher)
        with pytest.raises(LotteryError, match="fits several parts of Someones: net, teacher"):
            fit(module, TicketCallback(mask))
        fit(module, TicketCallback(mask, "net"))
        assert_pruned_are_zero(snapshot(module.net), mask)
        assert_same_bits(snapshot(module.teacher), teacher)
        with pytest.raises(
            LotteryError, match="part: got 'nte', expected the name of a module of Someones, such as net"
        ):
            fit(module, TicketCallback(mask, "nte"))

    def test_the_mask_ends_with_the_fit(self, fit: Callable[..., pl.Trainer], mask: Mask) -> None:
        """So that the same module can be fitted under another mask, or none."""
        module = Someones()
        fit(module, TicketCallback(mask), max_epochs=1)
        fit(module, max_epochs=1)
        assert pruned_values(snapshot(module.net), mask).all()
