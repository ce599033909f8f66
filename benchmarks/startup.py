"""The start of each command, and of a run up to its first training step: CPU time as a multiple of `import torch`.

python benchmarks/startup.py [--repeats 5]

Minima of the CPU seconds (user and system) of new processes, which take turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
LOTTERY = ["-m", "lottery"]
RUN = ["+exp=imp_rewind", "trainer.threads=1"]
SHORT = ["+exp=imp_rewind", "tracker=none", "train.steps=20it", "rewind.to=10it", "method.rounds=1"]
STEP = """
import torch
weight = torch.nn.Parameter(torch.zeros(3))
optimizer = torch.optim.SGD([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
"""
FIRST_STEP = """
import os, sys
from lottery.__main__ import main
from lottery.methods.imp import IMP
call = IMP.__call__
def until_first_step(self, lab):
    from lottery.training.module import MaskedTraining
    update = MaskedTraining.update
    MaskedTraining.update = lambda training, step: (update(training, step), os._exit(0))
    return call(self, lab)
IMP.__call__ = until_first_step
sys.exit(main(sys.argv[1:]))
"""
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "one step of torch.optim.SGD, and nothing else": ["-c", STEP],
    "--help": [*LOTTERY, "--help"],
    "a wrong option": [*LOTTERY, "+exp=imp_rewind", "method.rat=1"],
    "status": [*LOTTERY, "status"],
    "store ls": [*LOTTERY, "store", "ls"],
    "a run up to its first step, without W&B": ["-c", FIRST_STEP, *RUN, "tracker=none", "paths.runs=new"],
    "the same, recorded by W&B offline": ["-c", FIRST_STEP, *RUN, "paths.runs=new"],
    "a finished study": [*LOTTERY, *SHORT],
}


def cpu_seconds(arguments: list[str], folder: Path) -> float:
    """Return the CPU seconds of a new Python process and its children, in a folder that holds one finished study."""
    shutil.rmtree(folder / "new", ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):
        sys.exit(done.stderr.decode(errors="replace"))
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arguments in COMMANDS.values():  # runs the study, and fills the caches of data and compiled modules
            cpu_seconds(arguments, folder)
        turns = [{what: cpu_seconds(COMMANDS[what], folder) for what in COMMANDS} for _ in range(repeats)]
    least = {what: min(turn[what] for turn in turns) for what in COMMANDS}
    table = Table(title=f"CPU time of a new process, one thread, minima of n = {repeats}")
    for column in ("what", "seconds", "of `import torch`"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, seconds in least.items():
        table.add_row(what, f"{seconds:.2f}", f"{seconds / least['import torch']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
