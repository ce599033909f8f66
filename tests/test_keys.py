"""Keys (contract 4.7): what may change a number is in them, what cannot is not; and two studies' keys, pinned.

A pinned key fails when a default, an option's name or the stage's own inputs change. Then
- if equal settings would now give other numbers: raise VERSION of that stage (lottery/stages/*.py), so that no stored
  result is taken for a new one, and pin the new key;
- if only the study key moved, as by an option that was added: pin the new key, and say in the change log that studies
  get new run folders (their stages are found again all the same);
- else undo the change: every stored result would be computed again for nothing.

Everything here runs on embedded data whose bytes are the same everywhere. The pinned stage keys are those of weights
that are all zero: drawn weights differ in their last bits between processors, and so do their keys, as they must.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lottery.compose import composed, groups
from lottery.config import INFRASTRUCTURE, plain, settings, study_key
from lottery.parts import typed_method
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.stages.store import Store
from lottery.state import StateRef

MLP = ("+exp=imp_rewind", "data=digits")
RESNET = ("+exp=lth_resnet20", "data=digits", "model.width=4")
PINNED = {  # overrides: (study key, key of the dense training from weights of 0)
    MLP: ("07c2d360b981", "a328604b9bdb7c2a77228b7076ae0e01c3fed45a8490257a84a6576889cf39f3"),
    RESNET: ("6b7f65eb2f2d", "1888b7e22189262681646332e64a5d7981cb1f7680499fa467cacd34f7988c61"),
}
SEARCHES = {  # key of the search in weights of 0
    "bip": "33e6029c07fd18b51c051a569363de53a89dce5064a7c08bf8f45f60c149e839",
    "bip_filter": "63016763cce5fb596a9cb9e0d9994a11677327651b27483df5d98f52caa0c4ac",
    "edge_popup": "5e2cd2949ee7b86407d3da5de10c5ed374432f13d0bb316ab99c93017fbe4ff7",
    "jackpot": "f0d09d37c1adb7ced2f88a72c68954c9deaa5533df4b9061c100b49f59125117",
}


base = cache(composed)


def config(known: tuple[str, ...], override: str) -> DictConfig:
    """The configuration with one more override; only a group's choice has to be composed anew."""
    key = override.partition("=")[0]
    if key in groups():
        return composed([*known, override])
    return OmegaConf.merge(base(known), OmegaConf.from_dotlist([override]))  # type: ignore[return-value]


def inputs(cfg: DictConfig, zero: bool = False) -> dict[str, Any]:
    """What the study's dense training is keyed by; `zero`: as if its initial weights were all 0. Nothing is trained."""
    lab = Lab(settings(cfg), StopFlag(), lambda *_: None)
    ticket = lab.initial
    if zero:
        zeros = {name: torch.zeros_like(value) for name, value in ticket.state.tensors().items()}
        ticket = replace(ticket, state=StateRef.of(zeros))
    return lab._train_inputs(ticket, None)


def stage_key(cfg: DictConfig, zero: bool = False) -> str:
    return Store(Path()).stage("train", inputs(cfg, zero)).key


@cache
def base_key(known: tuple[str, ...]) -> str:
    return stage_key(base(known))


# -- pinned -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", PINNED, ids=["mlp", "resnet"])
def test_pinned_study_key(overrides: tuple[str, ...]) -> None:
    cfg = base(overrides)
    assert study_key(cfg) == PINNED[overrides][0], f"see this file's head; now: {OmegaConf.to_yaml(cfg)}"


