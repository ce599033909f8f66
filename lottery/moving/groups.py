"""N:M masks: of each M consecutive weights the N largest stay."""

from __future__ import annotations

import torch
from torch import Size, Tensor

from lottery.errors import ConfigError
from lottery.search.rules import NM


def fits(shape: Size, m: int, layout: str) -> bool:
    """Whether a weight [out, in, *kernel] can be divided into groups of m."""
    return (shape[1] if layout == "hardware" else shape.numel()) % m == 0


class Groups:
    """The N:M mask of one weight. Of equal magnitudes the later stays.

    layout: hardware: m consecutive inputs at one position of one filter; flattened: m consecutive entries in the order
    of memory, across kernel positions, as released code of SR-STE has it
    """

    def __init__(self, name: str, shape: Size, n: int, m: int, layout: str) -> None:
        if not fits(shape, m, layout):
            what = f"{shape[1]} inputs" if layout == "hardware" else f"{shape.numel():,} weights"
            expected = f"an M that divides the {what} of {name!r}; or method.ungrouped=dense leaves it dense"
            raise ConfigError.of("method.pattern", f"{n}:{m}", expected)
        self.shape = shape if layout == "hardware" else Size([shape.numel() // m, m])
        self.rule = NM({name: self.shape}, n, m)

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> Tensor:
        """Return the mask of a weight, 0.0 and 1.0, in its shape."""
        values = weight.detach().abs().contiguous().view(self.shape)
        mask = torch.empty_like(values)
        self.rule([values], [mask], 0.0)
        return mask.view(weight.shape)
