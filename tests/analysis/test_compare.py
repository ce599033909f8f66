"""`compare`: tickets of several studies against each other, from run folders alone (docs/analysis.md)."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from command_line_tools import Outcome, call
from training_tools import SMALL, draw_nothing

from lottery.analysis.compare import labels
from lottery.analysis.comparison import chosen, measured
from lottery.compose import composed
from lottery.errors import LotteryError
from lottery.record.masks import check_alike, read_mask
from lottery.record.run import Run
from lottery.study import Study
from lottery.ticket import Mask


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two methods and three seeds at the densities 1 and 0.5, several rewind points, and another network."""
    root = tmp_path_factory.mktemp("compare")
    small = [override for override in SMALL if not override.startswith("method.")]
    studies = {
        "imp 0": ["method.rounds=1", "method.rate=0.5"],
        "imp 1": ["method.rounds=1", "method.rate=0.5", "seed=1"],
        "magnitude 0": ["method=pai", "method.density=0.5"],
        "imp 2": ["method.rounds=1", "method.rate=0.5", "seed=2"],
        "magnitude 1": ["method=pai", "method.density=0.5", "seed=1"],
        "magnitude 2": ["method=pai", "method.density=0.5", "seed=2"],
        "faster": ["method.rounds=1", "method.rate=0.5", "optim.lr=0.1"],
        "points": ["method=instability", "method.points=[init,7it]", "method.measured=[0,1]", "method.rate=0.5"],
        "twice": ["method.rounds=2", "method.rate=0.4"],
        "wider": ["method.rounds=1", "method.rate=0.5", "model.hidden=[20]"],
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        for name, overrides in studies.items():
            study = Study(composed([*small, "model.hidden=[10]", "train.steps=12it", *overrides, f"paths.runs={root}"]))
            study.run()
            found[name] = study.folder.path
    return found


def compared(runs: dict[str, Path], *names: str, out: Path, more: tuple[str, ...] = ()) -> Outcome:
    return call("compare", *(str(runs[name]) for name in names), "--out", str(out), *more)


@pytest.mark.slow
def test_a_table_and_a_heat_map_of_every_pair(runs: dict[str, Path], tmp_path: Path) -> None:
    outcome = compared(runs, "imp 0", "imp 1", "magnitude 0", out=tmp_path)
    assert (outcome.status, outcome.err) == (0, "")
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    masks = {
        name: Mask.load(runs[name] / "masks" / "round_001.safetensors") for name in ("imp 0", "imp 1", "magnitude 0")
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
    accuracies = [100 * row["test_accuracy"] for name in ("imp 0", "imp 1") for row in Run(runs[name]).rows[1:]]
    low, high = (f"{value:.2f}" for value in sorted(accuracies))
    assert f"test accuracy {sum(accuracies) / 2:.2f} % ({low} … {high}, n = 2)" in outcome.out


def test_two_methods_and_three_seeds_are_compared_within_ten_seconds(runs: dict[str, Path], tmp_path: Path) -> None:
    six = [f"{method} {seed}" for method in ("imp", "magnitude") for seed in range(3)]
    began = perf_counter()
    outcome = compared(runs, *six, out=tmp_path)
    assert perf_counter() - began < 10
    assert outcome.status == 0
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 1 + 15
    assert outcome.out.count("between seeds: IoU") == 2
    assert re.search(r"magnitude at init, same seed: IoU .* \(n = 3\)", outcome.out)  # that share initial weights
    assert re.search(r"magnitude at init, different seeds: IoU .* \(n = 6\)", outcome.out)


def test_every_rewind_point_of_a_study_takes_part(runs: dict[str, Path], tmp_path: Path) -> None:
    """None is left out in silence; and they are told apart."""
    entries = chosen([runs["points"], runs["imp 0"]], None)
    assert [(entry.row["step_rewind"], entry.several) for entry in entries] == [(0, True), (7, True), (7, False)]
    assert len(set(labels(entries))) == len({entry.name for entry in entries}) == 3
    assert measured(*entries[1:]).overlap.iou == 1, "the same ticket, by another method's name"
    outcome = compared(runs, "points", "imp 0", out=tmp_path)
    assert "IMP from several rewind points, among themselves: IoU" in outcome.out
    assert "IMP from several rewind points, seed 0, step 7" in outcome.out


def test_runs_that_differ_in_more_than_their_seeds_are_not_called_seeds(runs: dict[str, Path], tmp_path: Path) -> None:
    outcome = compared(runs, "imp 0", "faster", out=tmp_path)
    assert "among themselves" in outcome.out
    assert "between seeds" not in outcome.out
    first, second = labels(chosen([runs["imp 0"], runs["faster"]], None))
    assert first != second


def test_other_data_and_methods_without_words_of_their_own_are_named(runs: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "study" / "other"
    shutil.copytree(runs["imp 0"], other, ignore=shutil.ignore_patterns("manifest.json"))
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("name: digits", "name: mnist").replace("imp.IMP", "bip.BiP"))
    entries = chosen([runs["imp 0"], other], None)
    assert [entry.group for entry in entries] == ["BiP", "IMP, rewound to 7it"]
    assert labels(entries) == ["MLP 10 on MNIST (96 images), BiP, seed 0", f"{entries[1].subject}, {entries[1].words}"]
    assert "digits" in entries[1].subject


def test_an_unfinished_study_is_compared_and_said_to_be(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "study" / "cut"
    shutil.copytree(runs["imp 0"], run)
    status = run / "status.json"
    status.write_text(status.read_text().replace('"done"', '"interrupted"'))
    outcome = call("compare", str(run), str(runs["imp 1"]), "--out", str(tmp_path))
    assert outcome.status == 0
    assert outcome.line == f"lottery: {run} is not finished (interrupted): the rounds that it has are compared"


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


def test_the_lowest_density_that_all_have_is_taken(runs: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "twice" / "again"
    shutil.copytree(runs["twice"], again, ignore=shutil.ignore_patterns("manifest.json"))
    assert {entry.row["round"] for entry in chosen([runs["twice"], again], None)} == {2}
    assert {entry.row["round"] for entry in chosen([runs["twice"], again], 0.6)} == {1}
    table = again / "rounds.jsonl"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:2]))
    assert {entry.row["round"] for entry in chosen([runs["twice"], again], None)} == {1}


def test_dense_networks_are_compared_only_where_that_is_asked_for(runs: dict[str, Path]) -> None:
    """All their masks are equal: a table of ones would look like a result."""
    with pytest.raises(LotteryError, match=r"not pruned to a density that all have .*: 100, 60, 35.9 %; .*: 100, 50 %"):
        chosen([runs["twice"], runs["imp 0"]], None)
    assert {entry.row["density"] for entry in chosen([runs["twice"], runs["imp 0"]], 1.0)} == {1.0}
    with pytest.raises(LotteryError, match=r"has no ticket of 50 %; its densities are 100, 60, 35.9 %"):
        chosen([runs["twice"], runs["imp 0"]], 0.5)


def test_masks_are_read_as_they_were_written(runs: dict[str, Path], tmp_path: Path) -> None:
    path = runs["imp 0"] / "masks" / "round_001.safetensors"
    mask, packed = Mask.load(path), read_mask(path)
    assert packed.sizes == {name: shape.numel() for name, shape in mask.shapes.items()}
    for name, bits in packed.bits.items():
        kept = np.unpackbits(bits, count=packed.sizes[name]).astype(bool)
        assert np.array_equal(kept, mask[name].view(-1).numpy())
    assert packed.shapes == {name: tuple(shape) for name, shape in mask.shapes.items()}
    damaged = tmp_path / "round_001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    damaged.write_bytes(data)
    with pytest.raises(LotteryError, match="does not match its digest"):
        read_mask(damaged)


def test_layers_of_as_many_bytes_but_other_shapes_are_other_networks(tmp_path: Path) -> None:
    found = []
    for number, shape in enumerate(((3, 5), (5, 3), (4, 4))):
        path = tmp_path / f"{number}.safetensors"
        Mask.ones({"w": torch.Size(shape)}).save(path, round=1, study="s", parent=None)
        found.append(read_mask(path))
    check_alike(found[0], found[0])
    for other in found[1:]:
        with pytest.raises(LotteryError, match=r"different networks: 'w' is \[3, 5\] and "):
            check_alike(found[0], other)


def test_what_cannot_be_compared_is_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "different networks" in compared(runs, "twice", "wider", out=tmp_path / "a").line  # before densities
    other = compared(runs, "imp 0", "wider", out=tmp_path / "a")
    assert other.status == 1
    assert "different networks" in other.line
    assert str(runs["wider"]) in other.line
    empty = tmp_path / "empty"
    empty.mkdir()
    unfinished = call("compare", str(runs["imp 0"]), str(empty))
    assert (unfinished.status, "has not finished a round yet" in unfinished.line) == (1, True)
    rest = call("compare", *map(str, (runs["imp 0"], empty, runs["imp 1"])), "--out", str(tmp_path / "c"))
    assert (rest.status, rest.line) == (0, f"lottery: {empty} has not finished a round yet: it is left out")
    twice = call("compare", str(runs["imp 0"]), f"{runs['imp 0']}/")
    assert (twice.status, "two run folders, different ones" in twice.line) == (2, True)
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
