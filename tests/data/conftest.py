"""What the tests of the data share: options without Hydra, small made-up arrays, the real files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lottery.config.data import Data
from lottery.data.dataset import Dataset
from lottery.data.load import load
from lottery.data.order import Split
from lottery.data.tensors import Arrays, TensorDataset

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.fixture
def read_options() -> Callable[..., Data]:
    """The options of `conf/data/CONFIG.yaml`, typed as Hydra types them, with overrides."""

    def read(config: str, /, **overrides: object) -> Data:
        merged = OmegaConf.merge(OmegaConf.structured(Data), OmegaConf.load(CONF / f"{config}.yaml"), overrides)
        options = OmegaConf.to_object(merged)
        assert isinstance(options, Data)
        return options

    return read


@pytest.fixture
def make_arrays() -> Callable[..., Arrays]:
    """Random images whose first pixel (first channel) is the image's own number, modulo 256."""

    def make(count: int = 50, shape: tuple[int, ...] = (3, 6, 5), dtype: torch.dtype = torch.uint8) -> Arrays:
        generator = torch.Generator().manual_seed(1)
        found = {}
        for part, size in (("train", count), ("test", 7)):
            images = torch.randint(1, 256, (size, *shape), generator=generator)
            images.flatten(1)[:, 0] = torch.arange(size) % 256
            found[f"{part}_images"] = images.to(dtype)
            found[f"{part}_labels"] = torch.arange(size) % 10
        return Arrays.of(found, "made-up arrays")

    return make


@pytest.fixture
def make_dataset(make_arrays: Callable[..., Arrays]) -> Callable[..., TensorDataset]:
    """A data set of such arrays; keywords are options of Data, or `count` and `split_seed`."""

    def make(count: int = 50, split_seed: int = 0, **overrides: object) -> TensorDataset:
        settings = {"classes": 10, "shape": [3, 6, 5], "scaling": "unit", "name": "made", **overrides}
        options = Data("none", **settings)  # type: ignore[arg-type]
        arrays = make_arrays(count, tuple(options.shape), torch.float32 if options.scaling == "none" else torch.uint8)
        return arrays.dataset(options, Split.draw(count, options.validation, options.limit, split_seed))

    return make


@pytest.fixture
def real(read_options: Callable[..., Data]) -> Callable[..., Dataset]:
    """A data set from its real file in $LOTTERY_DATA; skips where that is not to be had."""

    def read(name: str, **overrides: object) -> Dataset:
        folder = os.environ.get("LOTTERY_DATA")
        if not folder:
            pytest.skip("LOTTERY_DATA is not set")
        if not (Path(folder) / f"{name}.safetensors").exists():
            pytest.skip(f"{name}.safetensors is not in $LOTTERY_DATA")
        return load(read_options(name, **overrides), Path(folder), split_seed=0)

    return read
