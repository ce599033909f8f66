"""What a user can set, as typed dataclasses registered with Hydra, and the checks that need no torch.

Everything here is imported before the configuration is known to be valid, so nothing heavy may be imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import II, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lottery.data.options import Data
from lottery.data.options import check as check_data
from lottery.errors import ConfigError, LotteryError, cause, nearest
from lottery.models.options import SCHEMAS as MODEL_SCHEMAS
from lottery.steps import Duration


@dataclass
class Seeds:
    """The four random streams; each equals `seed` unless set."""

    init: int = II("seed")  # initial weights, and those of the reinit controls
    order: int = II("seed")  # data order and augmentation
    mask: int = II("seed")  # random masks and score initialisation
    split: int = II("seed")  # which training images are held out for validation


@dataclass
class Train:
    """One training: how long, in what batches, measured how often."""

    steps: str = "10ep"  # length of the dense training, which is also the schedule's length
    batch_size: int = 128
    drop_last: bool = False  # leave out the last, shorter batch of an epoch
    eval_every: str = "1ep"  # validation points, from which the early-stop step is chosen
    eval_batch_size: int = 1000
    precision: str = "32"  # 32 or bf16 (autocast of the forward pass; weights, masks and scores stay float32)
    channels_last: bool = False
    checkpoint_minutes: float = 10.0  # how often a training's state is saved while it runs
    checkpoint_steps: int | None = None  # the same, counted in optimizer steps


@dataclass
class Optim:
    """The optimizer; parameters that the chosen one does not have are ignored."""

    name: str = "sgd"  # sgd, adam, adamw
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None  # global norm of the masked gradients


@dataclass
class Schedule:
    """The learning rate as a function of the absolute step, after a linear warm-up from 0."""

    name: str = "constant"  # constant, multistep, cosine
    milestones: list[str] = field(default_factory=list)
    gamma: float = 0.1
    warmup: str = "0it"


@dataclass
class Rewind:
    """Where a ticket starts from: one policy for each part of the training state.

    Each of the five is `rewind` (the dense run's value at step `to`), `reset` (its value at step 0; for the
    optimizer: a fresh one) or `keep` (the value at the end of the training that was pruned).
    """

    to: str = "init"
    weights: str = "rewind"  # weights, biases, normalisation scale and shift
    batchnorm: str = "rewind"  # running statistics
    optimizer: str = "reset"  # momentum and moments
    schedule: str = "rewind"  # position in the learning-rate schedule; `keep` stays at its final value
    order: str = "rewind"  # position in the data order


@dataclass
class Controls:
    """How many copies of each control to train beside every ticket."""

    reinit: int = 0  # the ticket's mask, new initial weights
    random: int = 0  # the ticket's weights, a random mask with the same count in each layer
    shuffle: int = 0  # the ticket's mask with its positions permuted inside each layer
    invert: int = 0  # as many weights in each layer, but those that are pruned first (nothing in it differs by copy)


@dataclass
class Prunable:
    """Which of the convolution and linear weights may be pruned: all but those whose name matches a pattern."""

    exclude: list[str] = field(default_factory=list)


@dataclass
class Tracker:
    """Where results are mirrored; the run folder is written in any case."""

    name: str = "wandb"  # none, csv, wandb, trackio
    mode: str = "auto"  # wandb only: offline, online, or auto (online only when logged in)
    project: str = "lottery"
    entity: str | None = None
    group: str | None = None  # default: the study's name
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.name == "trackio" and find_spec("trackio") is None:
            raise ConfigError("tracker=trackio: trackio is not installed: pip install trackio")


@dataclass
class Trainer:
    """The machine; nothing here changes a key."""

    accelerator: str = "auto"
    threads: int | None = None  # CPU threads of torch; default: SLURM_CPUS_PER_TASK, else torch's own choice
    progress: bool = True
    devices: int = 1  # processes a node, one a device
    nodes: int = 1


@dataclass
class Paths:
    """Where things lie."""

    runs: str = "runs"
    data: str = "data"
    store: str = II(".runs") + "/.store"


@dataclass
class Config:
    """A study: one method, one configuration, one seed."""

    name: str = "study"
    seed: int = 0
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


# Keys that cannot change a number of the study, and so are no part of its key.
INFRASTRUCTURE = (
    "name", "tracker", "trainer", "paths", "data.workers", "data.name", "data.folder",
    "train.checkpoint_minutes", "train.checkpoint_steps",
)  # fmt: skip

CHOICES = {
    "train.precision": ("32", "bf16"),
    "optim.name": ("sgd", "adam", "adamw"),
    "schedule.name": ("constant", "multistep", "cosine"),
    "rewind.weights": ("rewind", "reset", "keep"),
    "rewind.batchnorm": ("rewind", "reset", "keep"),
    "rewind.optimizer": ("rewind", "reset", "keep"),
    "rewind.schedule": ("rewind", "reset", "keep"),
    "rewind.order": ("rewind", "reset", "keep"),
    "tracker.name": ("none", "csv", "wandb", "trackio"),
    "tracker.mode": ("auto", "offline", "online"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
}

FINITE, UNBOUNDED = sys.float_info.max, float("inf")

# key: (lowest, lowest itself allowed, highest)
RANGES: dict[str, tuple[float, bool, float]] = {
    **{key: (0, True, 2**63 - 1) for key in ("seed", "seeds.init", "seeds.order", "seeds.mask", "seeds.split")},
    "train.batch_size": (1, True, UNBOUNDED),
    "train.eval_batch_size": (1, True, UNBOUNDED),
    "train.checkpoint_minutes": (0, False, UNBOUNDED),
    "train.checkpoint_steps": (1, True, UNBOUNDED),
    "optim.lr": (0, False, FINITE),
    "optim.momentum": (0, True, 1),
    "optim.weight_decay": (0, True, FINITE),
    "optim.eps": (0, False, FINITE),
    "optim.clip_norm": (0, False, UNBOUNDED),
    "schedule.gamma": (0, False, 1),
    "controls.reinit": (0, True, 1000),
    "controls.random": (0, True, 1000),
    "controls.shuffle": (0, True, 1000),
    "controls.invert": (0, True, 1000),
    "trainer.threads": (1, True, 1024),
    "trainer.devices": (1, True, 1024),
    "trainer.nodes": (1, True, 65536),
}


def register() -> None:
    """Tell Hydra the schemas: the whole study, and one for each model family."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for family, schema in MODEL_SCHEMAS.items():
        store.store(group="schema/model", name=family, node=schema)


