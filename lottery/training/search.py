"""The search for a mask as a LightningModule: scores move by gradient, and the mask follows from the scores.

The network stays a plain module. Each forward pass calls it with z = m ⊙ θ in place of its prunable weights θ, and the
gradient q = ∂loss/∂z is what every method here makes its update of the scores from. Memory: θ, the scores and their
momentum, m, z and q; on a CPU three bytes a weight more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lottery.config import Optim
from lottery.data.dataset import Batch
from lottery.errors import ConfigError, LotteryError, nearest
from lottery.pruning.structure import followers
from lottery.search.initial import INITIAL, two_level
from lottery.search.restriction import Swaps
from lottery.search.rules import NM, Rule, TopGroups, TopK, TopKGlobal
from lottery.seeding import derive
from lottery.state import State
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining, NonFiniteLoss, snapshot
from lottery.training.optim import build_optimizer, load_optimizer_state_, optimizer_state
from lottery.training.schedule import LearningRate

GROUPS = {"filter": 0, "channel": 1}  # pattern: the dimension along which groups lie
LEVELS = ("two_level", "two_level_random")  # scores 0.99 and 1, by magnitude or at random
LOWER = "a lower method.scores.lr (or method.weights.lr) may help"
BINS = 20  # of the histograms of scores


@dataclass(frozen=True)
class Search:
    """How a mask is searched for: everything but the network, the data, and the recipe that its ticket has.

    kind:          jackpot, edge_popup, bip or bip_repo (KINDS)
    optim, lr:     what moves the scores
    initial:       the scores to start from, by name (search.initial)
    seed:          seeds.mask, where these are drawn
    pattern:       unstructured, filter, channel, or N:M such as 2:4
    density:       of all weights together, or of each layer's groups where the pattern has groups
    counts:        how many weights each layer keeps; None: all are ranked together
    restriction:   jackpots' short restriction; None: none
    inner:         lower-level steps for each step of the scores
    inverse_gamma: 1/γ of BiP's implicit gradient
    snapshots:     a mask is kept every so many steps; None: only the last
    """

    kind: str
    optim: Optim
    lr: LearningRate
    initial: str
    seed: int
    density: float
    pattern: str = "unstructured"
    counts: dict[str, int] | None = None
    restriction: str | float | None = None
    inner: int = 1
    inverse_gamma: float = 0.0
    snapshots: int | None = None

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raise ConfigError for initial scores or a pattern that there are not, or that these layers cannot have."""
        known = [*INITIAL, *LEVELS]
        if self.initial not in known:
            expected = f"one of {', '.join(known)}{nearest(self.initial, known)}"
            raise ConfigError.of("method.initial", self.initial, expected)
        if self.pattern not in ("unstructured", *GROUPS) and not re.fullmatch(r"[1-9]\d*:[1-9]\d*", self.pattern):
            expected = f"unstructured, {', '.join(GROUPS)}, or N:M such as 2:4{nearest(self.pattern, GROUPS)}"
            if self.pattern.isdigit():
                expected += "; in a file in quotes, or YAML reads a time"
            raise ConfigError.of("method.pattern", self.pattern, expected)
        size = sum(shape.numel() for shape in shapes.values())
        if self.pattern == "unstructured" and self.counts is None and round(self.density * size) < 1:
            expected = f"at least {1 / size:.4g}, one of the {size:,} weights"
            raise ConfigError.of("method.density", self.density, expected)
        self.rule(shapes)
        if ":" in self.pattern:
            n, m = (int(number) for number in self.pattern.split(":"))
            if abs(self.density - n / m) > 1e-9:
                raise ConfigError.of(
                    "method.density", self.density, f"{n / m:.6g}, which method.pattern={self.pattern} keeps"
                )

    def top(self, shapes: Mapping[str, torch.Size]) -> Rule:
        """The mask of the highest scores. ConfigError where layers of these shapes cannot have the pattern."""
        if self.pattern in GROUPS:
            return TopGroups(shapes, self.density, GROUPS[self.pattern])
        if self.pattern != "unstructured":
            n, m = (int(number) for number in self.pattern.split(":"))
            return NM(shapes, n, m)
        if self.counts is None:
            return TopKGlobal(round(self.density * sum(shape.numel() for shape in shapes.values())))
        return TopK([self.counts[name] for name in shapes])

    def rule(self, shapes: Mapping[str, torch.Size]) -> Rule:
        """How the mask follows from the scores, step by step."""
        if self.restriction is None or self.counts is None:
            return self.top(shapes)
        return Swaps([self.counts[name] for name in shapes], self.restriction)

    def inputs(self) -> dict[str, Any]:
        """What enters a stage key."""
        return asdict(self)


