"""Run folders for tests of the report: as a study leaves them (design, 4.2), with masks, controls and curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lottery.ticket import Mask

SHAPES = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "output.weight": (10, 100)}  # LeNet-300-100
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>\"&'"

CONFIG: dict[str, Any] = {
    "name": "lth_lenet",
    "data": {"_target_": "lottery.data.sources.mnist", "name": "mnist", "limit": None},
    "model": {"_target_": "lottery.models.mlp.lenet_300_100"},
    "method": {"_target_": "lottery.methods.imp.IMP"},
    "optim": {"name": "adam", "lr": 0.0012},
    "rewind": {"to": "init", "weights": "rewind", "schedule": "rewind"},
    "controls": {"reinit": 1},
    "paths": {"runs": "runs"},
}
ROW: dict[str, Any] = {
    "collapsed_layers": [],
    "prunable": 266_200,
    "step_rewind": 0,
    "steps": 50_000,
    "test_loss": 0.07,
    "val_accuracy": None,
    "seconds": 60.0,
    "cached": False,
    "density": 1.0,
    "density_weights": 1.0,
    "kept": 266_200,
    "layer_density": {},
    "test_accuracy": None,
    "mask_digest": None,
}


def masked(seed: int, density: float) -> Mask:
    """A random mask; of one seed, what it keeps is kept at every higher density too."""
    generator = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()})


def make_row(round: int, control: str | None = None, copy: int = 0, **changes: Any) -> dict[str, Any]:
    """A line of rounds.jsonl, of a ticket whose early-stop step is 6,000 - 100 * round."""
    return ROW | {"round": round, "control": control, "copy": copy, "early_stop_step": 6_000 - 100 * round} | changes


def write_run(run: Path, rows: list[dict[str, Any]], seed: int = 0, **config: Any) -> Path:
    """A run folder with these rows, without masks."""
    run.mkdir(parents=True)
    seeds = dict.fromkeys(("init", "order", "mask", "split"), seed)
    (run / "config.yaml").write_text(json.dumps(CONFIG | {"seed": seed, "seeds": seeds} | config))  # JSON is YAML
    (run / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "study.log").write_text("2026-01-01 00:00:00,000  done: all of it\n")
    return run


def write_study(folder: Path, seed: int, rounds: int = 3, copies: int = 1, **config: Any) -> Path:
    """A study of `rounds` rounds after the dense one, with `copies` of a control; round k has 0.8 ** k of the weights
    and a test accuracy of 0.98 + 0.001 * seed - 0.002 * k.
    """
    masks = {k: masked(seed, 0.8**k) for k in range(rounds + 1)}
    rows = []
    for k, mask in masks.items():
        sizes = {"density": mask.density, "density_weights": mask.density, "kept": mask.kept}
        sizes |= {"layer_density": mask.layer_density, "mask_digest": mask.digest}
        rows.append(make_row(k, test_accuracy=0.98 + 0.001 * seed - 0.002 * k, **sizes))
        rows += [make_row(k, "reinit", copy, test_accuracy=0.9, **sizes) for copy in range(copies if k else 0)]
    run = write_run(folder / f"{seed:012x}", rows, seed, **config)
    (run / "masks").mkdir()
    for k, mask in masks.items():
        mask.save(run / "masks" / f"round_{k:03d}.safetensors", round=k, study=run.name, parent=None)
    head = "round,control,copy,step,split,loss,accuracy\n"
    steps = [(k, step) for k in masks for step in range(100, 1000, 50)]
    lines = (f"{k},,0,{step},validation,{1 / step},{0.9 + step / 1e4}\n" for k, step in steps)
    (run / "curves.csv").write_text(head + "".join(lines))
    return run
