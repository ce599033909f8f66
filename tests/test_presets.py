"""Every complete experiment (conf/exp) composes with neither torch nor a network, says what it is, and runs.

A preset runs here on a tiny made-up data set of its own shape, two rounds of two steps, at a width that is fast. What
the presets' numbers must be, after the papers' tables, stands in tests/reference/test_recipes.py.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from tiny_networks import all_weights

from lottery.compose import composed, config_folder
from lottery.config import settings
from lottery.models.build import build
from lottery.parts import typed_method
from lottery.pruning.prunable import prunable
from lottery.record.rows import Row
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.study import Study

PRESETS = sorted(path.stem for path in (config_folder() / "exp").glob("*.yaml"))
IMP = "lottery.methods.imp.IMP"
TRAIN, TEST = 80, 20  # images of the made-up data sets
# One preset of each kind; the others are slow tests.
QUICK = ["imp_rewind", "lth_resnet20", "bip", "jackpot", "edge_popup", "layer_tickets", "snip", "random_erk", "rigl",
         "gmp", "srste", "three_regimes"]  # fmt: skip

# What a preset needs besides `tiny` to be over in seconds: the lengths that only its own method has.
POINTS = ["method.points=[0it,1it]", "method.measured=[0,1]", "probes.connectivity.points=2"]
FURTHER: dict[str, list[str]] = {
    "synflow": ["method.steps=3"], "instability_lenet": POINTS, "instability_resnet20": POINTS,
    "three_regimes": ["method.stops=[1it]", "method.densities=[0.5]", "probes.connectivity.points=2"],
    **{name: ["method.steps=2it"] for name in PRESETS if name.startswith(("bip", "jackpot", "edge_popup"))},
}  # fmt: skip
FURTHER |= {name: ["+model.options.depth=3"] for name in ("imp_vit_tiny", "layer_tickets_vit_tiny")}
# Presets whose images lie in folders and whose weights are downloaded run on what `make_data` can make.
INSTEAD = {"bip_resnet50": ["data=cifar10"], "jackpot_resnet50": ["data=cifar10"]}
FURTHER["bip_resnet50"] += ["optim.lr=1e-4", "method.weights.lr=1e-4"]
FURTHER["jackpot_resnet50"] += ["model.pretrained=false", "method.start=dense", "optim.lr=1e-4"]


# -- composing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare_lottery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`lottery.compose`, imported anew where importing torch and opening a connection are errors."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lottery", "torch")]:
        monkeypatch.delitem(sys.modules, name)
    for heavy in ("torch", "torchvision", "timm", "sklearn", "matplotlib", "pandas", "wandb"):
        monkeypatch.setitem(sys.modules, heavy, None)

    def refuse(*_: object) -> None:
        raise AssertionError("composing a configuration used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return importlib.import_module("lottery.compose")


def test_all_compose_with_neither_torch_nor_network(bare_lottery: ModuleType) -> None:
    for name in PRESETS:
        cfg = bare_lottery.composed([f"+exp={name}"])  # checked: it raises for a value out of range
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert cfg.name == name, "the folder of its runs is named like the preset"


@pytest.mark.parametrize("name", PRESETS)
def test_opens_with_what_to_expect_and_what_it_costs(name: str) -> None:
    lines = (config_folder() / "exp" / f"{name}.yaml").read_text().splitlines()
    header = "\n".join(lines[1 : lines.index("defaults:")])
    assert lines[0] == "# @package _global_"
    assert all(line.startswith("#") for line in header.splitlines())
    assert re.search(r"^# Expect\b", header, re.MULTILINE)
    assert re.search(r"^# Cost: .*\d", header, re.MULTILINE)


def test_without_a_preset_nothing_is_downloaded_and_no_account_is_needed() -> None:
    """Contract 4.1: presets without a data set in their names run on an embedded one."""
    cfg = composed([])
    assert cfg.data.name == "mnist1d"
    assert cfg.tracker.mode != "online"


# -- running ----------------------------------------------------------------------------------------------------------


def tiny(name: str, folder: Path, *overrides: str) -> DictConfig:
    """The preset at two rounds of two steps, on made-up images that lie under `folder`."""
    instead = INSTEAD.get(name, [])
    cfg = composed([f"+exp={name}", *instead])
    values = ["train.steps=2it", "train.eval_every=1it", "train.batch_size=4", "tracker=none", "controls=none"]
    values += [f"paths.{key}={folder / key}" for key in ("runs", "data")] + ["trainer.accelerator=cpu"]
    values += ["trainer.progress=false", f"data.limit={TRAIN // 2}", f"data.validation={min(16, cfg.data.validation)}"]
    values += ["rewind.to=1it"] if cfg.rewind.to != "init" else []
    values += ["schedule.milestones=[1it,2it]"] if cfg.schedule.name == "multistep" else []
    values += ["schedule.warmup=1it"] if cfg.schedule.warmup != "0it" else []
    values += ["model.width=4"] if "width" in cfg.model else []
    values += ["method.rounds=2"] if "rounds" in cfg.method else []
    values += ["criterion.per_class=1"] if "per_class" in cfg.criterion else []
    values += ["method.criterion.per_class=1"] if "per_class" in (cfg.method.get("criterion") or {}) else []
    values += ["probes.cost.repeats=1"] if "cost" in cfg.probes else []
    values += ["probes.gradient_norm.per_class=1"] if "gradient_norm" in cfg.probes else []
    values += [
        f"probes.criteria.criteria.{criterion}.per_class=1"
        for criterion in ("snip", "grasp")
        if "criteria" in cfg.probes
    ]
    make_data(cfg, folder / "data")
    return composed([f"+exp={name}", *instead, *values, *FURTHER.get(name, []), *overrides])


def make_data(cfg: DictConfig, folder: Path) -> None:
    """The cache file (contract 4.5) of random images for data that would be read from one."""
    if cfg.data.scaling == "none":
        return  # signals, which are generated
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        shape = (count, *cfg.data.shape)
        arrays[f"{part}_images"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        arrays[f"{part}_labels"] = torch.arange(count) % cfg.data.classes
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / f"{cfg.data.name}.safetensors")


def ladder(cfg: DictConfig, shapes: dict[str, torch.Size], ignored: int, rounds: int) -> list[int]:
    """Kept weights after each round as docs/methods/imp.md states them: round, n + 1, or ceil of all, + 1."""
    method = cfg.method
    if method.scope == "layer":
        groups = {name: (shape.numel(), layer_rate(method, name)) for name, shape in shapes.items()}
    else:
        groups = {"all": (sum(shape.numel() for shape in shapes.values()), method.rate)}
    totals = [0] * (rounds + 1)
    for kept, rate in groups.values():
        for k in range(rounds + 1):
            totals[k] += kept
            drop = {
                "exact": round(rate * kept),
                "glth": round(rate * kept) + 1,
                "openlth": math.ceil(rate * (kept + ignored)) + 1,
            }
            kept -= drop[method.count]
    return totals


def layer_rate(method: DictConfig, name: str) -> float:
    """The published tables name a rate for `conv*` and for `output`; all other layers have the common one."""
    return next((rate for pattern, rate in method.rates.items() if name.startswith(pattern.rstrip("*"))), method.rate)


def check_folder(folder: Path, rows: list[Row]) -> None:
    """The run folder of contract 4.2: every file, one line, mask and record a round."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps(rows))
    rounds = sorted({row["round"] for row in rows})
    kinds = (".safetensors", ".units.safetensors") if "units" in rows[0] else (".safetensors",)
    masks = sorted(f"round_{k:03d}{kind}" for k in rounds for kind in kinds)
    assert sorted(path.name for path in (folder / "masks").iterdir()) == masks
    assert sorted(path.name for path in (folder / "rounds").iterdir()) == [f"round_{k:03d}.json" for k in rounds]
    assert {"config.yaml", "curves.csv", "study.log"} <= {path.name for path in folder.iterdir()}
    assert any((folder / "figures").glob("*.png"))


