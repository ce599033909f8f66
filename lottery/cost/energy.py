"""The energy that a piece of work takes, where the machine says: RAPL on Linux, NVML on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lottery.cost.timing import finish

POWERCAP = Path("/sys/class/powercap")


def joules(work: Callable[[], object], device: torch.device, root: Path = POWERCAP) -> float | None:
    """Joules that the processor packages, and the GPU where it works, take during `work`; None where none can be read.

    It is what the whole machine's processors take, whoever works on them. RAPL counters are usually readable by root
    alone.
    """
    counters = packages(root)
    gpu = _nvml(device)
    if not counters and gpu is None:
        return None
    before = {path: _read(path) for path in counters}
    start = gpu() if gpu else 0.0
    work()
    finish(device)
    total = sum(_spent(path, before[path], _read(path)) for path in counters) / 1e6
    return total + (gpu() - start if gpu else 0.0)


def packages(root: Path = POWERCAP) -> list[Path]:
    """The counters of whole processor packages that can be read, in microjoules."""
    found = []
    for path in sorted(root.glob("intel-rapl:[0-9]*/energy_uj")):
        if path.parent.name.count(":") == 1:  # the others are parts of these
            try:
                _read(path)
                name = path.with_name("name").read_text()
            except (OSError, ValueError):
                continue
            if name.startswith("package"):  # not psys: the whole board, packages and all
                found.append(path)
    return found


def _read(path: Path) -> int:
    return int(path.read_text())


def _spent(path: Path, before: int, after: int) -> int:
    if after >= before:
        return after - before
    return after - before + _read(path.with_name("max_energy_range_uj"))  # the counter began anew


def _nvml(device: torch.device) -> Callable[[], float] | None:
    """Reads the joules that a GPU has taken since its driver was loaded; None where NVML does not say."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no driver, too old a GPU
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
