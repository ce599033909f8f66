"""Control masks: as many weights as the ticket's in each layer, at other places."""

from __future__ import annotations

import torch

from lottery.ticket import Mask


def shuffled(mask: Mask, seed: int, filters: bool = False) -> Mask:
    """`mask` with the positions permuted inside each layer, uniformly; every layer keeps exactly as many weights.

    With `filters`, whose masks keep or prune whole filters, these are permuted.

    This is at once the "random sparsity" control of Frankle & Carbin 2019 (App. E: a fresh mask with the same
    per-layer counts, placed uniformly) and the "shuffle" of Frankle et al. 2021: the permutation of a mask is a
    uniform draw among the masks of the same counts, whatever mask it starts from. For two independent controls take
    two seeds.
    """
    generator = torch.Generator().manual_seed(seed)
    permuted = _permuted_filters if filters else _permuted
    return Mask({name: permuted(kept, generator) for name, kept in mask.items()})


def _permuted(kept: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    order = torch.randperm(kept.numel(), generator=generator)
    return kept.view(-1)[order].view(kept.shape)


def _permuted_filters(kept: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return kept[torch.randperm(len(kept), generator=generator)]
