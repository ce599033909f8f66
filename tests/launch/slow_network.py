"""A network and a probe that are slow for as long as a test wants, at no cost of CPU: faults need time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from time import sleep
from typing import Any

from torch import Tensor, nn

from lottery.models.mlp import mlp as quick_mlp


class Slow(nn.Module):
    """Computes nothing; sleeps in every training step, for the seconds that the file $SLOW says, while it exists."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and images.device.type != "meta":
            with suppress(FileNotFoundError):
                sleep(float(Path(os.environ.get("SLOW", "/nowhere")).read_text()))
        return images


def mlp(*, shape: tuple[int, ...], classes: int, hidden: Sequence[int]) -> nn.Sequential:
    """`model=mlp`, slowly."""
    network = quick_mlp(shape=shape, classes=classes, hidden=hidden)
    network.add_module("slow", Slow())
    return network


def probe(round: Any, previous: Any, lab: Any) -> dict[str, float]:
    """Ends while the folder $SLOW.probing is not there. In it, it notes which run of the job has come to it."""
    folder = Path(os.environ.get("SLOW", "/nowhere") + ".probing")
    for _ in lab.watched(repeat(None)):
        if not folder.exists():
            break
        (folder / os.environ.get("SLURM_RESTART_COUNT", "0")).touch()
        sleep(0.1)
    return {}
