"""What moves the scores: estimates of ∂loss/∂m from θ, the mask m and q = ∂loss/∂z at z = m ⊙ θ.

Everything comes and goes as parallel lists of tensors, one for each tensor of weights, outside of autograd. Results
are new tensors, or written to `out`, which may be none of the inputs.

    straight_through   q ⊙ θ                        lottery jackpots; BiP without its implicit part
    popup              q ⊙ θ ⊙ sign(s)              edge-popup, which ranks |s|
    bip                (θ - (1/γ) m ⊙ q) ⊙ q        BiP: Zhang et al. 2022, the Hessian of the loss left out
    bip_repo           θ ⊙ q - (1/γ) (θ ⊙ q)²       what BiP's released code computes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def straight_through(
    weights: Sequence[Tensor], q: Sequence[Tensor], out: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """q ⊙ θ: the gradient of the mask's entries, given to the scores as it is. Pruned entries have one too."""
    moves = _copied(q, out)
    torch._foreach_mul_(moves, list(weights))
    return moves


@torch.no_grad()
def popup(
    weights: Sequence[Tensor], q: Sequence[Tensor], scores: Sequence[Tensor], out: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """q ⊙ θ ⊙ sign(s): straight through the ranking of |s|, and by the chain rule through |s|.

    Ramanujan et al. 2020; allenai/hidden-networks takes the absolute value inside autograd, so a negative score moves
    against q ⊙ θ. A score of exactly 0 has no gradient.
    """
    moves = straight_through(weights, q, out)
    torch._foreach_mul_(moves, torch._foreach_sign(list(scores)))
    return moves


@torch.no_grad()
def bip(
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    q: Sequence[Tensor],
    inverse_gamma: float,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """(θ - (1/γ) m ⊙ q) ⊙ q, exact where the loss is linear in z; the smaller 1/γ, the better elsewhere."""
    if inverse_gamma == 0:
        return straight_through(weights, q, out)
    moves = _copied(weights, out)
    torch._foreach_addcmul_(moves, list(masks), list(q), value=-inverse_gamma)
    torch._foreach_mul_(moves, list(q))
    return moves


@torch.no_grad()
def bip_repo(
    weights: Sequence[Tensor], q: Sequence[Tensor], inverse_gamma: float, out: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """θ ⊙ q - (1/γ) (θ ⊙ q)², whose second term is not the paper's (OPTML-Group/BiP; 1/γ is its `lr2`)."""
    moves = straight_through(weights, q, out)
    torch._foreach_addcmul_(moves, moves, moves, value=-inverse_gamma)
    return moves


@torch.no_grad()
def swapped(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """How many entries came in from one mask to the next, as many as went out; int64, no shape, on their device."""
    return torch.stack([_risen(b, a) for b, a in zip(before, after, strict=True)]).sum()


def _risen(before: Tensor, after: Tensor) -> Tensor:
    """How many entries are higher after. On the CPU by numpy, which takes an eighth of the time."""
    if before.is_cpu and before.dtype != torch.bfloat16:
        return torch.tensor(np.count_nonzero(before.numpy() < after.numpy()))
    return torch.count_nonzero(before < after)


def _copied(values: Sequence[Tensor], out: Sequence[Tensor] | None) -> list[Tensor]:
    """The values in tensors that may be written to: those of `out`, or new ones."""
    copies = [torch.empty_like(value) for value in values] if out is None else list(out)
    torch._foreach_copy_(copies, list(values))
    return copies