def first_of_each(mask: Tensor) -> Tensor:
    """The first entry of each filter [filters], as a view, which changes with the mask."""
    while mask.dim() > 1:
        mask = mask.select(1, 0)
    return mask


def laid_as(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient in its parameter's memory format: fused optimizers walk both in memory order, and check nothing."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


class ScoreSearch(MaskedTraining):
    """Scores beside weights that are frozen, or trained at the same time; what they are moved by, `update` says.

    The ticket's mask is full, its state the network to search in, its steps the length of the search. The log has an
    entry at the start, every `recipe.eval_every` steps and at the end.
    """

    batches_a_step = 1

    def __init__(self, search: Search, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.search = search
        self.names = list(self.ticket.mask)

    # -- beginning, and what is saved -------------------------------------------------------------------------------

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        if self.recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)
        named = dict(self.network.named_parameters())
        self.weights: list[Tensor] = [named[name] for name in self.names]
        self.rule = self.search.rule(self.ticket.mask.shapes)
        self.top = self.search.top(self.ticket.mask.shapes)
        self.masks = [torch.ones_like(weight, requires_grad=False) for weight in self.weights]
        started = zip(self.weights, self.begin(), strict=True)
        self.scores = nn.ParameterList(torch.empty_like(weight).copy_(score) for weight, score in started)
        self.score_optimizer = self.build_score_optimizer()
        self.swaps = torch.zeros((), dtype=torch.float64, device=self.device)
        self.hold(named)
        if self.progress.beside:
            self.load_beside_(self.progress.beside)
        self.upper = self.data_on(self.device).stream(
            self.recipe.batch_size, derive(self.recipe.order_seed, "upper"), self.recipe.drop_last
        )
        super().prepare(optimizer)

    def begin(self) -> list[Tensor]:
        """The initial scores; puts the mask that follows from them, and the magnitude mask, where they belong."""
        start = self.ticket.state.tensors()  # θ at the beginning of the search, also where it is continued
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
        self.top(self.ranked_of(scores), self.masks, 0.0)
        return two_level(weights, self.masks) if self.search.initial == "two_level_random" else scores

    def build_score_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.search.optim, self.scores)

    def score_optimizer_state(self) -> State:
        return optimizer_state(self.score_optimizer, self.scores)

    def load_score_optimizer_(self, state: State) -> None:
        load_optimizer_state_(self.score_optimizer, self.scores, state)

    def hold(self, named: dict[str, nn.Parameter]) -> None:
        """What is masked in each forward pass: the weights and, of filters, what goes with them."""
        self.held, self.held_names, self.held_masks = list(self.weights), list(self.names), list(self.masks)
        if self.search.pattern == "filter":
            masks = dict(zip(self.names, self.masks, strict=True))
            for name, weight in followers(self.network, self.data_on(self.device).shape).items():
                if weight in masks:
                    self.held.append(named[name])
                    self.held_names.append(name)
                    self.held_masks.append(first_of_each(masks[weight]))
        self.effective = [torch.empty_like(value).requires_grad_() for value in self.held]
        effective = {id(value): z for value, z in zip(self.held, self.effective, strict=True)}
        self.places = [  # where modules keep them; a weight that several share is in several places
            (module._parameters, name, parameter, effective[id(parameter)])
            for module in self.network.modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in effective
        ]
        # z, θ and m of each layer in row-major order, in the tensors' own memory; none where that cannot be had.
        layers = list(zip(self.effective, self.held, self.held_masks, strict=True))
        flat = len(self.held) == len(self.weights) and all(
            each.is_cpu and each.is_contiguous() and each.dtype == torch.float32 for layer in layers for each in layer
        )
        self.flat = [[each.detach().view(-1).numpy() for each in layer] for layer in layers] if flat else []
        self.following = False  # whether z is that of these weights, and of the mask before its last change

    def beside(self) -> State:
        tensors = {f"score/{index}": score.detach() for index, score in enumerate(self.scores)}
        tensors |= {f"mask/{index}": mask for index, mask in enumerate(self.masks)}
        tensors |= {f"optimizer/{name}": value for name, value in self.score_optimizer_state().items()}
        return tensors | {"swaps": self.swaps}

    @torch.no_grad()
    def load_beside_(self, tensors: State) -> None:
        for index, (score, mask) in enumerate(zip(self.scores, self.masks, strict=True)):
            score.copy_(tensors[f"score/{index}"])
            mask.copy_(tensors[f"mask/{index}"])
        slots = {k.removeprefix("optimizer/"): v for k, v in tensors.items() if k.startswith("optimizer/")}
        self.load_score_optimizer_(slots)
        self.following = False
        self.swaps.copy_(tensors["swaps"])

    # -- what an update is made of ----------------------------------------------------------------------------------

    def loss_of(self, batch: Batch, statistics: bool = True, silent: bool = True) -> Tensor:
        """The loss at z = m ⊙ θ, with the graph down to z; `statistics` of normalisation are updated, or left alone.

        With `silent` what goes with removed filters is zero too. Then these have no gradient, so that of the scores is
        taken without, as the papers write it.
        """
        images, labels = batch
        self.mask_effective_(silent)
        buffers = {} if statistics else {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        images = self.laid_out(images)
        with self.effective_weights(), self.autocast():
            logits = functional_call(self.network, buffers, (images,)) if buffers else self.network(images)
            return F.cross_entropy(logits, labels)

    @contextmanager
    def effective_weights(self) -> Iterator[None]:
        """The modules see z in the place of θ (as by `functional_call`, but where is looked up once, not each step)."""
        for parameters, name, _, effective in self.places:
            parameters[name] = effective  # type: ignore[assignment]
        try:
            yield
        finally:
            for parameters, name, own, _ in self.places:
                parameters[name] = own

    @torch.no_grad()
    def mask_effective_(self, silent: bool = True) -> None:
        """z = m ⊙ θ. As long as no weight moves, z changes where the mask does, which is at few entries a step."""
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

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """q = ∂loss/∂z of the prunable weights."""
        inputs = self.effective[: len(self.weights)]
        return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))

    @torch.no_grad()
    def move_scores(self, gradients: Sequence[Tensor], step: int) -> None:
        """One step of the scores' own optimizer, and the mask that follows."""
        for score, gradient in zip(self.scores, gradients, strict=True):
            score.grad = laid_as(gradient, score)
        self.step_scores(step)

    @torch.no_grad()
    def step_scores(self, step: int) -> None:
        for group in self.score_optimizer.param_groups:
            group["lr"] = self.score_rate(step)
        self.score_optimizer.step()
        for group in self.score_optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self.project(step)

    def score_rate(self, step: int) -> float:
        return self.search.lr(step)

    @torch.no_grad()
    def project(self, step: int) -> None:
        """The mask that the rule takes from the scores after `step`; swaps are counted."""
        try:
            self.swaps += self.rule(self.ranked(), self.masks, (step + 1) / self.end)
        except LotteryError as error:
            raise NonFiniteLoss(f"step {step}: {error}; {LOWER}") from error

    def ranked(self) -> list[Tensor]:
        return self.ranked_of([score.detach() for score in self.scores])

    def ranked_of(self, scores: list[Tensor]) -> list[Tensor]:
        """What the rule ranks: the scores themselves."""
        return scores

    # -- measuring --------------------------------------------------------------------------------------------------

    @contextmanager
    def masked(self) -> Iterator[None]:
        """The network itself holds z, not θ."""
        self.mask_effective_()
        own = [value.data for value in self.held]
        for value, effective in zip(self.held, self.effective, strict=True):
            value.data = effective.data
        try:
            yield
        finally:
            for value, data in zip(self.held, own, strict=True):
                value.data = data

    def score(self, split: str) -> tuple[float, float]:
        with self.masked():
            return super().score(split)

    def found(self) -> Mask:
        """The mask as it is now."""
        return Mask({name: mask.bool().cpu() for name, mask in zip(self.names, self.masks, strict=True)})

    def found_scores(self) -> State:
        """The scores, by the names of their weights."""
        return {name: score.detach().cpu() for name, score in zip(self.names, self.ranked(), strict=True)}

    def snapshot(self) -> State:
        state = self.found().apply(snapshot(self.network))
        silent = len(self.names)
        for name, mask in zip(self.held_names[silent:], self.held_masks[silent:], strict=True):
            state[name] = torch.where(mask.bool().cpu(), state[name], 0.0)
        return state

    def unmeasured(self) -> bool:
        step, log = self.progress.step, self.progress.log
        due = step in (0, self.end) or step % self.recipe.eval_every == 0
        return due and not (log and log[-1]["step"] == step)

    def measure(self) -> None:
        """Note the losses, how many weights were swapped a step since the last entry, and how the scores lie."""
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
        entry = {
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
        self.last_accuracy = point[1]
        progress.losses = progress.losses[:0]
        self.swaps.zero_()
        progress.log.append(entry)
