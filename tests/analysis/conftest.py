"""Run folders as a study leaves them (design, 4.2), written through plain JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Row = dict[str, Any]

# LeNet-300-100: how many weights each layer has, and the rate at which it is pruned (Frankle & Carbin 2019, fig. 2).
SIZES = {"layers.0.weight": 235_200, "layers.1.weight": 30_000, "output.weight": 1_000}
RATES = {"layers.0.weight": 0.2, "layers.1.weight": 0.2, "output.weight": 0.1}

CONFIG: dict[str, Any] = {
    "name": "lth_lenet",
    "seed": 0,
    "seeds": {"init": 0, "order": 0, "mask": 0, "split": 0},
    "data": {"_target_": "lottery.data.sources.mnist", "name": "mnist", "limit": None},
    "model": {"_target_": "lottery.models.mlp.lenet_300_100", "init": "glorot_normal"},
    "method": {"_target_": "lottery.methods.imp.IMP", "rounds": 3},
    "optim": {"name": "adam", "lr": 0.0012},
    "rewind": {"to": "init", "weights": "rewind", "schedule": "rewind"},
    "controls": {"reinit": 3, "random": 0, "shuffle": 0},
    "paths": {"runs": "runs"},
}


def make_row(round: int, control: str | None = None, copy: int = 0, **changes: Any) -> Row:
    """A line of rounds.jsonl with all its keys."""
    layers = {name: (1 - RATES[name]) ** round for name in SIZES}
    kept = sum(SIZES[name] * density for name, density in layers.items())
    density = kept / sum(SIZES.values())
    row = {
        "round": round,
        "control": control,
        "copy": copy,
        "density": density,
        "density_weights": density,
        "kept": int(kept),
        "prunable": sum(SIZES.values()),
        "layer_density": layers,
        "collapsed_layers": [],
        "step_rewind": 0,
        "steps": 50_000,
        "train_loss": 0.001,
        "train_accuracy": 1.0,
        "val_loss": 0.07,
        "val_accuracy": 0.98,
        "test_loss": 0.07,
        "test_accuracy": 0.98 + 0.001 * round,
        "early_stop_step": 6_000 - 500 * round,
        "early_stop_test_accuracy": 0.979,
        "seconds": 60.0,
        "cached": False,
        "mask_digest": None,  # whatever masks there are
        "weights_digest": "1" * 64,
    }
    return row | changes


@pytest.fixture
def row() -> Callable[..., Row]:
    return make_row


@pytest.fixture
def config() -> dict[str, Any]:
    return CONFIG


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function of (name, rows, changed top-level keys of the configuration) that writes a run folder."""

    def make(name: str, rows: list[Row], **config: Any) -> Path:
        run = tmp_path / name
        (run / "figures").mkdir(parents=True)
        # JSON is YAML
        (run / "config.yaml").write_text(json.dumps(CONFIG | config))
        (run / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return run

    return make
