"""Pruning 25 million weights globally, and the snapshot of their mask: seconds on one core, and bytes.

python benchmarks/masks.py [--weights 25000000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from lottery.pruning.prune import prune
from lottery.ticket import Mask


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Minimum, median and maximum seconds."""
    seconds = []
    for _ in range(repeats):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return min(seconds), statistics.median(seconds), max(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    layers = 50
    shapes = {f"layer{i}.weight": torch.Size([arguments.weights // layers]) for i in range(layers)}
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    full = Mask.ones(shapes)
    mask = prune(full, scores, 0.8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        rows = {
            "prune globally to 20 %": timed(lambda: prune(full, scores, 0.8), arguments.repeats),
            "write the snapshot": timed(lambda: mask.save(path, round=1, study="-", parent=None), arguments.repeats),
            "read and verify it": timed(lambda: Mask.load(path), arguments.repeats),
        }
        size = path.stat().st_size
    table = Table(title=f"{full.size:,} weights, one thread, n = {arguments.repeats}")
    for column in ("what", "min s", "median s", "max s"):
        table.add_column(column, justify="right")
    for what, (low, median, high) in rows.items():
        table.add_row(what, f"{low:.3f}", f"{median:.3f}", f"{high:.3f}")
    Console().print(table)
    print(f"snapshot: {size:,} bytes, {8 * size / full.size:.4f} bits a weight")


if __name__ == "__main__":
    main()
