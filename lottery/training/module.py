"""Training under a mask as a LightningModule whose "batches" are chunks of many optimizer steps.

Lightning's loop costs 0.35-0.6 ms a step and `self.log` as much again, where a LeNet step takes under 2 ms. So
Lightning drives chunks (up to the next evaluation or kept step) under manual optimization, and inside a chunk the loop
is plain PyTorch with nothing in it that is not the training itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import isfinite
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lottery.data.dataset import Dataset
from lottery.errors import LotteryError
from lottery.pruning.structure import silent
from lottery.seeding import derive
from lottery.state import State
from lottery.ticket import Ticket
from lottery.training.evaluate import tallied
from lottery.training.masking import MaskedStep
from lottery.training.norms import GlobalNorms
from lottery.training.optim import build_optimizer, load_optimizer_state_
from lottery.training.parallel import GradientSum, Ranks
from lottery.training.recipe import Recipe

# An odd multiplier spreads the seeds of neighbouring steps over 63 bits; cheap enough for the loop.
GOLDEN, MASK63 = 0x9E3779B97F4A7C15, 0x7FFF_FFFF_FFFF_FFFF


class NonFiniteLoss(LotteryError):
    """A loss became NaN or infinite."""

    @classmethod
    def at(cls, what: str, value: float, step: int) -> NonFiniteLoss:
        return cls(f"the {what} became {value} at step {step}; a lower optim.lr or optim.clip_norm may help")


class Stopped(Exception):
    """A signal came while a network was measured. The measuring is done again when the training is continued."""


@dataclass
class Progress:
    """What a training has measured so far; saved with every checkpoint."""

    step: int  # the absolute step reached
    curve: list[list[Any]] = field(default_factory=list)  # [step, split, loss, accuracy or None]
    best_loss: float = float("inf")  # lowest validation loss
    best_step: int | None = None  # where it was first reached: the early-stop step
    best_state: State | None = None
    seconds: float = 0.0
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))  # float32, of each step since the last curve point
    kept: dict[str, dict[str, str]] = field(default_factory=dict)  # step: digests of the states written there
    beside: State = field(default_factory=dict)  # what a training of another kind adds to its checkpoint
    log: list[dict[str, Any]] = field(default_factory=list)  # what a search notes as it goes


@dataclass
class Hooks:
    """What the surroundings of a training want to be told, and to ask for; `stop` and `due` are asked at every step.

    Where several processes train together, `keep`, `checkpoint` and `finish` are called on all of them.
    """

    stop: Callable[[], bool] = lambda: False  # whether a signal asks to leave
    due: Callable[[int], bool] = lambda step: False  # whether `checkpoint` should be called at this step
    tick: Callable[[int, float, float | None], None] = lambda step, loss, accuracy: None  # a few times a second
    keep: Callable[[MaskedTraining], None] = lambda module: None  # at the steps asked for
    checkpoint: Callable[[MaskedTraining], None] = lambda module: None  # saves when due; saves and raises to leave
    finish: Callable[[MaskedTraining], None] = lambda module: None  # when the last step is done


def snapshot(network: nn.Module) -> State:
    """A private CPU copy of the network's state_dict."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }


