"""Training under a mask that moves: the method's `update` does each step, and moves the mask where one is due.

Between two moves a step is a masked step. Grown weights start at zero, and so do the optimizer's slots of weights that
come or go. The mask, what it has explored and how often it moved are in the checkpoint, and every random draw is a
function of (seed, step), so a training that was interrupted ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.moving.exchange import Flags
from lottery.moving.plan import Plan
from lottery.pruning.allocations import counts
from lottery.search.top import put, values_of
from lottery.seeding import derive
from lottery.state import State
from lottery.ticket import Mask
from lottery.training.masking import MaskedStep
from lottery.training.module import MaskedTraining


class MovingMethod(Protocol):
    """A dataclass of options, with the `update` that does one step of a training."""

    def update(self, run: MovingTraining, step: int) -> Tensor:
        """Do the step that leads to `step + 1`; return the loss of its batch, detached."""

    def factors(self, run: MovingTraining, step: int) -> list[Tensor] | None:
        """Return what each prunable weight is multiplied by before a forward pass; None: the weights are used."""


class MovingTraining(MaskedTraining):
    """A training whose mask is a function of the step. The ticket's mask is where it starts.

    Memory beside a masked training: a bit a weight. `explored` is packed as in a mask's file.
    """

    def __init__(self, method: MovingMethod, plan: Plan, seed: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method, self.plan, self.seed = method, plan, seed
        self.names = list(self.ticket.mask)
        self.moves = 0
        self.current = self.ticket.mask  # when the training begins or continues
        self.explored = [bits.copy() for bits in self.current.packed.values()]
        self.history: list[list[int]] = []  # [step, dense gradients, weights each layer keeps], from each change on
        self.points: list[list[int]] = []  # [step, moves, weights ever kept, weights each layer keeps], where measured
        if saved := self.progress.beside:
            self.current = Mask({name: saved[f"mask/{index}"].bool() for index, name in enumerate(self.names)})
            self.explored = [saved[f"explored/{index}"].numpy() for index in range(len(self.names))]
            self.history, self.moves = saved["history"].tolist(), int(saved["moves"])
            self.points = saved["points"].tolist()
            # The state is as it was: neither what has grown since the start, nor dense weights below a mask, are zero.
            self.ticket = replace(self.ticket, mask=Mask.ones(self.ticket.mask.shapes))

    # -- beginning, and what is saved -------------------------------------------------------------------------------

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        if self.recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)
        named = dict(self.network.named_parameters())
        self.weights: list[Tensor] = [named[name] for name in self.names]
        self.masks = [torch.empty_like(named[name]).copy_(kept) for name, kept in self.current.items()]
        self.note_counts(self.progress.step)
        super().prepare(optimizer)
        self.masked_step.weights, self.masked_step.masks = self.weights, self.masks  # full ones too: they may move
        self.plain_step = MaskedStep(self.network, {}, self.recipe.optim.clip_norm)

    def beside(self) -> State:
        tensors = {f"mask/{index}": mask.bool() for index, mask in enumerate(self.masks)}
        tensors |= {f"explored/{index}": torch.from_numpy(bits) for index, bits in enumerate(self.explored)}
        numbers = {"moves": self.moves, "history": self.history, "points": self.points}
        return tensors | {name: torch.tensor(value) for name, value in numbers.items()}

    def note_counts(self, step: int) -> None:
        """Note how many weights each layer keeps from this step on, if that has changed."""
        kept = [int(mask.sum(dtype=torch.float64)) for mask in self.masks]
        if not self.history or self.history[-1][2:] != kept:
            self.history.append([step, 0, *kept])

    # -- one step ---------------------------------------------------------------------------------------------------

    def update(self, step: int) -> Tensor:
        return self.method.update(self, step)

    def optimize(self, masked: bool = True) -> None:
        """Do an optimizer step, under the mask or not, with the gradients of the last backward pass; drop these."""
        (self.masked_step if masked else self.plain_step)(self.optimizer)

    def gradients(self) -> list[NDArray]:
        """Return ∂loss/∂w of every prunable weight, as flat arrays. Those of pruned ones are for `dense_gradient`."""
        return [values_of((torch.zeros_like(w) if w.grad is None else w.grad).cpu()) for w in self.weights]

    def dense_gradient(self) -> list[NDArray]:
        """Return the gradients of pruned weights too, and count a pass that computed them."""
        self.count_dense_gradient()
        return self.gradients()

    def count_dense_gradient(self) -> None:
        """Count a step whose gradient is that of all weights, for the training's cost."""
        self.history[-1][1] += 1

    def magnitudes(self) -> list[NDArray]:
        """Return |w| of every prunable weight, as flat arrays."""
        return [np.abs(values_of(weight.cpu())) for weight in self.weights]

    def kept(self) -> list[Flags]:
        """Return the mask, as flat arrays."""
        return self.flat(self.masks)

    def flat(self, masks: Sequence[Tensor]) -> list[Flags]:
        """Return masks of 0.0 and 1.0 as flat arrays."""
        return [values_of(mask.cpu()) == 1 for mask in masks]

    def full(self) -> list[Flags]:
        """Return the mask that keeps all, as flat arrays."""
        return [np.ones(mask.numel(), dtype=np.bool_) for mask in self.masks]

    def layer_goals(self, density: float) -> list[int]:
        """Return how many weights of each layer make this density, shared out as those of the start mask are."""
        shapes = self.ticket.mask.shapes
        share = density * self.ticket.mask.size / sum(self.history[0][2:])
        sizes = [shape.numel() for shape in shapes.values()]
        densities = [kept * share / size for kept, size in zip(self.history[0][2:], sizes, strict=True)]
        return list(counts(dict(zip(shapes, densities, strict=True)), shapes, density).values())

    def random(self, step: int) -> np.random.Generator:
        """Return a random stream that is a function of the seed and the step."""
        return np.random.default_rng(derive(self.seed, "moves", str(step)))

    @torch.no_grad()
    def move_(self, step: int, masks: Sequence[Flags]) -> None:
        """Set the mask. Weights that come or go are zero, with slots of zero; one that does both keeps its value."""
        for weight, mask, kept in zip(self.weights, self.masks, masks, strict=True):
            before = mask.clone()
            put(mask, kept)
            other = (before * mask) == 0
            slots = self.optimizer.state.get(weight, {}).values()
            for tensor in (weight, *(slot for slot in slots if torch.is_tensor(slot) and slot.shape == weight.shape)):
                tensor.masked_fill_(other, 0.0)
        self.moved_(step, masks)

    @torch.no_grad()
    def masks_(self, masks: Sequence[Tensor], step: int) -> None:
        """Set the mask of this step and leave the weights alone: the forward pass is masked, not the weights."""
        if not all(torch.equal(mask, now) for mask, now in zip(masks, self.masks, strict=True)):
            torch._foreach_copy_(self.masks, list(masks))
            self.moved_(step - 1, self.kept())

    def moved_(self, step: int, masks: Sequence[Flags]) -> None:
        """Note a mask that holds after this step."""
        for bits, kept in zip(self.explored, masks, strict=True):
            np.bitwise_or(bits, np.packbits(kept), out=bits)
        self.moves += 1
        self.note_counts(step + 1)

    # -- what is measured and saved -----------------------------------------------------------------------------------

    @contextmanager
    def multiplied(self, factors: Sequence[Tensor] | None) -> Iterator[None]:
        """Give the network its weights times these factors, if there are some, and the weights themselves after."""
        if factors is None:
            yield
            return
        with torch.no_grad():
            own = [weight.clone() for weight in self.weights]
            torch._foreach_mul_(self.weights, list(factors))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, own)

    def score(self, split: str, remember: str = "") -> tuple[float, float]:
        with self.multiplied(self.method.factors(self, self.progress.step)):
            return super().score(split, remember)

    def snapshot(self) -> State:
        with self.multiplied(self.method.factors(self, self.progress.step)):
            return super().snapshot()

    def measure(self) -> None:
        """Measure as a masked training does. The early-stop point is one of the steps with the mask of the end."""
        super().measure()
        self.points.append([self.progress.step, self.moves, self.explored_weights(), *self.history[-1][2:]])
        if self.progress.step <= self.plan.end and self.progress.step < self.end:
            self.progress.best_loss, self.progress.best_step, self.progress.best_state = float("inf"), None, None

    def found(self) -> Mask:
        """Return the current mask."""
        return Mask({name: mask.bool().cpu() for name, mask in zip(self.names, self.masks, strict=True)})

    def explored_weights(self) -> int:
        """Return how many of the prunable weights were ever kept."""
        return sum(int(np.bitwise_count(bits).sum()) for bits in self.explored)
