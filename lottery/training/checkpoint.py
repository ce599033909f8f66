"""The state of a training at a step boundary, as one safetensors file: atomic, complete, and without pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lottery.errors import LotteryError
from lottery.files import replacing
from lottery.state import State, copied, reading, state_digest
from lottery.training.module import MaskedTraining, Progress, snapshot
from lottery.training.optim import optimizer_state

FORMAT = "lottery-checkpoint/2"


def save_checkpoint(module: MaskedTraining, path: Path) -> None:
    """Network, optimizer, early-stop weights and everything measured so far. Replaces `path` in one rename.

    The file carries a digest of all this: a training must not go on from a damaged one, which nobody would notice.
    Data order, augmentation and dropout are functions of the seeds and the step, so the step is their state.
    """
    module.progress.beside = module.beside()
    state = snapshot(module.network), optimizer_state(module.optimizer, module.network), module.progress
    tensors, facts = packed(*state)
    text = json.dumps(facts)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "progress": text, "digest": _digest(tensors, text)})


def packed(network: State, optimizer: State, progress: Progress) -> tuple[State, dict[str, Any]]:
    """The state of a training as tensors (private copies) and JSON values."""
    tensors = {f"network/{name}": value for name, value in network.items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizer.items()}
    tensors |= {f"best/{name}": value for name, value in (progress.best_state or {}).items()}
    tensors |= {f"beside/{name}": value for name, value in progress.beside.items()}
    tensors["progress/losses"] = progress.losses
    facts = {
        "step": progress.step,
        "curve": progress.curve,
        "best_loss": progress.best_loss if progress.best_step is not None else None,
        "best_step": progress.best_step,
        "seconds": progress.seconds,
        "kept": progress.kept,
        "log": progress.log,
    }
    return copied(tensors), facts


def load_checkpoint(path: Path) -> tuple[State, State, Progress]:
    """Network state, optimizer state and progress. Raises LotteryError for a file that is not whole."""
    with reading(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    if metadata.get("format") != FORMAT:
        raise LotteryError(f"{path}: its format is {metadata.get('format')!r}, expected {FORMAT!r}")
    if metadata.get("digest") != _digest(tensors, metadata.get("progress", "")):
        raise LotteryError(f"{path}: damaged, its content does not match its digest")
    return unpacked(tensors, json.loads(metadata["progress"]))


def unpacked(tensors: State, facts: dict[str, Any]) -> tuple[State, State, Progress]:
    """Network state, optimizer state and progress, as `packed`; tensors of other groups are passed over."""
    groups: dict[str, State] = {}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    progress = Progress(
        step=facts["step"],
        curve=facts["curve"],
        best_loss=float("inf") if facts["best_loss"] is None else facts["best_loss"],
        best_step=facts["best_step"],
        best_state=groups.get("best"),
        seconds=facts["seconds"],
        losses=groups["progress"]["losses"],
        kept=facts["kept"],
        beside=groups.get("beside", {}),
        log=facts.get("log", []),  # not in those of version 0.1
    )
    return groups["network"], groups.get("optimizer", {}), progress


def _digest(tensors: State, progress: str) -> str:
    return hashlib.sha256(f"{state_digest(tensors)} {progress}".encode()).hexdigest()