@pytest.mark.parametrize("overrides", PINNED, ids=["mlp", "resnet"])
def test_pinned_train_stage_key(overrides: tuple[str, ...]) -> None:
    now = json.dumps(inputs(base(overrides), zero=True), indent=1)
    assert stage_key(base(overrides), zero=True) == PINNED[overrides][1], f"see this file's head; now: {now}"


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("preset", SEARCHES)
def test_pinned_search_stage_key(preset: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """BiP by filters was raised alone when its numerics changed: the others' results of older stores are found.

    A search is never compiled.
    """
    cfg = config((f"+exp={preset}", "data=digits"), f"train.compile={str(compiled).lower()}")
    monkeypatch.setattr(Lab, "_search_stage", Lab._search_inputs)
    lab, method = Lab(settings(cfg), StopFlag(), lambda *_: None), typed_method(cfg.method)
    zeros = StateRef.of({name: torch.zeros_like(value) for name, value in lab.initial.state.tensors().items()})
    counts = [{name: shape.numel() // 5 for name, shape in lab.initial.mask.shapes.items()}]
    search = method.search(lab, *counts if preset == "jackpot" else [])
    now: Any = lab.searched(zeros, method.steps, search, getattr(method, "weights", None))
    assert Store(Path()).stage("search", now).key == SEARCHES[preset], f"see this file's head; now: {now}"


# -- the study key ----------------------------------------------------------------------------------------------------


def leaves(values: Any, path: str = "") -> Iterator[str]:
    """The dotted path of every single value; lists and empty mappings count as one."""
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path


def changed(value: Any) -> Any:
    """Another value of the same type, where that has to be kept."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    return [*value, 1.0] if isinstance(value, list) and value else 7


def test_every_option_is_infrastructure_or_changes_the_study_key() -> None:
    """So an option added later is in the key unless it is named as one that cannot change a number."""
    cfg = base(RESNET)
    key, values = study_key(cfg), plain(cfg)
    for path in leaves(values):
        other = OmegaConf.create(json.loads(json.dumps(values)))
        OmegaConf.update(other, path, changed(OmegaConf.select(other, path)), force_add=True, merge=False)
        infrastructure = any(path == part or path.startswith(f"{part}.") for part in INFRASTRUCTURE)
        assert (study_key(other) == key) is infrastructure, path


def test_the_list_of_what_cannot_change_a_number_names_existing_options() -> None:
    cfg = base(MLP)
    assert [path for path in INFRASTRUCTURE if OmegaConf.select(cfg, path, default=KeyError) is KeyError] == []


NEUTRAL = [
    "name=other", "tracker=none", "tracker.project=mine", "tracker.tags=[a]", "trainer=cpu", "trainer.threads=2",
    "trainer.progress=false", "paths.runs=/elsewhere/runs", "paths.data=/elsewhere/data",
    "paths.store=/elsewhere/store", "train.checkpoint_minutes=1", "train.checkpoint_steps=100", "data.workers=3",
]  # fmt: skip


@pytest.mark.parametrize("override", NEUTRAL)
def test_infrastructure_changes_no_key(override: str) -> None:
    cfg = config(MLP, override)
    assert study_key(cfg) == study_key(base(MLP))
    assert stage_key(cfg) == base_key(MLP)


# -- the key of a training --------------------------------------------------------------------------------------------


ELSEWHERE = [  # what other rounds, other stages and the table read, but not the dense training: so it is shared
    "method.rounds=3", "method.rate=0.5", "method.scope=layer", "method.one_shot=true", "criterion=random",
    "rewind.to=init", "rewind=lr", "rewind.optimizer=rewind", "controls=none", "controls.shuffle=2", "probes=none",
    "seeds.mask=7", "schedule.gamma=0.5", "schedule.milestones=[5it]", "schedule.start=0.2", "schedule.end=0.1",
    "optim.momentum=0.5",
]  # fmt: skip


@pytest.mark.parametrize("override", ELSEWHERE)
def test_the_dense_training_is_shared(override: str) -> None:
    cfg = config(MLP, override)
    assert stage_key(cfg) == base_key(MLP)
    assert study_key(cfg) != study_key(base(MLP)), "and yet it is another study"


def test_rewinding_shares_the_dense_training_of_the_same_recipe() -> None:
    """The presets of "Stabilizing" are the recipes of "The lottery ticket hypothesis", rewound."""
    assert stage_key(composed(["+exp=stabilizing_resnet20", *RESNET[1:]])) == base_key(RESNET)


NUMBERS = {
    MLP: [
        "seed=1", "seeds.init=1", "seeds.order=1", "seeds.split=1",
        "data.scaling=l2", "data.flip=true", "data.crop=1", "data.validation=100", "data.limit=500", "data=mnist1d",
        "model.hidden=[100,50]", "model.init=glorot_normal", "model=lenet_300_100", "prunable=no_output",
        "train.steps=1000it", "train.batch_size=50", "train.drop_last=true", "train.eval_every=20it",
        "train.eval_batch_size=100", "train.precision=bf16", "train.channels_last=true",
        "train.compile=true", "train.label_smoothing=0.1", "schedule=one_cycle",
        "optim=sgd", "optim.name=adamw", "optim.lr=1e-3", "optim.betas=[0.9,0.99]", "optim.eps=1e-6",
        "optim.weight_decay=0.1", "optim.clip_norm=1", "schedule=cosine", "schedule.warmup=10it",
    ],
    RESNET: [
        "optim.momentum=0.8", "optim.nesterov=true", "schedule.milestones=[20000it]", "schedule.gamma=0.2",
        "model.depth=26", "model.bn_scale=uniform", "model.width=8", "prunable.exclude=[fc]",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("known", "override"), [(known, o) for known, options in NUMBERS.items() for o in options])
def test_what_changes_a_number_changes_both_keys(known: tuple[str, ...], override: str) -> None:
    cfg = config(known, override)
    assert stage_key(cfg) != base_key(known)
    assert study_key(cfg) != study_key(base(known))


BESIDE = [  # what changes a number where another option does
    ("schedule=one_cycle", "schedule.start=0.2"), ("schedule=one_cycle", "schedule.end=0.1"),
    ("schedule=one_cycle", "schedule.warmup=3ep"), ("data.flip=true", "data.alternate=true"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "override"), BESIDE)
def test_what_changes_a_number_beside_another_option_changes_both_keys(given: str, override: str) -> None:
    known = (*MLP, given)
    cfg = config(known, override)
    assert stage_key(cfg) != base_key(known)
    assert study_key(cfg) != study_key(base(known))


def test_a_run_folders_configuration_has_the_studys_key() -> None:
    """config.yaml holds the resolved configuration (contract 4.2)."""
    cfg = composed([*MLP, "seed=3"])
    again = OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    assert isinstance(again, DictConfig)
    assert study_key(again) == study_key(cfg)
