"""The cost of a ticket and of the dense network: parameters, multiply-adds, memory, measured times and energy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from statistics import median
from typing import Any

import torch
from torch import nn

from lottery.probes.images import Options
from lottery.pruning.structure import structured
from lottery.ranges import at_least, option, such_that
from lottery.stages.bench import Bench
from lottery.stages.round import Round
from lottery.ticket import Ticket

LOG = logging.getLogger("lottery")
THROUGHPUT_BATCH = 128
LATENCY_RUNS = 20  # forward passes of one image in a repeat: a single one is too short for the clock
ENERGY_SECONDS = 1.0  # of inference while energy is read: counters are renewed every millisecond or so
KWH = 3.6e6  # joules


@dataclass(frozen=True)
class Cost(Options):
    """Cost of the network as it would be deployed (`lab.smaller`); with the prefix `dense_`, of the dense network.

    `cost_parameters`; `cost_macs` (convolutions and linear layers, one image), `cost_macs_all` (attention and other
    products of matrices too; null where one cannot be counted); `cost_memory` (bytes of a training step:
    `lottery.cost.counts`); `cost_step_ms` (a training step at the study's batch), `cost_latency_ms` (inference, batch
    1), `cost_throughput` (images a second, batch 128): medians over `repeats`, ticket and dense network in turn,
    without autocast, on `cost_threads` threads.

    Shares of the dense network's: `cost_parameters_share`, `cost_macs_share`, `cost_memory_share`; and
    `cost_step_speedup`, `cost_latency_speedup`, `cost_throughput_speedup`, medians of the ratios within the repeats.

    `cost_joules` for 1,000 images of inference, null where no counter can be read; `cost_grams_co2e` for them at `grid`
    g CO2e a kWh. Weights that are pruned one by one (`cost_unstructured`) make no dense kernel faster: these figures
    are the dense network's, and the log says so.
    """

    repeats: int = option(5, at_least(1, "a number ≥ 1"))
    grid: float | None = option(
        None, such_that(lambda grid: grid is None or grid > 0, "g CO2e a kWh, a number > 0, or null")
    )

    def __call__(self, round: Round, previous: Round | None, lab: Bench) -> dict[str, Any]:
        ticket = round.ticket
        inputs = {
            "version": self.version(lab),
            "state": round.trained.state.digest,
            "dense": lab.dense.trained.state.digest if compares(round) else None,
            "removed": sorted(ticket.removed),
            "silent": ticket.silent,
            "shrunk": shrunk(ticket),
            "repeats": self.repeats,
            "device": torch.cuda.get_device_name(lab.device) if lab.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "batch": lab.config.train.batch_size,
        }
        with torch.random.fork_rng([lab.device] if lab.device.type == "cuda" else []):  # dropout draws
            found = lab.evaluated("cost", inputs, lambda: self.measured(round, lab))
        joules = found["cost_joules"]
        grams = None if joules is None or self.grid is None else joules / KWH * self.grid
        if joules is None and not compares(round):
            LOG.info("cost: no energy, since no counter of it can be read here (RAPL; NVML through pynvml)")
        if round.index and round.control is None:
            LOG.info("cost of round %d: %s", round.index, said(found, ticket))
        return {**found, "cost_grams_co2e": grams, "cost_unstructured": int(unstructured(ticket))}

    @staticmethod
    def version(lab: Bench) -> int:
        """Return the version of the numerics: 3 for networks whose attention is counted on a CPU, else 2."""
        from lottery.cost.counts import attends

        image = torch.zeros(1, *lab.dataset.shape)
        return 3 if lab.device.type == "cpu" and attends(lab.network().eval(), image) else 2

    def measured(self, round: Round, lab: Bench) -> dict[str, Any]:
        from lottery.cost.counts import counted, multiply_adds, training_memory
        from lottery.cost.measure import inference, joules, paired, speed_up, training_step

        device, batch = lab.device, lab.config.train.batch_size
        networks = {"": lab.smaller(round)}
        if compares(round):
            networks["dense_"] = lab.smaller(lab.dense)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(max(batch, THROUGHPUT_BATCH), *lab.data.shape, generator=generator).to(device)
        labels = torch.arange(batch, device=device) % lab.data.classes
        found: dict[str, Any] = {"cost_threads": torch.get_num_threads()}
        for prefix, network in networks.items():
            found |= {
                f"cost_{prefix}parameters": sum(each.numel() for each in network.parameters()),
                f"cost_{prefix}macs": sum(multiply_adds(network, images).values()),
                f"cost_{prefix}macs_all": counted(network, images),
                f"cost_{prefix}memory": training_memory(network, images[:batch], labels),
            }

        works: dict[str, Callable[[nn.Module], Callable[[], object]]] = {
            "step": lambda network: training_step(network, images[:batch], labels),
            "latency": lambda network: repeated(inference(network, images[:1]), LATENCY_RUNS),
            "throughput": lambda network: inference(network, images[:THROUGHPUT_BATCH]),
        }
        for what, work in works.items():
            side_by_side = {prefix: stoppable(work(each), lab) for prefix, each in networks.items()}
            seconds = paired(side_by_side, self.repeats, device)
            for prefix, took in seconds.items():
                if what == "throughput":
                    found[f"cost_{prefix}throughput"] = THROUGHPUT_BATCH / median(took)
                else:
                    runs = LATENCY_RUNS if what == "latency" else 1
                    found[f"cost_{prefix}{what}_ms"] = 1000 * median(took) / runs
            if "dense_" in seconds:
                found[f"cost_{what}_speedup"] = speed_up(seconds["dense_"], seconds[""])
        passes = ceil(ENERGY_SECONDS * found["cost_throughput"] / THROUGHPUT_BATCH)
        spent = joules(repeated(inference(networks[""], images[:THROUGHPUT_BATCH]), passes), device)
        found["cost_joules"] = None if spent is None else spent * 1000 / (passes * THROUGHPUT_BATCH)
        if len(networks) > 1:
            for what in ("parameters", "macs", "memory"):
                found[f"cost_{what}_share"] = found[f"cost_{what}"] / found[f"cost_dense_{what}"]
        return found


def compares(round: Round) -> bool:
    """Whether the round is compared with the dense network, which is round 0."""
    return bool(round.index or round.control)


def shrunk(ticket: Ticket) -> bool:
    """Whether `lab.smaller` takes whole filters out."""
    return structured(ticket.mask) and find_spec("torch_pruning") is not None


def unstructured(ticket: Ticket) -> bool:
    """Whether single weights are pruned, and neither units nor whole filters or channels."""
    return ticket.mask.density < 1 and not ticket.removed and not structured(ticket.mask)


def said(found: Mapping[str, Any], ticket: Ticket) -> str:
    """Describe the gain in one line."""
    if unstructured(ticket):
        return "weights are pruned one by one, by which no dense kernel gets faster"
    if not ticket.removed and structured(ticket.mask) and not shrunk(ticket):
        return "removed filters are measured as zeros, since torch-pruning, which takes them out, is not installed"
    return (
        f"{found['cost_macs_share']:.1%} of the multiply-adds; speed-up of a training step "
        f"{found['cost_step_speedup']:.2f}, inference {found['cost_latency_speedup']:.2f} (batch 1), "
        f"{found['cost_throughput_speedup']:.2f} (batch {THROUGHPUT_BATCH})"
    )


def stoppable(work: Callable[[], object], lab: Bench) -> Callable[[], object]:
    """Return `work` preceded by a check for a stop signal, which raises Interrupted."""

    def run() -> object:
        lab.check_stop("while a network was measured")
        return work()

    return run


def repeated(work: Callable[[], object], times: int) -> Callable[[], object]:
    return lambda: [work() for _ in range(times)]
