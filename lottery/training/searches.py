"""The searches for a mask: what each method does in one step, as its paper writes it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lottery.search.hypergradient import bip, bip_repo, popup, straight_through
from lottery.state import State
from lottery.training.optim import build_optimizer, load_optimizer_state_, optimizer_state
from lottery.training.search import ScoreSearch, laid_as


class Jackpot(ScoreSearch):
    """Lottery jackpots (Zhang et al. 2023): every weight stays as it is; ∂loss/∂s = q ⊙ w, also of pruned weights."""

    def update(self, step: int) -> Tensor:
        loss = self.loss_of(self.stream.batch(step), silent=False)
        self.move_scores(self.score_gradient(self.gradient(loss)), step)
        return loss.detach()

    def score_gradient(self, q: list[Tensor]) -> list[Tensor]:
        return straight_through(self.weights, q)


class EdgePopup(Jackpot):
    """What's hidden in a randomly weighted network (Ramanujan et al. 2020): |s| is ranked, so ∂loss/∂s has its sign."""

    def score_gradient(self, q: list[Tensor]) -> list[Tensor]:
        return popup(self.weights, q, [score.detach() for score in self.scores])

    def ranked_of(self, scores: list[Tensor]) -> list[Tensor]:
        return [score.abs() for score in scores]


class BiP(ScoreSearch):
    """Bi-level pruning (Zhang et al. 2022): weights on one batch under a fixed mask, then the mask on another."""

    @property
    def batches_a_step(self) -> int:  # type: ignore[override]
        return self.search.inner + 1

    def update(self, step: int) -> Tensor:
        inner = self.search.inner
        for number in range(inner):  # lower level: θ ← θ - α (m ⊙ q + γ'θ)
            loss = self.loss_of(self.stream.batch(step * inner + number))
            self.move_weights(loss, step)
        q = self.gradient(self.loss_of(self.upper.batch(step), statistics=False, silent=False))
        self.move_scores(bip(self.weights, self.masks, q, self.search.inverse_gamma), step)  # upper level
        return loss.detach()

    @torch.no_grad()
    def move_weights(self, loss: Tensor, step: int) -> None:
        """The data's gradient reaches kept weights only; weight decay, as part of the lower level, all of them.

        (Momentum is carried on: a weight that was pruned a moment ago still coasts.)
        """
        others = self.not_held()
        gradients = torch.autograd.grad(loss, [*self.effective, *others], allow_unused=True, materialize_grads=True)
        torch._foreach_mul_(gradients[: len(self.held)], self.held_masks)
        for parameter, gradient in zip([*self.held, *others], gradients, strict=True):
            parameter.grad = laid_as(gradient, parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.masked_step(self.optimizer)  # whose mask is full: clips, steps, and drops the gradients
        self.following = False

    def not_held(self) -> list[nn.Parameter]:
        """Biases, normalisation, layers that are never pruned: what is trained and not masked."""
        held = set(self.held_names)
        return [p for name, p in self.network.named_parameters() if name not in held and p.requires_grad]


class BiPRepo(BiP):
    """What the released code does in BiP's place, for comparison.

    Scores and weights are one storage, so that the mask is the global top of |θ|; the upper level's optimizer holds all
    parameters: the shared weights move by θ ⊙ q - (1/γ)(θ ⊙ q)², normalisation by its own gradient, the rest by decay
    and momentum alone; its rate follows the weights' and falls to a tenth after half of the steps, to a hundredth
    after three quarters. (Its cosine that lags by an epoch is not repeated here.)
    """

    def begin(self) -> list[Tensor]:
        scores = super().begin()
        self.top(self.ranked(), self.masks, 0.0)
        return scores

    def build_score_optimizer(self) -> torch.optim.Optimizer:
        decay = self.recipe.optim.weight_decay
        return build_optimizer(replace(self.search.optim, weight_decay=decay), self.network)

    def score_optimizer_state(self) -> State:
        return optimizer_state(self.score_optimizer, self.network)

    def load_score_optimizer_(self, state: State) -> None:
        load_optimizer_state_(self.score_optimizer, self.network, state)

    def update(self, step: int) -> Tensor:
        loss = self.loss_of(self.stream.batch(step))
        self.move_weights(loss, step)
        norms = self.norm_parameters()
        upper = self.loss_of(self.upper.batch(step), silent=False)
        inputs = [*self.effective, *norms]
        gradients = torch.autograd.grad(upper, inputs, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for every in self.network.parameters():
                every.grad = torch.zeros_like(every)
            moves = bip_repo(self.weights, list(gradients[: len(self.weights)]), self.search.inverse_gamma)
            moved: list[Tensor] = [*self.held, *norms]
            for parameter, move in zip(moved, [*moves, *gradients[len(self.weights) :]], strict=True):
                parameter.grad = laid_as(move, parameter)
        self.step_scores(step)
        self.following = False
        return loss.detach()

    def norm_parameters(self) -> list[nn.Parameter]:
        held = {id(value) for value in self.held}
        norms = (module for module in self.network.modules() if isinstance(module, nn.modules.batchnorm._NormBase))
        found = (parameter for module in norms for parameter in module.parameters(recurse=False))
        return [parameter for parameter in found if id(parameter) not in held]

    def score_rate(self, step: int) -> float:
        drop = 1.0 if 2 * step < self.end else 0.1 if 4 * step < 3 * self.end else 0.01
        return self.learning_rate(step) * drop

    def ranked(self) -> list[Tensor]:
        return [weight.detach().abs() for weight in self.weights]


KINDS: dict[str, type[ScoreSearch]] = {"jackpot": Jackpot, "edge_popup": EdgePopup, "bip": BiP, "bip_repo": BiPRepo}
