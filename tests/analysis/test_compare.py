"""`compare`: tickets of several studies against each other, from run folders alone (methods.md 1, T1.7; 2.2)."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line_tools import Outcome, call
from training_tools import SMALL

from lottery.analysis.compare import chosen, measured
from lottery.analysis.masks import read_mask
from lottery.compose import composed
from lottery.errors import LotteryError
from lottery.study import Study
from lottery.ticket import Mask


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two methods and two seeds at the densities 1 and 0.5, and another network."""
    root = tmp_path_factory.mktemp("compare")
    small = [override for override in SMALL if not override.startswith("method.")]
    studies = {
        "imp 0": ["method.rounds=1", "method.rate=0.5"],
        "imp 1": ["method.rounds=1", "method.rate=0.5", "seed=1"],
        "magnitude 0": ["method=pai", "method.density=0.5"],
        "twice": ["method.rounds=2", "method.rate=0.4"],
        "wider": ["method.rounds=1", "method.rate=0.5", "model.hidden=[20]"],
    }
    found = {}
    for name, overrides in studies.items():
        study = Study(composed([*small, "model.hidden=[10]", "train.steps=12it", *overrides, f"paths.runs={root}"]))
        study.run()
        found[name] = study.folder.path
    return found


def compared(runs: dict[str, Path], *names: str, out: Path, more: tuple[str, ...] = ()) -> Outcome:
    return call("compare", *(str(runs[name]) for name in names), "--out", str(out), *more)


def test_a_table_and_a_heat_map_of_every_pair(runs: dict[str, Path], tmp_path: Path) -> None:
    outcome = compared(runs, "imp 0", "imp 1", "magnitude 0", out=tmp_path)
    assert (outcome.status, outcome.err) == (0, "")
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    masks = {
        name: Mask.load(path / "masks" / "round_001.safetensors") for name, path in runs.items() if name != "twice"
    }
    names = {str(path): name for name, path in runs.items()}
    for row in rows:
        one, other = masks[names[row["run"]]], masks[names[row["other"]]]
        common = sum(int((one[layer] & other[layer]).sum()) for layer in one)
        assert float(row["iou"]) == pytest.approx(common / (one.kept + other.kept - common))
        assert float(row["density"]) == float(row["other_density"]) == 0.5
        assert float(row["l2"]) > 0
        assert 0 < float(row["angle"]) < 180
    assert (tmp_path / "overlap.png").read_bytes()[:4] == b"\x89PNG"
    assert "IMP, rewound to 7it, between seeds: IoU" in outcome.out
    assert "(n = 1)" in outcome.out


def test_a_run_with_itself_has_all_in_common(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copies" / "again"
    shutil.copytree(runs["imp 0"], copy)
    pair = measured(*chosen([runs["imp 0"], copy], None))
    assert (pair.overlap.iou, pair.overlap.hamming, pair.l2, pair.angle) == (1.0, 0.0, 0.0, 0.0)
    assert pair.overlap.iou_chance < 1


def test_run_folders_alone_do(runs: dict[str, Path], tmp_path: Path) -> None:
    """Without the store there are no weights, and so no distances: the rest is the same."""
    moved = {}
    for name in ("imp 0", "imp 1"):
        moved[name] = tmp_path / "elsewhere" / "runs" / name.replace(" ", "-")
        shutil.copytree(runs[name], moved[name])
        config = moved[name] / "config.yaml"
        config.write_text(config.read_text().replace(str(runs[name].parents[1]), "/nowhere"))
    with_store = measured(*chosen([runs["imp 0"], runs["imp 1"]], None))
    without = measured(*chosen([moved["imp 0"], moved["imp 1"]], None))
    assert without.overlap == with_store.overlap
    assert (without.l2, without.angle) == (None, None)
    assert compared(moved, "imp 0", "imp 1", out=tmp_path).status == 0


def test_the_lowest_density_that_all_have_is_taken(runs: dict[str, Path]) -> None:
    entries = chosen([runs["twice"], runs["imp 0"]], None)
    assert [entry.row["density"] for entry in entries] == [1.0, 1.0]
    with pytest.raises(LotteryError, match=r"has no ticket of 50 %; its densities are 100, 60, 35.9 %"):
        chosen([runs["twice"], runs["imp 0"]], 0.5)


def test_masks_are_read_as_they_were_written(runs: dict[str, Path], tmp_path: Path) -> None:
    path = runs["imp 0"] / "masks" / "round_001.safetensors"
    mask, packed = Mask.load(path), read_mask(path)
    assert packed.sizes == {name: shape.numel() for name, shape in mask.shapes.items()}
    for name, bits in packed.bits.items():
        kept = np.unpackbits(bits, count=packed.sizes[name]).astype(bool)
        assert np.array_equal(kept, mask[name].view(-1).numpy())
    damaged = tmp_path / "round_001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    damaged.write_bytes(data)
    with pytest.raises(LotteryError, match="does not match its digest"):
        read_mask(damaged)


def test_what_cannot_be_compared_is_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    other = compared(runs, "imp 0", "wider", out=tmp_path / "a")
    assert other.status == 1
    assert "different networks" in other.line
    assert str(runs["wider"]) in other.line
    empty = tmp_path / "empty"
    empty.mkdir()
    unfinished = call("compare", str(runs["imp 0"]), str(empty))
    assert (unfinished.status, "has not finished a round yet" in unfinished.line) == (1, True)
    alone = call("compare", str(runs["imp 0"]))
    assert (alone.status, "at least two run folders" in alone.line) == (2, True)
    wrong = compared(runs, "imp 0", "imp 1", out=tmp_path / "b", more=("--density", "1.5"))
    assert (wrong.status, "--density: got 1.5" in wrong.line) == (2, True)
    assert not (tmp_path / "a").exists()


def test_no_torch_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lottery", "torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    __import__("lottery.analysis.compare")
