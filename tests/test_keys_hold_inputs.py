"""Equal keys mean equal numbers: every option is changed, and what keeps its key has to come out the same, bit for bit.

Each option that is not infrastructure (contract 4.7) gets another value. A training, scores and the figures of the
probes are asked for as a study would. Where a key is a new one there is nothing to check. Where it is the old one the
computation is done again under the new value, so that an option which is read and not in the key shows itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from test_keys import changed, leaves
from torch import nn

from lottery.compose import composed
from lottery.config import INFRASTRUCTURE, plain, settings
from lottery.config.data import Data
from lottery.data import sources
from lottery.data.sources import digits
from lottery.errors import LotteryError
from lottery.models.mlp import mlp
from lottery.parts import instantiated
from lottery.signals import StopFlag
from lottery.stages.bench import Bench
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.state import state_digest

BASE = (
    "data=digits", "data.validation=100", "data.limit=300", "model=mlp", "model.hidden=[8]", "method.rounds=1",
    "criterion=snip", "criterion.per_class=2", "optim=momentum", "schedule=multistep", "schedule.milestones=[4it]",
    "data.flip=true", "data.crop=1",
    "train.steps=6it", "train.eval_every=3it", "train.batch_size=48", "rewind=weights", "rewind.to=2it",
    "probes=[robustness,connectivity]", "probes.connectivity.between=previous",
    "probes.connectivity.points=3", "probes.corruptions.limit=40", "probes.gradient_norm.per_class=3",
    "tracker=none", "trainer=cpu",
)  # fmt: skip

# Other values where one more, or one letter more, is not allowed.
OTHERS: dict[str, Any] = {
    "data._target_": f"{__name__}.mirrored", "data.classes": 11, "data.shape": [1, 16, 4],
    "data.scaling": "l2", "data.mean": [0.5], "data.std": [2.0], "data.crop": 2,
    "data.padding": "reflect", "data.limit": 301, "data.resize": 9,
    "model._target_": f"{__name__}.smooth", "model.hidden": [9], "model.init": "glorot_normal",
    "model.bn_scale": "uniform", "model.weights": None, "model.drop_head": True,
    "method._target_": "lottery.methods.imp.IMP", "method.rate": 0.3, "method.scope": "layer",
    "method.rates": {"fc1.weight": 0.3}, "method.count": "openlth",
    "criterion._target_": "lottery.pruning.gradients.grasp",
    "train.steps": "7it", "train.eval_every": "2it", "train.precision": "bf16", "train.eval_batch_size": 33,
    "optim.name": "adam", "optim.lr": 0.3, "optim.betas": [0.8, 0.999], "optim.momentum": 0.5, "optim.clip_norm": 0.01,
    "schedule.name": "cosine", "schedule.milestones": ["3it"], "schedule.gamma": 0.5, "schedule.warmup": "2it",
    "rewind.to": "1it", "rewind.weights": "keep", "rewind.batchnorm": "keep", "rewind.optimizer": "keep",
    "rewind.schedule": "keep", "rewind.order": "keep",
    "prunable.exclude": ["output"],
    "probes.pq.p": 0.25, "probes.fgsm.epsilon": 0.1,
    "probes.connectivity.between": "path", "probes.connectivity.splits": ["validation"],
    "probes.connectivity.bn": "recompute", "probes.connectivity.rounds": [2],
}  # fmt: skip


# What the data refuse; and what makes another network, whose states no stage of the first one can have been given.
REFUSED, ANOTHER = {"data.shape"}, {"data.classes", "model.hidden"}


def mirrored(data: Data, folder: Path) -> dict[str, Any]:
    """The digits, seen in a mirror."""
    found = digits(data, folder)
    return {**found, "train_images": found["train_images"][..., ::-1].copy()}


def smooth(*, shape: tuple[int, ...], classes: int, hidden: list[int]) -> nn.Module:
    """The network of the same weights, with another activation."""
    network = mlp(shape=shape, classes=classes, hidden=hidden)
    network.relu1 = nn.Tanh()
    return network


def options(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Every option that may change a number, and another value for it. A part's name is not an option."""
    for path in leaves(plain(cfg)):
        infrastructure = any(path == part or path.startswith(f"{part}.") for part in INFRASTRUCTURE)
        named = path.startswith("probes.") and path.rpartition(".")[2][0] == "_"
        if not infrastructure and not named and not path.endswith("_partial_"):
            yield path, OTHERS[path] if path in OTHERS else changed(OmegaConf.select(cfg, path))


