"""All options of a study, as typed dataclasses registered with Hydra, with the range of each; the study key.

This module is imported before the configuration is known to be valid, so it must not import anything slow.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import II, DictConfig, OmegaConf

from lottery.config.data import Data
from lottery.config.models import SCHEMAS as MODEL_SCHEMAS
from lottery.errors import ConfigError
from lottery.ranges import duration, length, number, one_of, option, such_that

LONGEST_NAME = 255  # bytes, the limit of file systems

# Options that cannot change a number of the study. They are left out of its key.
INFRASTRUCTURE = (
    "name", "tracker", "trainer", "paths", "data.workers", "data.name", "data.folder",
    "train.checkpoint_minutes", "train.checkpoint_steps",
)  # fmt: skip

# Options added later -> the value at which the option is left out of the study key, so that older keys stay valid.
LATER = {
    "data.padding": "black", "data.alternate": False, "train.compile": False, "train.label_smoothing": 0.0,
    "schedule.start": 0.04, "schedule.end": 4e-6, "controls.static": 0,
}  # fmt: skip


def folder_name(key: str, got: str) -> None:
    """Raise ConfigError unless the option can be the name of a folder."""
    if len(os.fsencode(got)) > LONGEST_NAME:
        raise ConfigError.of(key, f"{got[:20]}…", f"the name of a folder: at most {LONGEST_NAME} bytes")
    if not got or got[0] == "." or set(got) & set("/\\\0\n"):
        raise ConfigError.of(key, got, "the name of a folder: not empty, no slash, no dot in front")


def durations(key: str, got: Sequence[str]) -> None:
    """Raise ConfigError unless the option is a list of times such as "80ep"."""
    for each in got:
        duration(key, each)


SEED = number(0, 2**63 - 1)
IMAGES = number(1, 2**31 - 1)  # in a batch
COPIES = number(0, 1000)
POSITIVE = number(0, above=True)
SHARE = such_that(lambda got: 0 <= got < 1, "a number ≥ 0 and < 1")
BETAS = such_that(lambda got: len(got) == 2 and all(0 <= beta < 1 for beta in got), "two numbers ≥ 0 and < 1")
POLICY = one_of("rewind", "reset", "keep")
WORKERS = such_that(
    lambda got: got == "auto" or (type(got) is int and 0 < got <= 1024), "auto, or a number from 1 to 1024"
)
FOLDER = such_that(lambda got: got.strip() != "", "a folder")


@dataclass
class Seeds:
    """The four random streams; each equals `seed` unless set."""

    init: int = option(II("seed"), SEED)  # initial weights, and those of the reinit controls
    order: int = option(II("seed"), SEED)  # data order and augmentation
    mask: int = option(II("seed"), SEED)  # random masks and score initialisation
    split: int = option(II("seed"), SEED)  # which training images are held out for validation


@dataclass
class Train:
    """One training: its length, its batches, and how often it is evaluated."""

    steps: str = option("10ep", length)  # length of the dense training, which is also the schedule's length
    batch_size: int = option(128, IMAGES)
    drop_last: bool = False  # leave out the last, shorter batch of an epoch
    eval_every: str = option("1ep", length)  # validation points, from which the early-stop step is chosen
    eval_batch_size: int = option(1000, IMAGES)
    # bf16: autocast of the forward pass; weights, masks and scores stay float32
    precision: str = option("32", one_of("32", "bf16"))
    channels_last: bool = False
    compile: bool = False  # torch.compile of the network, in training; searches and measurements stay as they are
    label_smoothing: float = option(0.0, SHARE)  # of the training loss; losses on splits are without
    # how often a training's state is saved while it runs, in minutes and in optimizer steps
    checkpoint_minutes: float = option(10.0, number(0, math.inf, above=True))
    checkpoint_steps: int | None = option(None, number(1, 2**63 - 1))


@dataclass
class Optim:
    """The optimizer; parameters that the chosen one does not have are ignored."""

    name: str = option("sgd", one_of("sgd", "adam", "adamw"))
    lr: float = option(0.1, POSITIVE)
    momentum: float = option(0.0, number(0, 1))
    nesterov: bool = False
    betas: list[float] = option([0.9, 0.999], BETAS)
    eps: float = option(1e-8, POSITIVE)
    weight_decay: float = option(0.0, number(0))
    clip_norm: float | None = option(None, POSITIVE)  # global norm of the masked gradients


@dataclass
class Schedule:
    """The learning rate as a function of the absolute step, after a linear warm-up from 0 (one_cycle: from `start`)."""

    name: str = option("constant", one_of("constant", "multistep", "cosine", "one_cycle"))
    milestones: list[str] = option([], durations)
    gamma: float = option(0.1, number(0, 1, above=True))
    warmup: str = option("0it", duration)
    # one_cycle: the rates at the first and the last step, as shares of the highest; the defaults are torch's
    start: float = option(0.04, number(0, 1))
    end: float = option(4e-6, number(0, 1))


@dataclass
class Rewind:
    """Where a ticket starts from: one policy for each part of the training state.

    Each of the five is `rewind` (the dense run's value at step `to`), `reset` (its value at step 0; for the
    optimizer: a fresh one) or `keep` (the value at the end of the training that was pruned).
    """

    to: str = option("init", duration)
    weights: str = option("rewind", POLICY)  # weights, biases, normalisation scale and shift
    batchnorm: str = option("rewind", POLICY)  # running statistics
    optimizer: str = option("reset", POLICY)  # momentum and moments
    schedule: str = option("rewind", POLICY)  # position in the learning-rate schedule; `keep` stays at its final value
    order: str = option("rewind", POLICY)  # position in the data order


@dataclass
class Controls:
    """The number of copies of each control that are trained beside every ticket."""

    reinit: int = option(0, COPIES)  # the ticket's mask, new initial weights
    random: int = option(0, COPIES)  # the ticket's weights, a random mask with the same count in each layer
    shuffle: int = option(0, COPIES)  # the ticket's mask with its positions permuted inside each layer
    invert: int = option(0, COPIES)  # as many weights in each layer, but those pruned first (all copies are equal)
    static: int = option(0, COPIES)  # of a mask that moved in training: the final mask from the start (all are equal)


@dataclass
class Prunable:
    """The prunable weights: those of convolutions and linear layers whose name matches none of the patterns."""

    exclude: list[str] = field(default_factory=list)


@dataclass
class Tracker:
    """The tracker to which results are copied. The run folder is written in any case."""

    name: str = option("wandb", one_of("none", "csv", "wandb"))
    mode: str = option("auto", one_of("auto", "offline", "online"))  # wandb only; auto: online only when logged in
    project: str = "lottery"
    entity: str | None = None
    group: str | None = None  # default: the study's name
    tags: list[str] = field(default_factory=list)


@dataclass
class Trainer:
    """Settings of the machine, none of which changes a key."""

    accelerator: str = option("auto", one_of("auto", "cpu", "gpu", "cuda", "mps"))
    # CPU threads of torch; default: SLURM_CPUS_PER_TASK, else torch's own choice
    threads: int | None = option(None, number(1, 1024))
    # processes that train side by side within the study, each with its share of the threads
    # auto: as many as there are processors for, with `threads` each, and trainings that do not wait for each other;
    # 1 where `threads` is not set, or on a GPU
    workers: int | str = option("auto", WORKERS)
    progress: bool = True
    devices: int = option(1, number(1, 1024))  # processes a node, one a device
    nodes: int = option(1, number(1, 65536))


@dataclass
class Paths:
    """The folders of runs, data sets and stages."""

    runs: str = option("runs", FOLDER)
    data: str = option("data", FOLDER)
    store: str = option(II(".runs") + "/.store", FOLDER)


@dataclass
class Config:
    """A study: one method, one configuration, one seed."""

    name: str = option("study", folder_name)
    seed: int = option(0, SEED)
    seeds: Seeds = field(default_factory=Seeds)
    data: Data = field(default_factory=Data)
    model: Any = None
    method: Any = None
    criterion: Any = None
    prunable: Prunable = field(default_factory=Prunable)
    train: Train = field(default_factory=Train)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    rewind: Rewind = field(default_factory=Rewind)
    controls: Controls = field(default_factory=Controls)
    probes: dict[str, Any] = field(default_factory=dict)  # name: {_target_: a function of (round, previous, lab)}
    tracker: Tracker = field(default_factory=Tracker)
    trainer: Trainer = field(default_factory=Trainer)
    paths: Paths = field(default_factory=Paths)


@cache
def register() -> None:
    """Register the schemas with Hydra: the whole study's, and one for each model family."""
    from hydra.core.config_store import ConfigStore  # commands that only read configurations do without Hydra

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for family, schema in MODEL_SCHEMAS.items():
        store.store(group="schema/model", name=family, node=schema)


def settings(cfg: DictConfig) -> Config:
    """Convert a configuration to dataclasses; model, method, criterion and probes stay mappings with a `_target_`."""
    config: Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    config.model = OmegaConf.to_container(cfg.model, resolve=True)
    return config


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain dictionaries."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def digest(value: Any) -> str:
    """Return the sha256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def study_key(cfg: DictConfig) -> str:
    """Return the study's key: 12 hex digits of a digest over all options that its numbers depend on."""
    values = plain(cfg)
    unchanged = (path for path, value in LATER.items() if OmegaConf.select(cfg, path) == value)
    for path in (*INFRASTRUCTURE, *unchanged):
        node = values
        *parents, last = path.split(".")
        for parent in parents:
            node = node[parent]
        node.pop(last, None)
    return digest(values)[:12]
