"""The update of BiP's released code (OPTML-Group/BiP), instead of the paper's: `method.variant=repo`.

Scores and weights share their memory, so the mask is the top of |θ|. Each optimizer holds the shared tensors twice, as
weights and as scores, with decay and momentum for each. Both entries step one after the other:

    lower level   θ by m ⊙ q, then θ again by a gradient of 0 (from the second step on); others by their own gradients
    upper level   θ by a gradient of 0, then θ again by |θ| ⊙ q - (1/γ)(θ ⊙ q)²; normalisation by g - (1/γ) g²;
                  other parameters by a gradient of 0

The code needs a torch older than 2, where a gradient that is not computed is zero rather than None, and where SGD steps
parameter by parameter. Four forward passes a step update the statistics of normalisation: one of the lower level, three
of the upper. Removed filters are not silenced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lottery.config import Optim
from lottery.schedule import LearningRate
from lottery.training.phases import Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lottery.training.search import ScoreSearch
    from lottery.training.search_options import Optimizers, Search


def as_released(search: Search, weights: Phase, steps: int) -> Search:
    """Turn a search into the released code's, which moves the scores by the options of the weights."""
    optim, rate = moved_by(weights, steps)
    return replace(
        search,
        kind="bip_repo",
        optim=optim,
        lr=rate,
        initial="magnitude",
        method=Released(),
        revision=1,  # its numerics changed once
        absolute=True,
        silences=False,
        shared=True,
        optimizers=second_entries,
    )


def moved_by(weights: Phase, steps: int) -> tuple[Optim, LearningRate]:
    """Return the optimizer of the scores, and its learning rate over so many steps.

    SGD with the weights' peak rate, momentum and decay; a tenth of that rate from 1/2 of the steps, 1/100 from 3/4.
    """
    milestones = (-(-steps // 2), -(-3 * steps // 4))
    rate = LearningRate("multistep", weights.lr, steps, milestones=milestones, gamma=0.1)
    return Optim("sgd", weights.lr, weights.momentum, weight_decay=weights.weight_decay), rate


def second_entries(run: ScoreSearch) -> Optimizers:
    """Build each optimizer's second entry: the lower level's for the scores, the upper level's for all parameters."""
    from lottery.training.optim import build_optimizer

    return {
        "lower": (build_optimizer(run.recipe.optim, run.scores), run.scores),
        "upper": (build_optimizer(run.search.optim, run.network), run.network),
    }


@dataclass
class Released:
    """The update of the released code."""

    def update(self, run: ScoreSearch, step: int) -> Tensor:
        """Do one step of both levels."""
        loss = run.loss_of(run.stream.batch(step))
        run.move_weights(loss, step)
        if step:  # before the first upper level the scores have no gradient, not even zero
            run.move_further("lower", {}, run.learning_rate(step))
        run.project(step)
        batch, norms, c = run.upper.batch(step), norm_parameters(run.network), run.search.inverse_gamma
        gradients = run.gradient(run.loss_of(batch), also=norms)
        q, of_norms = gradients[: len(run.weights)], gradients[len(run.weights) :]
        run.update_statistics(batch)
        moves = score_gradient(run.weights, q, c)
        given = {norm: g - c * g**2 for norm, g in zip(norms, of_norms, strict=True)}
        run.move_further("upper", given, run.search.lr(step))
        run.move_scores(moves, step)
        run.update_statistics(batch)
        return loss.detach()


def score_gradient(weights: Sequence[Tensor], q: list[Tensor], inverse_gamma: float) -> list[Tensor]:
    """Return |θ| ⊙ q - (1/γ) (θ ⊙ q)², tensor by tensor, written over q. 1/γ is the code's `lr2`.

    The scores are the weights, ranked by |s|, so the gradient has the sign of θ in it. The paper has no second term.
    """
    import torch

    torch._foreach_mul_(q, torch._foreach_abs([weight.detach() for weight in weights]))
    torch._foreach_addcmul_(q, q, q, value=-inverse_gamma)
    return q


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the trainable scales and shifts of batch and instance normalisation."""
    from torch.nn.modules.batchnorm import _NormBase

    norms = (module for module in network.modules() if isinstance(module, _NormBase))
    return [p for module in norms for p in module.parameters(recurse=False) if p.requires_grad]