@dataclass
class Stages:
    """What a study asks for, each with its key; and how to compute it."""

    lab: Lab
    rounds: list[Round] = field(default_factory=list)
    found: dict[str, tuple[str, Callable[[], Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, cfg: DictConfig, store: Path, patch: pytest.MonkeyPatch, rounds: list[Round] | None = None) -> Stages:
        """The dense training, scores and figures; the latter two of the rounds that are given, or of new ones."""
        cfg.paths.store = str(store)
        config = settings(cfg)
        lab = Lab(config, StopFlag(), lambda *_: None)
        stages = cls(lab)
        key = lab.store.stage("train", lab._train_inputs(lab.initial, None)).key
        stages.found["train"] = key, lambda: timeless(lab.train(lab.initial).result)
        dense, last = history = rounds or new_rounds(lab)
        inputs = lab._score_inputs({"state": dense.trained.state.digest, "mask": last.mask.digest})
        score = lab.store.stage("score", inputs)
        stages.found["score"] = score.key, lambda: state_digest(lab.scores(dense.trained.state, last.mask))

        def figures(bench: Bench, inputs: dict[str, Any], compute: Callable[[], Any]) -> None:
            key = bench.store.stage("evaluate", inputs).key
            stages.found[f"evaluate {inputs['probe']}"] = key, compute
            raise Asked

        patch.setattr(Bench, "figures", figures)
        bench = Bench(lab, history)
        for name, node in config.probes.items():
            with suppress(Asked):
                instantiated(node, f"probes.{name}")(last, dense, bench)
        stages.rounds = history
        return stages


class Asked(Exception):
    """A probe has asked for figures."""


def new_rounds(lab: Lab) -> list[Round]:
    dense = Round(0, lab.initial, lab.train(lab.initial, keep=lab.rewind.keep_dense()))
    scores = {name: dense.trained.state.tensors()[name].abs() for name in lab.initial.mask}
    ticket = lab.rewind.ticket(dense.trained, dense.trained, lab.prune(lab.initial.mask, scores, 0.5))
    return [dense, Round(1, ticket, lab.train(ticket))]


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("seconds", "kept")}


@pytest.mark.slow
def test_an_option_that_a_stage_reads_is_in_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed([*BASE])
    found = digits(settings(cfg).data, tmp_path)
    monkeypatch.setattr(sources, "digits", lambda *_: found)  # read once
    first = Stages.of(cfg.copy(), tmp_path / "first", monkeypatch)
    assert len(first.found) == 2 + 5
    expected = {name: json.dumps(compute()) for name, (_, compute) in first.found.items()}
    missing, refused, computed = [], set(), 0
    for number, (path, value) in enumerate(options(cfg)):
        other = cfg.copy()
        OmegaConf.update(other, path, value, merge=False, force_add=True)
        try:
            stages = Stages.of(other, tmp_path / str(number), monkeypatch, first.rounds)
        except LotteryError:
            refused.add(path)
            continue
        for name, (key, compute) in stages.found.items():
            if key == first.found.get(name, ("", None))[0] and path not in ANOTHER:
                computed += 1
                if json.dumps(compute()) != expected[name]:
                    missing.append(f"{path}={value}: {name}")
    assert refused == REFUSED
    assert missing == []
    assert computed > 200
