"""Every `model=` option composes with Hydra, fits the data it is meant for, and has the weights that it announces."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from torch import nn

from lottery.config.models import SCHEMAS
from lottery.errors import ConfigError
from lottery.models.build import build, check_fit

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def composed():
    """(name, overrides) -> the plain options of `model=name`."""
    for family, schema in SCHEMAS.items():
        ConfigStore.instance().store(group="schema/model", name=family, node=schema)

    def options(name: str, *overrides: str) -> dict:
        with initialize_config_dir(str(CONF), version_base=None):
            config = compose(overrides=[f"+model={name}", *overrides])
        return OmegaConf.to_container(config.model, resolve=True)

    return options


def test_the_list_is_complete():
    assert set(NAMES) >= {
        *(
            "lenet_300_100",
            "mlp",
            "conv2",
            "conv4",
            "conv6",
            "resnet20",
            "resnet32",
            "resnet44",
            "resnet56",
            "resnet110",
        ),
        *("vgg11", "vgg13", "vgg16", "vgg19", "wide_resnet", "timm", "torchvision"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_has_the_weights_that_its_comment_announces(composed, name):
    options = composed(name)
    shape = (1, 28, 28) if name in ("lenet_300_100", "mlp") else (3, 32, 32)
    check_fit(options, shape, 10)
    announced = re.search(r"([\d.,]+)(M?) weights", (CONF / "model" / f"{name}.yaml").read_text())
    with torch.device("meta"):
        module, _, factory = options.pop("_target_").rpartition(".")
        for own in ("init", "weights", "drop_head", "bn_scale"):
            options.pop(own, None)
        network = getattr(sys.modules[module], factory)(shape=shape, classes=10, **options)
    count = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert announced, "the comment gives the number of weights"
    assert f"{count / 1e6:.1f}" == announced[1] if announced[2] else f"{count:,}" == announced[1]


@pytest.mark.parametrize(
    ("name", "overrides", "attribute", "value"),
    [
        ("mlp", ["model.hidden=[20,30,5]"], "fc3.out_features", 5),
        ("conv4", ["model.dropout=0.5"], "dropout1.p", 0.5),
        ("resnet20", ["model.width=4", "model.shortcut=pad"], "fc.in_features", 16),
        ("timm", ["model.name=resnet10t", "+model.options.drop_rate=0.25"], "drop_rate", 0.25),
        ("torchvision", ["model.name=squeezenet1_1", "+model.options.dropout=0.25"], "classifier.0.p", 0.25),
    ],
)
def test_overrides_reach_the_network(composed, name, overrides, attribute, value):
    found = build(composed(name, *overrides), (3, 32, 32), 10, seed=0)
    for part in attribute.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("override", ["model.dept=20", "model.depth=deep"])
def test_misspelt_options_fail_before_anything_runs(composed, override):
    with pytest.raises(ConfigCompositionException):
        composed("resnet20", override)


def test_options_added_by_force_fail_before_anything_runs(composed):
    with pytest.raises(ConfigError, match="'shortcuts'; it takes depth, width, shortcut"):
        check_fit(composed("resnet20", "+model.shortcuts=pad"), (3, 32, 32), 10)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_schemas_are_plain_dataclasses_with_working_defaults(schema):
    options = dataclasses.asdict(schema())
    assert options.keys() >= {"_target_", "init", "weights"}
    if schema.__name__ != "WideResNet":  # WRN-28-10 is checked above
        check_fit(options, (3, 32, 32), 10)


def test_options_need_no_torch():
    code = "import sys, lottery.config.models, lottery.models.checks; print(*({'torch', 'timm'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONF.parent)
    assert done.stdout == "\n"
