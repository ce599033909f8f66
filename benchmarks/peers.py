"""OpenLTH's job beside ours in one run: LeNet-300-100 on MNIST, batches of 128, levels 0 to 3.

python benchmarks/peers.py --openlth CHECKOUT [--epochs 2] [--pairs 3] [--workers 1]

CHECKOUT is a clone of facebookresearch/open_lth. A copy of it is run, with two lines changed so that it starts with
today's torch and numpy (`PATCHES`). Both get the same images from `paths.data`, one thread a process, and evaluate the
test set at every epoch. Wall time is of the whole command, with its imports. Ours also records masks, curves, figures
and a report, and can be killed anywhere.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from safetensors.numpy import load_file

from lottery.errors import LotteryError, reported

LEVELS = 3
# file: (text, replacement)
PATCHES = {
    "models/base.py": ("class Model(abc.ABC, torch.nn.Module)", "class Model(torch.nn.Module, abc.ABC)"),
    "training/optimizers.py": ("np.product(", "np.prod("),
}


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--openlth", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    data = Path(os.environ.get("LOTTERY_DATA", "data")).resolve()
    theirs = ["open_lth.py", "lottery", "--default_hparams=mnist_lenet_300_100", f"--levels={LEVELS}"]
    theirs += [f"--training_steps={asked.epochs}ep", "--num_workers=0"]
    ours = ["-m", "lottery", "+exp=openlth_lenet", f"method.rounds={LEVELS}", f"train.steps={asked.epochs}ep"]
    ours += ["tracker=none", f"trainer.workers={asked.workers}"]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        checkout, home = patched(asked.openlth, Path(folder) / "open_lth"), Path(folder) / "home"
        write_images(data / "mnist.safetensors", home / "open_lth_datasets" / "mnist" / "MNIST" / "raw")
        for number in range(asked.pairs):
            shutil.rmtree(home / "open_lth_data", ignore_errors=True)  # else it finds its results
            their_times = timed(theirs, checkout, HOME=str(home))
            our_times = timed([*ours, f"paths.runs={folder}/{number}"], Path.cwd(), LOTTERY_DATA=str(data))
            found.append((our_times, their_times))
    print(f"LeNet-300-100, MNIST, levels 0 to {LEVELS}, {asked.epochs} epochs each, n = {asked.pairs}")
    for which, name in enumerate(("wall", "CPU")):
        ratios = ", ".join(f"{ratio:.2f}" for ratio in sorted(one[which] / other[which] for one, other in found))
        one, other = (median(each[who][which] for each in found) for who in (0, 1))
        print(f"  {name:4} seconds: ours {one:.1f}, OpenLTH {other:.1f}; ratios {ratios}")
    return 0


def patched(checkout: Path, copy: Path) -> Path:
    """Copy the checkout, and change its lines of PATCHES. Raises LotteryError where it is another one."""
    if not (checkout / "open_lth.py").exists():
        raise LotteryError(f"--openlth: {checkout} has no open_lth.py, expected a clone of facebookresearch/open_lth")
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    for name, (text, replacement) in PATCHES.items():
        found = (copy / name).read_text(encoding="utf-8")
        (copy / name).write_text(found.replace(text, replacement), encoding="utf-8")
    return copy


def write_images(source: Path, folder: Path) -> None:
    """Write MNIST in the format that torchvision reads. Raises LotteryError where the data set is not there."""
    if not source.exists():
        raise LotteryError(f"{source}: not there; `python -m lottery +exp=openlth_lenet` downloads it")
    arrays = load_file(source)
    folder.mkdir(parents=True)
    for part, name in (("train", "train"), ("test", "t10k")):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"].astype("uint8")
        header = struct.pack(">4i", 2051, len(images), 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + labels.tobytes())


def timed(command: list[str], cwd: Path, **env: str) -> tuple[float, float]:
    """Run Python with these arguments; return its wall and CPU seconds, children included."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise LotteryError(f"{' '.join(command[:3])} ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, cpu


if __name__ == "__main__":
    sys.exit(reported(main))
