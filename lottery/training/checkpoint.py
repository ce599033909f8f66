"""The state of a training at a step boundary, as one safetensors file: atomic, complete, and without pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lottery.errors import LotteryError
from lottery.state import State, copied, replacing
from lottery.training.module import MaskedTraining, Progress, snapshot
from lottery.training.optim import optimizer_state

FORMAT = "lottery-checkpoint/1"


def save_checkpoint(module: MaskedTraining, path: Path) -> None:
    """Network, optimizer, early-stop weights and everything measured so far. Replaces `path` in one rename.

    Data order, augmentation and dropout are functions of the seeds and the step, so the step is their state.
    """
    progress = module.progress
    tensors = {f"network/{name}": value for name, value in snapshot(module.network).items()}
    tensors |= {f"optimizer/{k}": v for k, v in optimizer_state(module.optimizer, module.network).items()}
    tensors |= {f"best/{name}": value for name, value in (progress.best_state or {}).items()}
    facts = {
        "step": progress.step,
        "curve": progress.curve,
        "best_loss": progress.best_loss if progress.best_step is not None else None,
        "best_step": progress.best_step,
        "seconds": progress.seconds,
    }
    with replacing(path) as temporary:
        save_file(copied(tensors), temporary, {"format": FORMAT, "progress": json.dumps(facts)})


def load_checkpoint(path: Path) -> tuple[State, State, Progress]:
    """Network state, optimizer state and progress. Raises LotteryError for a file that is not whole."""
    groups: dict[str, dict[str, torch.Tensor]] = {"network": {}, "optimizer": {}, "best": {}}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise LotteryError(f"{path}: format {metadata.get('format')!r}, expected {FORMAT!r}")
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
        facts = json.loads(metadata["progress"])
    except LotteryError:
        raise
    except Exception as error:
        raise LotteryError(f"{path}: not a whole checkpoint ({error})") from error
    best_loss = float("inf") if facts["best_loss"] is None else facts["best_loss"]
    progress = Progress(
        facts["step"], facts["curve"], best_loss, facts["best_step"], groups["best"] or None, facts["seconds"]
    )
    return groups["network"], groups["optimizer"], progress
