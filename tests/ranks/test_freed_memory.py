"""Freed memory stays with the process: the system clears no page a second time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import sys
import torch
from lottery.ranks.alone import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(22):
    torch.zeros(16, 1 << 20)  # 64 MiB, freed at once
    if step == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """The pages that twenty steps after two others ask the system for."""
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep what is freed")
def test_a_block_that_was_freed_is_used_again() -> None:
    assert faults("kept") * 10 < faults("returned")
