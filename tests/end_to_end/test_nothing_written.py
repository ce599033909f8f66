"""What only a training would find out about data and network is found before it: one line, and nothing written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig
from torch import nn

from lottery.errors import ConfigError
from lottery.study import Study


def normalised(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))


def test_a_last_batch_of_one_image_that_normalisation_refuses(configure: Callable[..., DictConfig]) -> None:
    def study(*overrides: str) -> Study:
        cfg = configure("data.limit=97", *overrides)
        cfg.model = {"_target_": "test_nothing_written.normalised"}
        return Study(cfg)

    wrong = study()
    with pytest.raises(ConfigError, match=r"train\.batch_size: got 16 for 97 images, .*train\.drop_last=true; model: "):
        wrong.run()
    assert not wrong.folder.path.parent.parent.exists()
    study("train.drop_last=true").prepared()
    study("train.steps=6it", "rewind.to=0it").prepared()  # it does not come up
    cfg = configure("data.limit=97")  # nor does it matter to normalisation over many positions
    Study(cfg).prepared()
