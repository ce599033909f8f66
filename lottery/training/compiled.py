"""A network's forward pass by torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lottery.errors import LotteryError, cause

SHAPES = 64  # how many networks and shapes of batches may be compiled in a process; torch's own limit is 8


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the network's forward pass, compiled at its first call for each shape. The network itself stays as it is.

    Networks of one architecture share their code, so the rounds of a study compile once. Each shape has its own code:
    code for any shape could make the bits depend on which batches a process saw first. LotteryError, in one line, where
    torch cannot compile the whole network.
    """
    torch._dynamo.config.cache_size_limit = SHAPES
    fast = torch.compile(lambda images: network(images), fullgraph=True, dynamic=False)

    def call(images: Tensor) -> Tensor:
        try:
            return fast(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise LotteryError(
                f"train.compile: torch cannot compile {type(network).__name__} here ({reason(error)}); "
                "train.compile=false trains without"
            ) from error

    return call


def reason(error: BaseException) -> str:
    """Return the first error that torch wraps in this one, in one line."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    return cause(error)