class MaskedTraining(pl.LightningModule):
    """Train `ticket` by `recipe` from `progress.step` to the ticket's end.

    Several `ranks` do it together, each with its share of every batch: they add up their gradients before masks and
    optimizer act, so that all of them hold the same network after each step.
    """

    TICK_SECONDS = 0.5

    def __init__(
        self,
        network: nn.Module,
        ticket: Ticket,
        recipe: Recipe,
        data: Callable[[torch.device], Dataset],
        progress: Progress,
        keep_steps: frozenset[int] = frozenset(),
        end: int | None = None,
        optimizer_state: State | None = None,
        hooks: Hooks | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.ticket, self.recipe, self.data_on = ticket, recipe, data
        self.progress = progress
        self.keep_steps = keep_steps
        self.end = ticket.step + ticket.steps if end is None else end
        self.offset = ticket.order_step - ticket.step  # from a step to its place in the data order
        self.initial_optimizer_state = optimizer_state
        self.hooks = hooks or Hooks()
        self.ranks = ranks or Ranks()
        self.last_accuracy: float | None = None
        self.next_tick = monotonic() + self.TICK_SECONDS

    # -- Lightning's side -------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.recipe.optim, self.network)

    def train_dataloader(self) -> list[int]:
        """The chunks still to do, each given by the step at which it ends; the last may have no step left to do."""
        every, start = self.recipe.eval_every, self.progress.step
        ends = set(range(start - start % every + every, self.end, every))
        ends |= {step for step in self.keep_steps if start < step < self.end}
        return sorted(ends | {self.end})

    def on_train_start(self) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.prepare(optimizer)

    def on_train_end(self) -> None:
        # Here rather than after fit, which moves the network off the device.
        with self.saved_if_stopped():
            self.hooks.finish(self)

    @contextmanager
    def saved_if_stopped(self) -> Iterator[None]:
        """Leave through the checkpoint when a signal ends a measurement."""
        try:
            yield
        except Stopped:
            self.hooks.checkpoint(self)

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Put data, masks and optimizer state where the network is."""
        if self.recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.data = self.data_on(self.device)
        share = self.ranks.share
        self.stream = self.data.stream(self.recipe.batch_size, self.recipe.order_seed, self.recipe.drop_last, share)
        self.progress.losses = self.progress.losses.to(self.device)
        masks: Mapping[str, Tensor] = self.ticket.mask
        if self.ticket.silent:
            masks = {**masks, **silent(self.network, self.ticket.mask, self.data.shape)}
        self.masked_step = MaskedStep(self.network, masks, self.recipe.optim.clip_norm)
        self.add_gradients = GradientSum(self.ranks, self.network.parameters())
        self.leaving = self.ranks.agreement(lambda: self.hooks.stop(), lambda step: self.hooks.due(step))
        self.optimizer = optimizer
        if self.initial_optimizer_state is not None:
            load_optimizer_state_(self.optimizer, self.network, self.initial_optimizer_state)
        with self.saved_if_stopped():
            if self.unmeasured():
                self.measure()

    def unmeasured(self) -> bool:
        """Whether a point of the curve is due at the present step: the start, every `eval_every` steps, the end."""
        step, curve = self.progress.step, self.progress.curve
        due = step in (self.ticket.step, self.end) or step % self.recipe.eval_every == 0
        return due and not (curve and curve[-1][0] == step)

    def training_step(self, chunk: int, batch_idx: int) -> None:
        """Train up to step `chunk`, pausing for checkpoints; then measure and keep as asked."""
        while self.progress.step < chunk:
            started = monotonic()
            losses = self.advance(chunk)
            self.check_finite(losses)
            self.progress.losses = torch.cat((self.progress.losses, losses))
            if self.progress.step == chunk and chunk in self.keep_steps:
                self.hooks.keep(self)
            with self.saved_if_stopped():
                if self.unmeasured():
                    self.measure()
            self.progress.seconds += monotonic() - started
            self.hooks.checkpoint(self)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def advance(self, until: int) -> Tensor:
        """Optimizer steps from the present one to `until`, or until a stop or a checkpoint is due; at least one.

        Returns the losses, float32 [steps done].
        """
        progress, offset = self.progress, self.offset
        first = progress.step
        losses = torch.zeros(until - first, device=self.device)
        generator = default_generator(self.device)
        noise = derive(self.recipe.order_seed, "noise", *([self.ranks.rank] if self.ranks.rank else []))
        self.network.train()
        for step in range(first, until):
            # Dropout and its kin draw from (seed, step, rank) alone, so that a resumed training draws the same.
            generator.manual_seed((noise + (step + offset) * GOLDEN) & MASK63)
            loss = self.update(step)
            losses[step - first] = loss
            progress.step = step + 1
            if monotonic() > self.next_tick:
                self.hooks.tick(step + 1, loss.item() * self.ranks.world, self.last_accuracy)
                self.next_tick = monotonic() + self.TICK_SECONDS
            if self.leaving(step + 1):
                break
        return self.ranks.added(losses[: progress.step - first])

    def update(self, step: int) -> Tensor:
        """The optimizer step that leads to `step + 1`; returns the loss of its batch."""
        optimizer = self.optimizer
        images, labels = self.stream.batch(step + self.offset)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        with self.autocast():
            loss = self.loss(self.laid_out(images), labels, step + self.offset)
        loss.backward()
        self.add_gradients()
        self.masked_step(optimizer)
        return loss.detach()

    def loss(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """The mean cross-entropy of the batch at `step` of the data order; of several ranks each has its part of it."""
        if self.ranks.alone:
            return F.cross_entropy(self.network(images), labels)
        own, total = self.stream.sizes(step)
        with GlobalNorms(own, total):
            logits = self.network(images)
        return F.cross_entropy(logits, labels, reduction="sum") * (bool(own) / total)

    def learning_rate(self, step: int) -> float:
        """The rate of this step; fine-tuning stays at the schedule's last one."""
        return self.recipe.lr(self.recipe.total - 1 if self.ticket.hold_lr else step)

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for one forward pass. One for the whole chunk would reuse weights cast before the update."""
        if self.recipe.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    # -- measuring --------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Put the mean training loss since the last point on the curve, and a validation point.

        The mean is over all steps in between, however they were divided by kept steps, checkpoints or interruptions:
        the curve must not show it. Of the validation points the one of lowest loss is remembered, weights and all
        (LTH, section 2: the early-stop iteration is the argmin of the validation loss; first on ties).
        """
        progress = self.progress
        point = self.score("validation") if self.data.sizes["validation"] else None  # raises Stopped before all else
        if len(progress.losses):
            progress.curve.append([progress.step, "train", float(progress.losses.mean()), None])
            progress.losses = progress.losses[:0]
        if point is None:
            return
        loss, self.last_accuracy = point
        progress.curve.append([progress.step, "validation", *point])
        if loss < progress.best_loss:
            progress.best_loss, progress.best_step = loss, progress.step
            progress.best_state = self.snapshot()

    def snapshot(self) -> State:
        """A private CPU copy of the network as it is measured and saved: pruned weights are zero."""
        return snapshot(self.network)

    def beside(self) -> State:
        """What a checkpoint has to hold besides network, optimizer and progress."""
        return {}

    def score(self, split: str) -> tuple[float, float]:
        """Loss and accuracy on a split, at the training's own precision. Raises NonFiniteLoss, and Stopped on a signal.

        (The last update may have been the one that went wrong, and no training loss comes after it.)
        """
        tally, stopped = (0.0, 0.0, 0.0), False
        try:
            with self.autocast():
                tally = tallied(self.network, self.batches(split))
        except Stopped:
            stopped = True
        # Of several ranks each has measured its batches; where a signal reached one of them, all leave.
        loss, correct, count, left = self.ranks.added(torch.tensor([*tally, stopped], dtype=torch.float64)).tolist()
        if left:
            raise Stopped
        if not isfinite(loss):
            raise NonFiniteLoss.at(f"{split} loss", loss / count, self.progress.step)
        return loss / count, correct / count

    def batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.data.batches(split, self.recipe.eval_batch_size, self.ranks.share):
            if self.hooks.stop():
                raise Stopped
            yield self.laid_out(images), labels

    def laid_out(self, images: Tensor) -> Tensor:
        """The images in the memory format of the recipe."""
        return images.to(memory_format=torch.channels_last) if self.recipe.channels_last else images

    def check_finite(self, losses: Tensor) -> None:
        """Raise NonFiniteLoss naming the step at which the loss stopped being a number."""
        bad = torch.nonzero(~torch.isfinite(losses))
        if len(bad):
            step = self.progress.step - len(losses) + int(bad[0])
            raise NonFiniteLoss.at("loss", float(losses[int(bad[0])]), step)


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that modules like Dropout draw from on this device."""
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