def check_ladder(cfg: DictConfig, rows: list[Row]) -> None:
    """The counts of iterative pruning, over the weights that a network built here has."""
    config = settings(cfg)
    network = build(config.model, tuple(config.data.shape), config.data.classes, seed=0)
    shapes, total = prunable(network, config.prunable.exclude), all_weights(network)
    never = total - sum(shape.numel() for shape in shapes.values())
    expected = ladder(cfg, shapes, never, rounds=2)
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["kept"] for row in rows] == expected
    assert [row["density_weights"] for row in rows] == pytest.approx([(kept + never) / total for kept in expected])
    rewound = 1 if cfg.rewind.to == "1it" else 0
    assert [row["steps"] for row in rows] == [2, 2 - rewound, 2 - rewound]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in PRESETS if name not in QUICK)]
)
def test_runs(name: str, tmp_path: Path) -> None:
    cfg = tiny(name, tmp_path)
    study = Study(cfg)
    rows = study.run()
    assert study.folder.path == tmp_path / "runs" / name / study.key
    check_folder(study.folder.path, rows)
    for row in rows:
        assert 0 <= row["test_accuracy"] <= 1
        assert 0 < row["density"] <= 1
        selected = (row["val_loss"], row["early_stop_step"], row["early_stop_test_accuracy"])
        # Nothing held out: nothing is selected, least of all on the test set (docs/methods/imp.md).
        assert (None not in selected) if cfg.data.validation else (selected == (None, None, None))
    if cfg.method._target_ == IMP:
        check_ladder(cfg, rows)
    elif "remove" in cfg.method:
        assert [len(row["removed_units"]) for row in rows] == [0, *cfg.method.remove]
    elif "density" in cfg.method:
        assert [row["round"] for row in rows] == [0, 1]
        by_layer = cfg.method.get("pattern") in ("filter", "channel") or cfg.method.get("scope") == "layer"
        by_layer |= name.startswith("filter_tickets")
        slack = (
            0.5 if not by_layer else 0.1 * rows[0]["kept"]
        )  # each layer keeps a whole number of groups, or of weights
        assert abs(rows[1]["kept"] - cfg.method.density * rows[0]["kept"]) <= slack


