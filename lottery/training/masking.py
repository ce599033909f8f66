"""Masked updates: pruned weights stay at exactly zero under any optimizer.

Masks act through the optimizer step (design, section 5): gradients are masked before clipping and stepping, so that no
momentum, moment, decay or clipping norm ever sees a pruned entry, and weights are zeroed again after the step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lottery.ticket import Mask


class MaskedStep:
    """One optimizer step under a mask. Masks have the device, type and memory format of the parameters."""

    def __init__(self, network: nn.Module, mask: Mapping[str, Tensor], clip_norm: float | None = None) -> None:
        """Zero the network's pruned entries and store the masks. Full masks are skipped, so they cost nothing."""
        named = dict(network.named_parameters())
        self.all_parameters = [p for p in named.values() if p.requires_grad]
        self.clip_norm = clip_norm
        self.weights: list[Tensor] = []
        self.masks: list[Tensor] = []
        for name, kept in mask.items():
            if bool(kept.all()):
                continue
            parameter = named[name]
            self.weights.append(parameter)
            self.masks.append(torch.empty_like(parameter).copy_(kept))
        self.zero_()

    @torch.no_grad()
    def zero_(self) -> None:
        """Set pruned entries to +0.0, also inf and nan, which a product would keep."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.masked_fill_(mask == 0, 0.0)

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """Mask the gradients, clip, step, mask the weights, and drop the gradients."""
        self.mask_gradients_()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.all_parameters, self.clip_norm)
        optimizer.step()
        self.mask_weights_()
        optimizer.zero_grad(set_to_none=True)

    def mask_gradients_(self) -> None:
        """Multiply the gradients by the masks. A frozen weight, or one not used in the forward pass, has none."""
        used = [(w.grad, mask) for w, mask in zip(self.weights, self.masks, strict=True) if w.grad is not None]
        if used:
            torch._foreach_mul_([grad for grad, _ in used], [mask for _, mask in used])

    @torch.no_grad()
    def mask_weights_(self) -> None:
        """Multiply the weights by the masks."""
        if self.weights:
            torch._foreach_mul_(self.weights, self.masks)


def mask_optimizer_state(state: dict[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    """Return the optimizer state (`PARAMETER/SLOT` tensors) with the slots of pruned entries set to zero."""
    masked = {}
    for key, value in state.items():
        name = key.rpartition("/")[0]
        masked[key] = torch.where(mask[name], value, 0.0) if name in mask and value.dim() else value
    return masked
