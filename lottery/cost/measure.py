"""Costs that are measured: times of networks, side by side, and energy.

Each repeat runs all networks in turn, and times are compared within a repeat only, so that other work on the machine
slows all networks alike. Times of different runs are never compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARM_UP = 1  # repeats that are run first and not counted
POWERCAP = Path("/sys/class/powercap")


def paired(works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each piece of work in each of `repeats` repeats; every repeat runs all of them in turn."""
    turns = [{name: timed(work, device) for name, work in works.items()} for _ in range(WARM_UP + repeats)]
    return {name: [turn[name] for turn in turns[WARM_UP:]] for name in works}


def speed_up(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return how many times as fast `fast` is: the median over the repeats of the ratio slow / fast in each."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run, including the device's own work."""
    finish(device)
    started = perf_counter()
    work()
    finish(device)
    return perf_counter() - started


def finish(device: torch.device) -> None:
    """Wait for the device to finish its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def inference(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """Return a function that runs a forward pass in evaluation mode."""
    network.eval()
    return torch.no_grad()(lambda: network(images))


def training_step(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a training step: forward, backward, and SGD with momentum 0.9 and rate 0, which leaves the weights."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def run() -> None:
        network.train()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def joules(work: Callable[[], object], device: torch.device, root: Path = POWERCAP) -> float | None:
    """Return the joules that the processors (and the GPU, on a CUDA device) take in `work`; None if none can be read.

    The whole machine's processors are counted, whoever uses them: by RAPL on Linux, whose counters usually only root
    can read, and by NVML on NVIDIA GPUs.
    """
    counters, gpu = packages(root), _nvml(device)
    if not counters and gpu is None:
        return None
    before = {path: _read(path) for path in counters}
    start = gpu() if gpu else 0.0
    work()
    finish(device)
    total = sum(_spent(path, before[path], _read(path)) for path in counters) / 1e6
    return total + (gpu() - start if gpu else 0.0)


def packages(root: Path) -> list[Path]:
    """Return the readable counters of whole processor packages, in microjoules."""
    found = []
    for path in sorted(root.glob("intel-rapl:[0-9]*/energy_uj")):
        if path.parent.name.count(":") == 1:  # names with more colons are parts of a package
            try:
                _read(path)
                name = path.with_name("name").read_text(encoding="utf-8")
            except (OSError, ValueError):
                continue
            if name.startswith("package"):  # psys is the whole board, packages included
                found.append(path)
    return found


def _read(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))


def _spent(path: Path, before: int, after: int) -> int:
    if after >= before:
        return after - before
    return after - before + _read(path.with_name("max_energy_range_uj"))  # the counter wrapped around


def _nvml(device: torch.device) -> Callable[[], float] | None:
    """Return a function that reads the joules taken by the GPU since its driver was loaded; None where NVML cannot."""
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
