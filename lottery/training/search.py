"""The search for a mask as a LightningModule: scores move by gradient, and the mask follows from the scores.

The network stays a plain module. Each forward pass calls it with z = m ⊙ θ in place of its prunable weights θ. The
method's `update` (lottery/methods) moves the scores by the gradient q = ∂loss/∂z. Memory: θ, the scores and their
momentum, m, z and q; on a CPU three bytes a weight more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lottery.data.dataset import Batch
from lottery.errors import LotteryError
from lottery.pruning.structure import followers
from lottery.search.initial import INITIAL, two_level
from lottery.seeding import derive
from lottery.state import State, snapshot
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining
from lottery.training.optim import build_optimizer, laid_as, load_optimizer_state_, optimizer_state, stepped
from lottery.training.progress import NonFiniteLoss
from lottery.training.search_options import Optimizers, Search

LOWER = "a lower method.scores.lr (or method.weights.lr) may help"
BINS = 20  # of the histograms of scores


def first_of_each(mask: Tensor) -> Tensor:
    """Return the first entry of each filter [filters], as a view that changes with the mask."""
    while mask.dim() > 1:
        mask = mask.select(1, 0)
    return mask


class ScoreSearch(MaskedTraining):
    """A search: the method's update moves scores, while the weights are frozen or trained at the same time.

    The ticket's mask is full, its state the network to search in, its steps the length of the search. The log has an
    entry at the start, every `recipe.eval_every` steps and at the end.
    """

    def __init__(self, search: Search, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.search = search
        self.names = list(self.ticket.mask)

    @property
    def silent(self) -> bool:
        """Whether the bias and the normalisation of a removed filter are set to zero as well."""
        return self.search.pattern == "filter" and self.search.silences

    # -- beginning, and what is saved -------------------------------------------------------------------------------

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        if self.recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)
        named = dict(self.network.named_parameters())
        self.weights: list[Tensor] = [named[name] for name in self.names]
        self.rule = self.search.rule(self.ticket.mask.shapes)
        self.top = self.search.top(self.ticket.mask.shapes)
        self.masks = [torch.ones_like(weight, requires_grad=False) for weight in self.weights]
        self.scores = nn.ParameterList(  # in the weights' memory format; with `shared`, in their memory
            weight.detach() if self.search.shared else torch.empty_like(weight).copy_(score)
            for weight, score in zip(self.weights, self.begin(), strict=True)
        )
        # Optimizers besides that of the weights, and the parameters they move; checkpoints hold their state.
        self.score_optimizer = build_optimizer(self.search.optim, self.scores)
        further = self.search.optimizers(self) if self.search.optimizers else {}
        self.optimizers_beside: Optimizers = {"optimizer": (self.score_optimizer, self.scores)} | further
        self.swaps = torch.zeros((), dtype=torch.float64, device=self.device)
        self.hold(named)
        if self.progress.beside:
            self.load_beside_(self.progress.beside)
        self.upper = self.data_on(self.device).stream(
            self.recipe.batch_size, derive(self.recipe.order_seed, "upper"), self.recipe.drop_last
        )
        super().prepare(optimizer)

    def begin(self) -> list[Tensor]:
        """Return the initial scores; set `masks` to the mask that follows from them, and `magnitude` to that of |θ|."""
        start = self.ticket.state.tensors()  # θ at the beginning of the search, also when it is continued
        weights = [start[name].to(self.device) for name in self.names]
        magnitude = [torch.ones_like(mask) for mask in self.masks]
        self.top([weight.abs() for weight in weights], magnitude, 0.0)
        self.magnitude = [mask.bool() for mask in magnitude]
        generator = torch.Generator().manual_seed(derive(self.search.seed, "search"))
        if self.search.initial == "two_level":
            torch._foreach_copy_(self.masks, magnitude)
            return two_level(weights, self.masks)
        kind = "uniform" if self.search.initial == "two_level_random" else self.search.initial
        scores = INITIAL[kind](weights, generator)
        self.top(self.ranked(scores), self.masks, 0.0)
        return two_level(weights, self.masks) if self.search.initial == "two_level_random" else scores

    def hold(self, named: dict[str, nn.Parameter]) -> None:
        """Collect the tensors to mask in each forward pass: the weights; with filters, their bias and normalisation."""
        held = dict(zip(self.names, self.masks, strict=True))
        if self.silent:
            pairs = followers(self.network, self.data_on(self.device).shape).items()
            held |= {name: first_of_each(held[weight]) for name, weight in pairs if weight in held}
        self.held_names, self.held_masks = list(held), list(held.values())
        self.held: list[Tensor] = [named[name] for name in held]
        self.effective = [torch.empty_like(value).requires_grad_() for value in self.held]
        effective = {id(value): z for value, z in zip(self.held, self.effective, strict=True)}
        self.places = [  # where modules hold these tensors; a shared one is in several places
            (module._parameters, name, parameter, effective[id(parameter)])
            for module in self.network.modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in effective
        ]
        # Flat views of z, θ and m of each layer; none unless all are contiguous float32 weights on the CPU.
        layers = list(zip(self.effective, self.held, self.held_masks, strict=True))
        flat = len(self.held) == len(self.weights) and all(
            each.is_cpu and each.is_contiguous() and each.dtype == torch.float32 for layer in layers for each in layer
        )
        self.flat = [[each.detach().view(-1).numpy() for each in layer] for layer in layers] if flat else []
        self.following = False  # whether z is up to date but for the mask's last change

    def beside(self) -> State:
        tensors = {f"score/{index}": score.detach() for index, score in enumerate(self.scores)}
        tensors |= {f"mask/{index}": mask for index, mask in enumerate(self.masks)}
        for kind, (optimizer, moved) in self.optimizers_beside.items():
            tensors |= {f"{kind}/{name}": value for name, value in optimizer_state(optimizer, moved).items()}
        return tensors | {"swaps": self.swaps}

    @torch.no_grad()
    def load_beside_(self, tensors: State) -> None:
        for index, (score, mask) in enumerate(zip(self.scores, self.masks, strict=True)):
            score.copy_(tensors[f"score/{index}"])
            mask.copy_(tensors[f"mask/{index}"])
        for kind, (optimizer, moved) in self.optimizers_beside.items():
            slots = {k.removeprefix(f"{kind}/"): v for k, v in tensors.items() if k.startswith(f"{kind}/")}
            load_optimizer_state_(optimizer, moved, slots)
        self.following = False
        self.swaps.copy_(tensors["swaps"])

    # -- one step ---------------------------------------------------------------------------------------------------

    def update(self, step: int) -> Tensor:
        return self.search.method.update(self, step)

    # -- what an update is made of ----------------------------------------------------------------------------------

    def loss_of(self, batch: Batch, statistics: bool = True, silent: bool = True) -> Tensor:
        """Return the loss at z = m ⊙ θ, with the graph down to z.

        statistics: update those of normalisation; else they are left alone
        silent:     zero the bias and normalisation of removed filters too. Removed filters then have no gradient, so
            the gradient of the scores is taken without, as the papers write it.
        """
        images, labels = batch
        self.mask_effective_(silent)
        buffers = {} if statistics else {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        images = self.laid_out(images)
        with self.effective_weights(), self.autocast():
            logits = functional_call(self.network, buffers, (images,)) if buffers else self.network(images)
            return self.cross_entropy(logits, labels)

    @contextmanager
    def effective_weights(self) -> Iterator[None]:
        """Give the modules z in place of θ, like `functional_call`; their places were looked up once in `hold`."""
        for parameters, name, _, effective in self.places:
            parameters[name] = effective  # type: ignore[assignment]
        try:
            yield
        finally:
            for parameters, name, own, _ in self.places:
                parameters[name] = own

    @torch.no_grad()
    def mask_effective_(self, silent: bool = True) -> None:
        """Set z = m ⊙ θ. As long as no weight moves, only the few entries whose mask has changed are set."""
        changed = self.rule.changed
        if self.flat and changed is not None and self.following:
            for (z, weight, mask), places in zip(self.flat, changed, strict=True):
                z[places] = weight[places] * mask[places]
            return
        self.following = True
        for number, (effective, value) in enumerate(zip(self.effective, self.held, strict=True)):
            if silent or number < len(self.weights):
                torch.mul(value, self.held_masks[number], out=effective)
            else:
                effective.copy_(value)

    @torch.no_grad()
    def update_statistics(self, batch: Batch) -> None:
        """Do a forward pass to update running means and variances."""
        if next(self.network.buffers(), None) is not None:
            self.loss_of(batch)

    def gradient(self, loss: Tensor, also: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return q = ∂loss/∂z of the prunable weights, followed by the gradients of the tensors in `also`."""
        inputs = [*self.effective[: len(self.weights)], *also]
        return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))

    @torch.no_grad()
    def move_weights(self, loss: Tensor, step: int) -> None:
        """Do one step of the weights under the mask, and of every parameter that is not masked.

        The data's gradient reaches kept weights only, weight decay all. Momentum still moves weights just pruned.
        """
        held = set(self.held_names)
        others = [p for name, p in self.network.named_parameters() if name not in held and p.requires_grad]
        gradients = torch.autograd.grad(loss, [*self.effective, *others], allow_unused=True, materialize_grads=True)
        torch._foreach_mul_(gradients[: len(self.held)], self.held_masks)
        for parameter, gradient in zip([*self.held, *others], gradients, strict=True):
            parameter.grad = laid_as(gradient, parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.masked_step(self.optimizer)  # with a full mask: clips, steps, and drops the gradients
        self.following = False

    @torch.no_grad()
    def move_further(self, name: str, gradients: Mapping[nn.Parameter, Tensor], rate: float) -> None:
        """Do one step of a further optimizer with these gradients, and with zero for its other parameters."""
        optimizer = self.optimizers_beside[name][0]
        moved = optimizer.param_groups[0]["params"]
        given = [gradients[each] if each in gradients else torch.zeros_like(each) for each in moved]
        stepped(optimizer, moved, given, rate)
        self.following = False

    @torch.no_grad()
    def move_scores(self, gradients: Sequence[Tensor], step: int) -> None:
        """Do one step of the scores' own optimizer, and set the mask that follows from the scores."""
        stepped(self.score_optimizer, self.scores, gradients, self.search.lr(step))
        self.project(step)
        if self.search.shared:
            self.following = False

    @torch.no_grad()
    def project(self, step: int) -> None:
        """Set the mask that the rule derives from the scores after `step`; count the swaps."""
        try:
            self.swaps += self.rule(self.ranked(), self.masks, (step + 1) / self.end)
        except LotteryError as error:
            raise NonFiniteLoss(f"step {step}: {error}; {LOWER}") from error

    def ranked(self, scores: Iterable[Tensor] | None = None) -> list[Tensor]:
        """Return the values that the rule ranks, s or |s|, of these scores (None: the current ones)."""
        found = [score.detach() for score in (self.scores if scores is None else scores)]
        return [score.abs() for score in found] if self.search.absolute else found

    # -- measuring --------------------------------------------------------------------------------------------------

    def score(self, split: str, remember: str = "") -> tuple[float, float]:
        self.mask_effective_()
        with self.effective_weights():
            return super().score(split, remember)

    def found(self) -> Mask:
        """Return the current mask."""
        return Mask({name: mask.bool().cpu() for name, mask in zip(self.names, self.masks, strict=True)})

    def found_scores(self) -> State:
        """Return the current scores as they are ranked, by the names of their weights."""
        return {name: score.cpu() for name, score in zip(self.names, self.ranked(), strict=True)}

    def snapshot(self) -> State:
        state = self.found().apply(snapshot(self.network))
        silent = len(self.names)
        for name, mask in zip(self.held_names[silent:], self.held_masks[silent:], strict=True):
            state[name] = torch.where(mask.bool().cpu(), state[name], 0.0)
        return state

    def measure(self) -> None:
        """Log the losses, the mean swaps a step since the last entry, and the distribution of the scores."""
        progress = self.progress
        point = self.score("validation") if self.data.sizes["validation"] else (None, None)
        since = progress.step - (progress.log[-1]["step"] if progress.log else 0)
        both = sum(int((mask.bool() & other).sum()) for mask, other in zip(self.masks, self.magnitude, strict=True))
        kept = sum(int(mask.sum(dtype=torch.float64)) for mask in self.masks)
        ranked = torch.cat([score.flatten() for score in self.ranked()])
        low, high = float(ranked.min()), float(ranked.max())
        if not isfinite(low) or not isfinite(high):
            raise NonFiniteLoss(f"step {progress.step}: scores are not finite; {LOWER}")
        histogram = sum(torch.histc(part.float(), BINS, low, high).long() for part in ranked.split(2**24))
        entry: dict[str, Any] = {
            "step": progress.step,
            "train_loss": float(progress.losses.mean()) if len(progress.losses) else None,
            "val_loss": point[0],
            "val_accuracy": point[1],
            "swaps": float(self.swaps) / since if since else None,  # a step, on average
            "magnitude_iou": both / (2 * kept - both),  # with the magnitude mask of the start weights, by the same rule
            "score_low": low,
            "score_high": high,
            "score_histogram": histogram.tolist(),  # type: ignore[union-attr]
        }
        progress.log.append(entry)
        progress.losses, self.last_accuracy = progress.losses[:0], point[1]
        self.swaps.zero_()