def locate(target: str, key: str) -> Any:
    """The object a `_target_` names, imported. Raises ConfigError where that fails, for whatever reason."""
    module, _, name = target.rpartition(".")
    if not module:
        raise ConfigError.of(f"{key}._target_", target, "a dotted path such as package.module.Name")
    try:
        found = import_module(module)
    except Exception as error:  # a user's module may fail in any way
        raise ConfigError(f"{key}._target_: cannot import {target!r}: {cause(error)}") from error
    if not hasattr(found, name):
        raise ConfigError(f"{key}._target_: {module} has no {name!r}{nearest(name, dir(found))}")
    return getattr(found, name)


def typed_method(node: DictConfig) -> Any:
    """The method's dataclass, built from its node: unknown keys, wrong types and values out of range raise.

    A method's file imports no torch at its top, so that this stays fast.
    """
    try:
        return OmegaConf.to_object(method_schema(node))
    except (LotteryError, OmegaConfBaseException):
        raise
    except Exception as error:  # its own __post_init__
        raise ConfigError(f"method: {cause(error)}") from error


def method_options(node: DictConfig) -> dict[str, Any]:
    """The method's node with every option of its dataclass, each of its declared type."""
    options: dict[str, Any] = OmegaConf.to_container(method_schema(node), resolve=True)  # type: ignore[assignment]
    return {"_target_": node._target_, **options}


def method_schema(node: DictConfig) -> DictConfig:
    """The method's dataclass as a config, filled from its node."""
    cls = locate(node._target_, "method")
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise ConfigError.of("method._target_", node._target_, "a dataclass, whose fields are the method's options")
    values = {key: value for key, value in node.items() if key != "_target_"}
    schema = OmegaConf.structured(cls)
    for key, value in values.items():
        if key in schema and isinstance(schema._get_node(key), DictConfig) and not isinstance(value, DictConfig):
            options = ", ".join(f"{name}: ..." for name in [*map(str, schema[key])][:2])
            raise ConfigError.of(f"method.{key!s}", value, f"a mapping such as {{{options}}}")
    # Under the key `method`, so that an error names the option as it is written.
    return OmegaConf.merge({"method": schema}, {"method": values}).method


