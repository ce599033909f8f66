"""Run folders to one table: seconds, memory and files opened, for many folders that are made here.

python benchmarks/load_runs.py [--runs 1000] [--rounds 20] [--repeats 3]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from lottery.compose import composed
from lottery.record.status import Status

# ResNet-20's prunable layers, which is what makes a row long.
BLOCKS = [f"stages.{stage}.{block}.conv{conv}.weight" for stage in range(3) for block in range(3) for conv in (1, 2)]
LAYERS = ["conv1.weight", *BLOCKS, "stages.1.0.shortcut.conv.weight", "stages.2.0.shortcut.conv.weight", "fc.weight"]

# What each repeat runs, in a process of its own: its peak memory is that of nothing else.
LOAD = """
import json, resource, sys
from time import perf_counter
from lottery.record.table import load_runs
opened = []
sys.addaudithook(lambda event, given: opened.append(given[0]) if event == "open" else None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = perf_counter()
table = load_runs(sys.argv[1])
seconds = perf_counter() - started
files = sum(str(name).startswith(sys.argv[1]) for name in opened)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, peak / 1024, before / 1024, files, *table.shape]))
"""


def config(seed: int) -> str:
    """config.yaml of a study, as one writes it."""
    return OmegaConf.to_yaml(composed(["+exp=imp_rewind", f"seed={seed}"]), resolve=True)


def row(round: int, seed: int) -> dict[str, Any]:
    """A line of rounds.jsonl, of the length that real ones have (ResNet-20, the default probes: about 3 kB)."""
    draw = random.Random(1000 * seed + round)
    layers = {
        f"probe/{name}_layers": {layer: draw.random() for layer in LAYERS} for name in ("density_effective", "pq")
    }
    scores = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
    probes = ("mask_iou_previous", "mask_iou_chance", "l2_from_start", "angle_from_start", "sign_changes")
    return {
        "round": round, "control": None, "copy": 0, "density": 0.8**round, "density_weights": 0.8**round,
        "kept": int(270_896 * 0.8**round), "prunable": 270_896,
        "layer_density": {layer: draw.random() for layer in LAYERS}, "collapsed_layers": [],
        "step_rewind": 500, "steps": 10_000, **{name: draw.random() for name in scores},
        "early_stop_step": draw.randrange(10_000), "early_stop_test_accuracy": draw.random(),
        "seconds": 60.0, "cached": False, "mask_digest": draw.randbytes(32).hex(),
        "weights_digest": draw.randbytes(32).hex(), **layers, **{f"probe/{name}": draw.random() for name in probes},
    }  # fmt: skip


def make(folder: Path, runs: int, rounds: int) -> None:
    """Run folders as studies leave them, but for masks and figures, which are not read."""
    first = config(0)
    status = json.dumps(asdict(Status(state="done")))
    for seed in range(runs):
        run = folder / "imp_rewind" / hashlib.sha256(str(seed).encode()).hexdigest()[:12]
        run.mkdir(parents=True)
        seeds = {f"{name}: 0\n": f"{name}: {seed}\n" for name in ("seed", "init", "order", "mask", "split")}
        text = first
        for old, new in seeds.items():
            text = text.replace(old, new)
        (run / "config.yaml").write_text(text, encoding="utf-8")
        (run / "status.json").write_text(status, encoding="utf-8")
        (run / "rounds.jsonl").write_text(
            "".join(json.dumps(row(k, seed)) + "\n" for k in range(rounds)), encoding="utf-8"
        )


def load(folder: Path) -> list[float]:
    """Seconds, peak MiB, MiB before, files opened, rows and columns of one load."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], check=True, capture_output=True, encoding="utf-8", errors="replace"
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        make(folder, arguments.runs, arguments.rounds)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        loads = [load(folder) for _ in range(arguments.repeats)]
    seconds, peaks, before, files, rows, columns = zip(*loads, strict=True)
    table = Table(title=f"{arguments.runs:,} run folders, {rows[0]:,} rows, {columns[0]} columns, {size / 1e6:.0f} MB")
    for column in ("what", "min", "median", "max"):
        table.add_column(column, justify="right")
    for what, values in {"seconds": seconds, "peak memory, MiB": peaks, "of it before loading": before}.items():
        table.add_row(what, *(f"{each:.2f}" for each in (min(values), statistics.median(values), max(values))))
    Console().print(table)
    print(f"{files[0]:,} files opened, {files[0] / arguments.runs:.2f} a run folder; n = {arguments.repeats}")


if __name__ == "__main__":
    main()
