"""A study by several workers against the same study by one process: ratios of wall time, in pairs of one run.

python benchmarks/workers.py [--pairs 3] [--workers 2] [override ...]        default: +exp=imp_rewind

"trainings" is the time from the opened run folder to the last row; "process" is the whole command with its imports, its
figures and its report. Memory is the sum over the processes of a study of what each does not share (Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

PROCESSES = 0.2  # seconds between two looks at the memory


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    asked, overrides = parser.parse_known_args()
    overrides = overrides or ["+exp=imp_rewind", "tracker=none"]
    found: dict[int, list[tuple[float, float, float]]] = {1: [], asked.workers: []}
    for _ in range(asked.pairs):
        for workers, times in found.items():
            times.append(measured([*overrides, f"trainer.workers={workers}"]))
    print(f"{' '.join(overrides)}: {asked.workers} workers against 1, n = {asked.pairs}")
    for number, name in enumerate(("trainings", "process", "memory")):
        pairs = zip(found[asked.workers], found[1], strict=True)
        ratios = sorted(some[number] / one[number] for some, one in pairs)
        one, some = (median(each[number] for each in found[workers]) for workers in (1, asked.workers))
        unit = "MiB" if name == "memory" else "s"
        print(f"  {name:9}  {one:7.1f} and {some:7.1f} {unit}: ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    return 0


def measured(overrides: list[str]) -> tuple[float, float, float]:
    """Run a study in a new folder; return the seconds of its trainings and of the process, and the memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        began, most = time.monotonic(), 0.0
        command = [sys.executable, "-m", "lottery", *overrides, f"paths.runs={folder}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            most = max(most, memory(process.pid))
            time.sleep(PROCESSES)
        if process.returncode:
            sys.exit(process.returncode)  # it has said why
        seconds = time.monotonic() - began
        (table,) = Path(folder).glob("*/*/rounds.jsonl")
        return table.stat().st_mtime - (table.parent / "config.yaml").stat().st_mtime, seconds, most


def memory(pid: int) -> float:
    """Return the proportional set size of a process and of its children, in MiB; 0 where it is unknown."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        own = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        others = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        return own / 1024 + sum(memory(int(other)) for other in others)
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
