"""Peak resident memory of a study, as a process of its own.

python benchmarks/memory.py [override ...]        default: +exp=lth_lenet train.steps=300it method.rounds=2
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile


def main() -> int:
    overrides = sys.argv[1:] or ["+exp=lth_lenet", "train.steps=300it", "method.rounds=2"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lottery", *overrides, f"paths.runs={folder}"]
        if status := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:  # it has said why
            return status
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print(f"{' '.join(overrides)}: peak resident memory of the largest process {peak:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
