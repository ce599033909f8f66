"""What moves the scores: estimates of ∂loss/∂m from θ, the mask m and q = ∂loss/∂z at z = m ⊙ θ.

Everything comes as parallel lists of tensors, one for each tensor of weights, outside of autograd. The result is
written over q, which nobody needs any more, and returned.

    straight_through   q ⊙ θ                        lottery jackpots; BiP without its implicit part
    popup              q ⊙ θ ⊙ sign(s)              edge-popup, which ranks |s|
    bip                (θ - (1/γ) m ⊙ q) ⊙ q        BiP: Zhang et al. 2022, the Hessian of the loss left out
    bip_repo           θ ⊙ q - (1/γ) (θ ⊙ q)²       what BiP's released code computes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def straight_through(weights: Sequence[Tensor], q: list[Tensor]) -> list[Tensor]:
    """q ⊙ θ: the gradient of the mask's entries, given to the scores as it is. Pruned entries have one too."""
    torch._foreach_mul_(q, list(weights))
    return q


@torch.no_grad()
def popup(weights: Sequence[Tensor], q: list[Tensor], scores: Sequence[Tensor]) -> list[Tensor]:
    """q ⊙ θ ⊙ sign(s): straight through the ranking of |s|, and by the chain rule through |s|.

    Ramanujan et al. 2020; allenai/hidden-networks takes the absolute value inside autograd, so a negative score moves
    against q ⊙ θ. A score of exactly 0 has no gradient.
    """
    straight_through(weights, q)
    torch._foreach_mul_(q, torch._foreach_sign(list(scores)))
    return q


@torch.no_grad()
def bip(weights: Sequence[Tensor], masks: Sequence[Tensor], q: list[Tensor], inverse_gamma: float) -> list[Tensor]:
    """(θ - (1/γ) m ⊙ q) ⊙ q, exact where the loss is linear in z; the smaller 1/γ, the better elsewhere."""
    if inverse_gamma == 0:
        return straight_through(weights, q)
    total = torch._foreach_addcmul([weight.detach() for weight in weights], list(masks), q, value=-inverse_gamma)
    torch._foreach_mul_(q, total)
    return q


@torch.no_grad()
def bip_repo(weights: Sequence[Tensor], q: list[Tensor], inverse_gamma: float) -> list[Tensor]:
    """θ ⊙ q - (1/γ) (θ ⊙ q)², whose second term is not the paper's (OPTML-Group/BiP; 1/γ is its `lr2`)."""
    straight_through(weights, q)
    torch._foreach_addcmul_(q, q, q, value=-inverse_gamma)
    return q
