"""The residual-network presets on real CIFAR-10: few steps, two rounds, the whole way from images to run folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lottery.__main__ import main
from lottery.ticket import Mask

DATA = os.environ.get("LOTTERY_DATA", "")
CIFAR = Path(DATA or "data") / "cifar10.safetensors"

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif(not CIFAR.exists(), reason=f"no {CIFAR}: set LOTTERY_DATA to a folder that has it"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first 600 training and 200 test images: measuring all 10,000 takes most of the time."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"train": 600, "test": 200}
    found = load_file(CIFAR)
    save_file({k: v[: sizes[k.partition("_")[0]]].contiguous() for k, v in found.items()}, folder / CIFAR.name)
    return folder


@pytest.mark.parametrize(("preset", "rewind"), [("lth_resnet20", "init"), ("stabilizing_resnet20", "2it")])
def test_two_rounds_on_real_images(preset: str, rewind: str, images: Path, tmp_path: Path, undrawn: None) -> None:
    overrides = ["train.steps=4it", "train.eval_every=2it", "method.rounds=2", "data.limit=256", "data.validation=100"]
    paths = [f"paths.runs={tmp_path}", f"paths.data={images}"]
    scale = ["schedule.milestones=[2it,3it]", f"rewind.to={rewind}", "controls=none"]
    assert main([f"+exp={preset}", *overrides, *paths, *scale, "tracker=none"]) == 0
    (run,) = (tmp_path / preset).iterdir()
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    # LTH prunes 3x3 convolutions only: 267,696 of ResNet-20's 270,896 weights (specification, 0.1)
    assert [row["kept"] for row in rows] == [267_696, 214_157, 171_326]
    assert rows[2]["density_weights"] == pytest.approx((3_200 + 171_326) / 270_896)
    masks = [Mask.load(run / "masks" / f"round_{k:03d}.safetensors") for k in range(3)]
    assert masks[2].issubset(masks[1])
    assert masks[1].issubset(masks[0])
    assert not any("shortcut" in name or name.startswith("fc") for name in masks[0])
    assert all(row["steps"] == 4 - (row["step_rewind"] if row["round"] else 0) for row in rows)
