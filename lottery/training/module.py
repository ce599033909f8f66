"""Training under a mask as a LightningModule whose "batches" are chunks of many optimizer steps.

Lightning's loop costs 0.35-0.6 ms a step and `self.log` as much again, where a LeNet step takes under 2 ms. So
Lightning drives chunks (up to the next evaluation or kept step) under manual optimization, and the loop inside a chunk
is plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite
from time import monotonic
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lottery.data.dataset import Dataset
from lottery.pruning.structure import silent
from lottery.ranks.alone import Alone
from lottery.recipe import Recipe
from lottery.seeding import derive, reseed, seeded
from lottery.state import State, snapshot
from lottery.ticket import Ticket
from lottery.training.compiled import compiled
from lottery.training.evaluate import Tally, add_
from lottery.training.lightning import pl
from lottery.training.masking import MaskedStep
from lottery.training.optim import build_optimizer, load_optimizer_state_
from lottery.training.progress import NonFiniteLoss, Progress, Stopped

# An odd multiplier spreads the seeds of neighbouring steps over 63 bits; cheap enough for the loop.
GOLDEN, MASK63 = 0x9E3779B97F4A7C15, 0x7FFF_FFFF_FFFF_FFFF


@dataclass
class Hooks:
    """Callbacks from a training to the stage that runs it. `stop` and `due` are called at every step."""

    stop: Callable[[], bool] = lambda: False  # whether a signal asks to leave
    due: Callable[[int], bool] = lambda step: False  # whether `checkpoint` should be called at this step
    tick: Callable[[int, float, float | None], None] = lambda step, loss, accuracy: None  # a few times a second
    keep: Callable[[MaskedTraining], None] = lambda module: None  # at the steps to keep
    checkpoint: Callable[[MaskedTraining], None] = lambda module: None  # saves when due; after a signal raises too
    finish: Callable[[MaskedTraining], None] = lambda module: None  # when the last step is done


class MaskedTraining(pl.LightningModule):
    """Training of `ticket` by `recipe` from `progress.step` to the ticket's end, or to `end`.

    `ranks` adds up what several processes compute, so that all hold the same network after each step.
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
        ranks: Alone | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.forward_pass: Callable[[Tensor], Tensor] = network.__call__
        self.cross_entropy = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
        self.ticket, self.recipe, self.data_on = ticket, recipe, data
        self.progress = progress
        self.keep_steps = keep_steps
        self.end = ticket.step + ticket.steps if end is None else end
        self.offset = ticket.order_step - ticket.step  # from a step to its place in the data order
        self.initial_optimizer_state = optimizer_state
        self.hooks = hooks or Hooks()
        self.ranks = ranks or Alone()
        self.last_accuracy: float | None = None
        self.next_tick = monotonic() + self.TICK_SECONDS

    # -- Lightning's side -------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.recipe.optim, self.network)

    def train_dataloader(self) -> list[int]:
        """Return the chunks still to do, each as the step at which it ends. The last may have no step left to do."""
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
        self.measured(self.hooks.finish)

    def measured(self, work: Callable[[MaskedTraining], None]) -> None:
        """Run `work`, which measures the network. If a signal stops it, save a checkpoint and leave."""
        try:
            work(self)
        except Stopped:
            self.hooks.checkpoint(self)

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Put data, masks and optimizer state on the network's device, and measure if a point is due."""
        recipe = self.recipe
        if recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.data = self.data_on(self.device)
        self.stream = self.data.stream(recipe.batch_size, recipe.order_seed, recipe.drop_last, self.ranks.share())
        self.progress.losses = self.progress.losses.to(self.device)
        if recipe.compile:
            self.forward_pass = compiled(self.network)
        silenced = silent(self.network, self.ticket.mask, self.data.shape) if self.ticket.silent else {}
        self.masked_step = MaskedStep(self.network, {**self.ticket.mask, **silenced}, recipe.optim.clip_norm)
        self.add_gradients = self.ranks.gradient_sum(self.network.parameters())
        self.leaving = self.ranks.agreement(lambda: self.hooks.stop(), lambda step: self.hooks.due(step))
        self.optimizer = optimizer
        if self.initial_optimizer_state is not None:
            load_optimizer_state_(self.optimizer, self.network, self.initial_optimizer_state)
        self.measure_when_due()

    def measure_when_due(self) -> None:
        """Measure at the start, every `eval_every` steps and at the end, unless the checkpoint has that point."""
        step = self.progress.step
        due = step in (self.ticket.step, self.end) or step % self.recipe.eval_every == 0
        if due and self.progress.last_point != step:
            self.measured(lambda module: module.measure())

    def training_step(self, chunk: int, batch_idx: int) -> None:
        """Train up to step `chunk`, pausing for checkpoints; then measure and keep states as asked."""
        while self.progress.step < chunk:
            started = monotonic()
            losses = self.advance(chunk)
            self.check_finite(losses)
            self.progress.losses = torch.cat((self.progress.losses, losses))
            if self.progress.step == chunk and chunk in self.keep_steps:
                self.hooks.keep(self)
            self.measure_when_due()
            self.progress.seconds += monotonic() - started
            self.hooks.checkpoint(self)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def advance(self, until: int) -> Tensor:
        """Do optimizer steps up to `until`, or until a stop or a checkpoint is due; at least one.

        Returns the losses, float32 [steps done].
        """
        progress, offset, first = self.progress, self.offset, self.progress.step
        progress.tallies.clear()
        losses = torch.zeros(until - first, device=self.device)
        generator, noise = default_generator(self.device), self.noise()
        self.network.train()
        for step in range(first, until):
            # Dropout and the like draw from (seed, step, rank) alone, so a resumed training draws the same numbers.
            seed = (noise + (step + offset) * GOLDEN) & MASK63
            generator.manual_seed(seed)
            reseed(seed)
            loss = self.update(step)
            losses[step - first] = loss
            progress.step = step + 1
            if monotonic() > self.next_tick:
                self.hooks.tick(step + 1, loss.item(), self.last_accuracy)
                self.next_tick = monotonic() + self.TICK_SECONDS
            if self.leaving(step + 1):
                break
        return self.ranks.sum(losses[: progress.step - first])

    def noise(self, *words: str) -> int:
        """Return the seed of what networks draw from the global generators of torch, numpy and Python."""
        return derive(self.recipe.order_seed, "noise", *words, *self.ranks.noise)

    def update(self, step: int) -> Tensor:
        """Do the optimizer step that leads to `step + 1`; return the loss of its batch."""
        loss = self.compute_gradients(step)
        self.masked_step(self.optimizer)
        return loss

    def compute_gradients(self, step: int) -> Tensor:
        """Set the learning rate of this step and the gradients of its batch; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        images, labels = self.stream.batch(step + self.offset)
        with self.autocast():
            loss = self.loss(self.laid_out(images), labels, step + self.offset)
        loss.backward()
        self.add_gradients()
        return loss.detach()

    def loss(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Return the mean cross-entropy of the batch at `step` of the data order."""
        sizes = partial(self.stream.sizes, step)
        return self.ranks.mean_loss(self.cross_entropy, self.forward_pass, images, labels, sizes)

    def learning_rate(self, step: int) -> float:
        """Return the rate of this step; fine-tuning stays at the schedule's last rate."""
        return self.recipe.lr(self.recipe.total - 1 if self.ticket.hold_lr else step)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of one forward pass: over a whole chunk it would reuse weights cast before the update."""
        if self.recipe.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    # -- measuring --------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Add the mean training loss since the last point, and a validation point, to the curve.

        The mean is over all steps in between, however they were divided by kept steps, checkpoints or interruptions.
        The validation point of lowest loss is remembered with its weights (LTH, section 2: the early-stop iteration is
        the argmin of the validation loss; first on ties).
        """
        progress = self.progress
        point = self.score("validation") if self.data.sizes["validation"] else None  # first, as it may raise Stopped
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
        """Return a private CPU copy of the network as it is measured and saved: pruned weights are zero."""
        return snapshot(self.network)

    def beside(self) -> State:
        """Return the checkpoint's tensors besides network, optimizer and progress; only a search has some."""
        return {}

    def score(self, split: str, remember: str = "") -> tuple[float, float]:
        """Return loss and accuracy on a split, at the training's own precision. Raises Stopped on a signal.

        Raises NonFiniteLoss too, as no training loss comes after the last update. Batches measured before a signal are
        in the checkpoint and not measured again, nor is a finished split that has the name `remember`.
        """
        tallies = self.ranks.resumable(self.progress.tallies)
        tally, stopped = tallies.setdefault(remember or split, Tally()), False
        try:
            with seeded(self.noise(split)), self.autocast():
                add_(tally, self.network, self.batches(split, tally.batches))
        except Stopped:
            stopped = True
        sums = torch.tensor([tally.loss, tally.correct, tally.count, stopped], dtype=torch.float64)
        loss, correct, count, left = self.ranks.sum(sums).tolist()
        if left:
            raise Stopped
        if not remember:
            del tallies[split]
        if not isfinite(loss):
            raise NonFiniteLoss.at(f"{split} loss", loss / count, self.progress.step)
        return loss / count, correct / count

    def batches(self, split: str, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a split from number `first` on, each with its own seed. Raises Stopped on a signal."""
        found = self.data.batches(split, self.recipe.eval_batch_size, self.ranks.share(first))
        for number, (images, labels) in enumerate(found, first):
            if self.hooks.stop():
                raise Stopped
            noise = self.noise(split, str(number))
            default_generator(self.device).manual_seed(noise)
            reseed(noise)
            yield self.laid_out(images), labels

    def laid_out(self, images: Tensor) -> Tensor:
        """Return the images in the memory format of the recipe."""
        return images.to(memory_format=torch.channels_last) if self.recipe.channels_last else images

    def check_finite(self, losses: Tensor) -> None:
        """Raise NonFiniteLoss, naming the first step whose loss is NaN or infinite."""
        bad = torch.nonzero(~torch.isfinite(losses))
        if len(bad):
            step = self.progress.step - len(losses) + int(bad[0])
            raise NonFiniteLoss.at("loss", float(losses[int(bad[0])]), step)


def default_generator(device: torch.device) -> torch.Generator:
    """Return the generator of this device from which modules like Dropout draw."""
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