# -- the arms of Renda et al. -----------------------------------------------------------------------------------------

KEPT = {"weights": "keep", "batchnorm": "keep"}
ARMS = [  # what is added to +exp=renda_resnet20, and the policy that it must become
    ([], {"to": "52ep", "weights": "rewind", "batchnorm": "rewind", "schedule": "rewind"}),
    (["rewind=lr"], {"to": "52ep", "schedule": "rewind"} | KEPT),
    (["rewind=finetune"], {"to": "52ep", "schedule": "keep"} | KEPT),
    (["rewind=lr", "rewind.to=32ep"], {"to": "32ep", "schedule": "rewind"} | KEPT),
    (["rewind.to=init"], {"to": "init", "weights": "rewind", "schedule": "rewind"}),
    (["rewind=init"], {"to": "init", "weights": "rewind", "schedule": "rewind"}),
    (["rewind=weights"], {"to": "52ep", "weights": "rewind", "schedule": "rewind"}),
    (["rewind=init", "rewind.to=2ep"], {"to": "2ep", "weights": "rewind", "schedule": "rewind"}),
]


@pytest.mark.parametrize(("overrides", "policy"), ARMS, ids=[" ".join(arm[0]) or "default" for arm in ARMS])
def test_the_arms_of_renda_are_chosen_on_the_command_line(overrides: list[str], policy: dict[str, str]) -> None:
    rewind = composed(["+exp=renda_resnet20", *overrides]).rewind
    assert {key: rewind[key] for key in policy} == policy
    assert rewind.optimizer == "reset"


def test_the_arms_of_renda_start_where_they_say(tmp_path: Path) -> None:
    """Renda et al. 2020: weights from the dense run's step, or from its end; and of fine-tuning alone the last rate."""
    dense, ticket = {}, {}
    for arm in ("weights", "lr", "finetune"):
        cfg = tiny("renda_resnet20", tmp_path, f"rewind={arm}", "rewind.to=1it", "method.rounds=1")
        dense[arm], ticket[arm] = typed_method(cfg.method)(Lab(settings(cfg), StopFlag(), lambda *_: None))
    trained = dense["weights"].trained
    assert {round.trained.key for round in dense.values()} == {trained.key}, "the dense training is shared"
    assert len({round.mask.digest for round in ticket.values()}) == 1, "and so is the first mask"
    starts = {arm: round.ticket.state for arm, round in ticket.items()}
    assert starts == {"weights": trained.at(1), "lr": trained.state, "finetune": trained.state}
    assert trained.state not in (trained.at(0), trained.at(1))
    assert [(round.ticket.step, round.ticket.steps) for round in ticket.values()] == [(1, 1)] * 3
    assert [arm for arm, round in ticket.items() if round.ticket.hold_lr] == ["finetune"]


# -- the start of airbench --------------------------------------------------------------------------------------------


def test_airbench_starts_from_its_training_images_and_keeps_that_layer(tmp_path: Path) -> None:
    """Its whitening is in the start state of the ticket and of reinit controls; all else of a reinit is drawn anew."""
    lab = Lab(settings(tiny("fast_airbench", tmp_path)), StopFlag(), lambda *_: None)
    start, whiten = lab.initial.state.tensors(), "whiten.weight"
    assert whiten not in lab.initial.mask
    assert not torch.equal(start[whiten], lab.network().state_dict()[whiten]), "not as drawn"
    assert torch.equal(lab.initial_state(5).tensors()[whiten], start[whiten])
    assert not torch.equal(lab.initial_state(5).tensors()["fc.weight"], start["fc.weight"])
    fewer = Lab(settings(tiny("fast_airbench", tmp_path, "data.limit=20")), StopFlag(), lambda *_: None)
    assert not torch.equal(fewer.initial.state.tensors()[whiten], start[whiten])
    trained = lab.train(lab.initial).state.tensors()
    assert torch.equal(trained[whiten], start[whiten])
    assert not torch.equal(trained["whiten.bias"], start["whiten.bias"])
    save_file(trained, tmp_path / "trained.safetensors")
    weights = f"model.weights={tmp_path / 'trained.safetensors'}"
    loaded = Lab(settings(tiny("fast_airbench", tmp_path, "data.limit=20", weights)), StopFlag(), lambda *_: None)
    assert torch.equal(loaded.initial.state.tensors()[whiten], start[whiten]), "a weights file has a start of its own"


def test_an_option_chosen_on_the_command_line_wins_over_the_preset() -> None:
    cfg = composed(["+exp=lth_conv2", "optim=sgd"])
    assert (cfg.optim.name, cfg.optim.lr) == ("sgd", 0.1)  # not Conv-2's Adam rate of 2e-4
    assert composed(["+exp=lth_conv2", "optim=sgd", "optim.lr=0.3"]).optim.lr == 0.3
    assert composed(["+exp=lth_conv2"]).optim.lr == 2e-4