def check(cfg: DictConfig) -> None:
    """Raise ConfigError for the first value that is out of its range; needs no torch and no data.

    Every value is there and of its type; what needs the network or the data is checked before a study writes anything.
    """
    for key, choices in CHOICES.items():
        got = OmegaConf.select(cfg, key)
        if got not in choices:
            raise ConfigError.of(key, got, f"one of {', '.join(choices)}{nearest(str(got), choices)}")
    for key, (low, closed, high) in RANGES.items():
        got = OmegaConf.select(cfg, key)
        if got is not None and not (low <= got <= high and (closed or got > low)):
            kind = "a whole number" if isinstance(got, int) else "a number"
            bound = f"{'≥' if closed else '>'} {low:g}" + (f" and ≤ {high:g}" if high < FINITE else "")
            raise ConfigError.of(key, got, f"{kind} {bound}")
    check_names(cfg)
    check_times(cfg)
    check_optim(cfg)
    check_data(OmegaConf.to_object(cfg.data))  # type: ignore[arg-type]
    OmegaConf.to_object(cfg.tracker)  # raises where its package is not installed
    check_targets(cfg)
    typed_method(cfg.method)


def check_names(cfg: DictConfig) -> None:
    """The study's name is that of a folder, and every path leads somewhere."""
    if not cfg.name or cfg.name[0] == "." or set(cfg.name) & set("/\\\0\n"):
        raise ConfigError.of("name", cfg.name, "the name of a folder: not empty, no slash, no dot in front")
    for key in ("paths.runs", "paths.data", "paths.store"):
        if not OmegaConf.select(cfg, key).strip():
            raise ConfigError.of(key, OmegaConf.select(cfg, key), "a folder")


def check_times(cfg: DictConfig) -> None:
    """Every time parses, the training and its evaluation interval are longer than zero, and nothing ends after it."""
    times = {}
    for key in ("train.steps", "train.eval_every", "schedule.warmup", "rewind.to"):
        got = OmegaConf.select(cfg, key)
        times[key] = Duration.parse(got, key)
        if key.startswith("train.") and times[key] == Duration():
            raise ConfigError.of(key, got, 'a time longer than zero, such as "500it" or "2ep"')
    total = times["train.steps"]
    for key in ("schedule.warmup", "rewind.to"):
        # Later whatever the length of an epoch is; the rest is checked when that is known.
        if times[key] != total and times[key].epochs >= total.epochs and times[key].steps >= total.steps:
            raise ConfigError.of(key, OmegaConf.select(cfg, key), f"at most train.steps={cfg.train.steps}")
    for milestone in cfg.schedule.milestones:
        Duration.parse(milestone, "schedule.milestones")
    if cfg.schedule.name == "multistep" and not cfg.schedule.milestones:
        raise ConfigError.of("schedule.milestones", [], "at least one time, such as [80ep,120ep]")


def check_optim(cfg: DictConfig) -> None:
    """What the optimizer itself would refuse."""
    betas = list(cfg.optim.betas)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError.of("optim.betas", betas, "two numbers ≥ 0 and < 1")
    if cfg.optim.name == "sgd" and cfg.optim.nesterov and not cfg.optim.momentum:
        raise ConfigError.of("optim.nesterov", True, "false, or optim.momentum > 0")


def check_targets(cfg: DictConfig) -> None:
    """Every part that is built from a `_target_` has one."""
    for key in ("model", "method", "criterion"):
        if not has_target(cfg[key]):
            raise ConfigError(f"{key}: nothing chosen; choose one with {key}=NAME (--help lists them)")
    for name, probe in cfg.probes.items():
        if not has_target(probe):
            raise ConfigError.of(f"probes.{name}", probe, "{_target_: package.module.function}")


def has_target(node: Any) -> bool:
    return isinstance(node, DictConfig) and isinstance(node.get("_target_"), str)


def settings(cfg: DictConfig) -> Config:
    """The configuration as dataclasses; model, method, criterion and probes stay mappings with a `_target_`."""
    config: Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    config.model = OmegaConf.to_container(cfg.model, resolve=True)
    return config


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def study_key(cfg: DictConfig) -> str:
    """The study's key: 12 hex digits over everything its numbers depend on."""
    values = plain(cfg)
    for path in INFRASTRUCTURE:
        node = values
        *parents, last = path.split(".")
        for parent in parents:
            node = node[parent]
        node.pop(last, None)
    return digest(values)[:12]
