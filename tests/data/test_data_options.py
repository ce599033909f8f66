"""The options: every shipped config is complete and valid, every bad value is refused in a line that names its key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from lottery.config.data import Data, check
from lottery.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "data"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def test_every_data_set_has_a_config():
    assert NAMES == [
        "cifar10",
        "cifar100",
        "cifar10_image_std",
        "digits",
        "fashion_mnist",
        "imagefolder",
        "mnist",
        "mnist1d",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_config_is_complete_valid_and_documented(name, read_options):
    check(read_options(name))
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "validation", "augmented"),  # validation: LTH's splits (Frankle and Carbin 2019)
    [
        ("mnist", 5000, False),
        ("fashion_mnist", 5000, False),
        ("cifar10", 5000, True),
        ("cifar10_image_std", 5000, True),
        ("cifar100", 5000, True),
        ("mnist1d", 500, False),
        ("digits", 200, False),
    ],
)
def test_splits_and_augmentation_are_the_papers(name, validation, augmented, read_options):
    options = read_options(name)
    assert options.validation == validation
    assert (options.flip, options.crop) == ((True, 4) if augmented else (False, 0))


def test_misspelt_key_is_refused():
    with pytest.raises(ConfigKeyError, match="validaton"):
        OmegaConf.merge(OmegaConf.structured(Data), {"validaton": 5})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", 1),
        ("shape", [28]),
        ("shape", [1, 0, 28]),
        ("shape", []),
        ("scaling", "standart"),
        ("mean", [0.5]),
        ("std", [0.5, 0.5]),
        ("std", [0.5, 0.5, 0.0]),
        ("crop", -1),
        ("crop", 32),
        ("validation", -1),
        ("limit", 0),
        ("limit", -5),
        ("workers", -1),
        ("resize", -1),
        ("resize", 31),
    ],
)
def test_bad_value_is_named(key, value, read_options):
    options = read_options("cifar10")
    setattr(options, key, value)
    with pytest.raises(ConfigError) as caught:
        check(options)
    message = str(caught.value)
    assert message.startswith(f"data.{key}: got {value!r}, expected ")
    assert "\n" not in message


@pytest.mark.parametrize("options", [{"flip": False}, {"resize": 40}])
def test_only_flips_in_memory_alternate(options, read_options):
    with pytest.raises(
        ConfigError, match=r"data\.alternate: got True, expected false, or data\.flip=true and data in mem"
    ):
        check(read_options("cifar10", alternate=True, **options))


@pytest.mark.parametrize(("key", "value"), [("flip", True), ("alternate", True), ("crop", 2)])
def test_signals_are_not_flipped_or_cropped(key, value, read_options):
    with pytest.raises(ConfigError, match=rf"^data\.{key}: .*signals"):
        check(read_options("mnist1d", **{key: value}))


def test_options_need_no_torch():
    code = "import sys, lottery.config.data; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
