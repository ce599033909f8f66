"""The state of a training at a step boundary, as one safetensors file: written atomically, without pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lottery.errors import LotteryError
from lottery.files import parse_json, replacing
from lottery.state import State, copied, snapshot, state_digest
from lottery.tensor_files import read_tensors
from lottery.training.evaluate import Tally
from lottery.training.module import MaskedTraining
from lottery.training.optim import optimizer_state
from lottery.training.progress import Progress

FORMAT = "lottery-checkpoint/2"
AS_THEY_ARE = ("step", "curve", "best_step", "seconds", "kept", "log")  # fields of Progress that are JSON values


def save_checkpoint(module: MaskedTraining, path: Path, stage: str) -> None:
    """Save network, optimizer, early-stop weights and all measurements so far. Replaces `path` in one rename.

    `stage` is the key of the only stage that can use the file. A digest of the content is saved too, since a damaged
    file would go unnoticed. Data order, augmentation and dropout are functions of seeds and step.
    """
    module.progress.beside = module.beside()
    state = snapshot(module.network), optimizer_state(module.optimizer, module.network), module.progress
    tensors, facts = packed(*state)
    text = json.dumps({"stage": stage, **facts})
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "progress": text, "digest": _digest(tensors, text)})


def packed(network: State, optimizer: State, progress: Progress) -> tuple[State, dict[str, Any]]:
    """Convert the state of a training to tensors (private copies) and JSON values."""
    groups = {"network": network, "optimizer": optimizer, "best": progress.best_state or {}, "beside": progress.beside}
    groups["progress"] = {"losses": progress.losses}
    tensors = {f"{group}/{name}": value for group, state in groups.items() for name, value in state.items()}
    facts: dict[str, Any] = {name: getattr(progress, name) for name in AS_THEY_ARE}
    facts["best_loss"] = progress.best_loss if progress.best_step is not None else None
    facts["tallies"] = {name: asdict(tally) for name, tally in progress.tallies.items()}
    return copied(tensors), facts


def load_checkpoint(path: Path, stage: str) -> tuple[State, State, Progress]:
    """Read network state, optimizer state and progress. LotteryError for a damaged file, or another stage's."""
    tensors, metadata = read_tensors(path, "pt")
    if metadata.get("format") != FORMAT:
        raise LotteryError(f"{path}: its format is {metadata.get('format')!r}, expected {FORMAT!r}")
    if metadata.get("digest") != _digest(tensors, metadata.get("progress", "")):
        raise LotteryError(f"{path}: damaged, its content does not match its digest")
    facts = parse_json(metadata["progress"], path)
    if facts.get("stage") != stage:
        whose = f"of another stage ({facts['stage'][:12]})" if "stage" in facts else "does not say of which stage it is"
        raise LotteryError(f"{path}: {whose}")
    return unpacked(tensors, facts)


def unpacked(tensors: State, facts: dict[str, Any]) -> tuple[State, State, Progress]:
    """Convert the result of `packed` to network state, optimizer state and progress; other groups are ignored."""
    groups: dict[str, State] = {}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    facts = {"tallies": {}, "log": []} | facts  # absent in version 0.1
    progress = Progress(
        **{name: facts[name] for name in AS_THEY_ARE},
        best_loss=float("inf") if facts["best_loss"] is None else facts["best_loss"],
        best_state=groups.get("best"),
        losses=groups["progress"]["losses"],
        tallies={name: Tally(**sums) for name, sums in facts["tallies"].items()},
        beside=groups.get("beside", {}),
    )
    return groups["network"], groups.get("optimizer", {}), progress


def _digest(tensors: State, progress: str) -> str:
    return hashlib.sha256(f"{state_digest(tensors)} {progress}".encode()).hexdigest()
