"""BiP, jackpots and edge-popup as rounds, and what they leave in the run folder (docs/methods/)."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line_tools import call
from pretrained_tools import efficientnet_lite0
from safetensors import safe_open
from safetensors.torch import save_file
from training_tools import SMALL, TINY, assert_pruned_are_zero, assert_same_bits

from lottery.compose import checked, composed
from lottery.pruning.prune import prune_to
from lottery.state import load_state
from lottery.study import Study
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining

pytestmark = pytest.mark.usefixtures("undrawn")

COMMON = [option for option in SMALL if not option.startswith("method.")]
SHORT = ["method.steps=10it"]
JACKPOT = ["method=jackpot", "allocation=magnitude_ratio", *SHORT]
Rows = list[dict[str, Any]]


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., tuple[Study, Rows]]:
    """The small study of a method, run to its end, in a network with convolutions."""

    def run(*overrides: str) -> tuple[Study, Rows]:
        cfg = composed([*COMMON, f"paths.runs={tmp_path}", *overrides])
        cfg.model = TINY
        made = Study(checked(cfg))
        return made, made.run()

    return run


def found_mask(study: Study) -> Mask:
    return Mask.load(study.folder.path / "masks" / "round_001.safetensors")


def trained(study: Study, number: int) -> dict[str, torch.Tensor]:
    key = json.loads((study.folder.path / "rounds" / f"round_{number:03d}.json").read_text())["stages"]["train"]
    return load_state(study.folder.path.parent.parent / ".store" / "train" / key / "state.safetensors")


@pytest.mark.parametrize("method", [["method=bip", *SHORT], JACKPOT, ["method=edge_popup", *SHORT]], ids=str)
def test_the_table_says_what_was_found_and_what_it_took(study: Callable[..., Any], method: list[str]) -> None:
    made, (dense, found) = study(*method, "method.density=0.3")
    mask = found_mask(made)
    assert dense["density"] == 1
    assert found["kept"] == mask.kept
    if method[0] != "method=edge_popup":  # whose layers are rounded one by one
        assert mask.kept == round(0.3 * mask.size)
    assert found["steps"] == 0
    assert found["search_steps"] == 10
    assert found["search_batches"] == (20 if method[0] == "method=bip" else 10)
    assert found["seconds"] >= found["search_seconds"] > 0
    assert_pruned_are_zero(trained(made, 1), mask)
    stages = json.loads((made.folder.path / "rounds" / "round_001.json").read_text())["stages"]
    assert (made.folder.path.parent.parent / ".store" / "search" / stages["search"] / "DONE").exists()


def test_a_mask_that_was_searched_for_anew_is_not_cached(study: Callable[..., Any]) -> None:
    """Not even where the training that follows is found."""
    made, _ = study(*JACKPOT)
    shutil.rmtree(made.folder.path.parent.parent / ".store" / "search")
    shutil.rmtree(made.folder.path)
    assert [row["cached"] for row in study(*JACKPOT)[1]] == [True, False]


def test_again_it_is_the_same_table_with_nothing_computed(
    study: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = study(*JACKPOT, "method.tune.steps=5it")
    assert [row["cached"] for row in first] == [False, False]
    monkeypatch.setattr(MaskedTraining, "advance", lambda *_: pytest.fail("trained again"))
    _, again = study(*JACKPOT, "method.tune.steps=5it")
    assert again == first


def test_the_dense_network_is_the_one_that_imp_trains(study: Callable[..., Any]) -> None:
    _, imp = study("method=imp", "method.rounds=1")
    _, bip = study("method=bip", *SHORT)
    assert bip[0]["cached"]
    assert bip[0]["weights_digest"] == imp[0]["weights_digest"]


def test_the_search_is_written_down(study: Callable[..., Any]) -> None:
    made, _ = study(*JACKPOT, "method.snapshots=4it", "train.eval_every=5it", "method.scores.lr=5")
    with (made.folder.path / "search.csv").open() as file:
        entries = list(csv.DictReader(file))
    assert [int(entry["step"]) for entry in entries] == [0, 5, 10]
    assert entries[0]["swaps"] == ""
    assert float(entries[1]["swaps"]) > 0
    assert float(entries[0]["magnitude_iou"]) == 1
    assert float(entries[1]["val_accuracy"]) > 0
    mask = found_mask(made)
    bins = [int(entries[1][f"score_bin_{number:02d}"]) for number in range(1, 21)]
    assert sum(bins) == mask.size
    snapshots = sorted((made.folder.path / "masks" / "search").glob("*.safetensors"))
    assert [path.name for path in snapshots] == ["step_00000004.safetensors", "step_00000008.safetensors"]
    assert all(Mask.load(path).layer_kept == mask.layer_kept for path in snapshots)


# -- jackpots ---------------------------------------------------------------------------------------------------------


def test_jackpots_keep_every_weight(study: Callable[..., Any]) -> None:
    """T5.1, through the stages: what is kept has the dense network's bits; statistics have changed."""
    made, _ = study(*JACKPOT, "method.density=0.3")
    dense, found, mask = trained(made, 0), trained(made, 1), found_mask(made)
    learned = {name for name in dense if "running" not in name and "num_batches" not in name}
    assert_same_bits({n: found[n] for n in learned}, {n: v for n, v in mask.apply(dense).items() if n in learned})
    assert not torch.equal(found["bn1.running_mean"], dense["bn1.running_mean"])


def test_the_layer_counts_are_those_of_the_trained_networks_global_threshold(study: Callable[..., Any]) -> None:
    """T5.3: not of the initial weights, which the released CIFAR script computes with once more."""
    made, _ = study(*JACKPOT, "method.density=0.3")
    dense, mask = trained(made, 0), found_mask(made)
    full = Mask.ones(mask.shapes)
    expected = prune_to(full, {name: dense[name].abs() for name in mask}, 0.3)
    assert mask.layer_kept == expected.layer_kept


def test_tuning_moves_kept_weights_under_the_mask_that_was_found(study: Callable[..., Any]) -> None:
    """T5.7: the mask stays, pruned weights are exactly zero; the paper's 30s10t."""
    made, (_, tuned) = study(*JACKPOT, "method.tune.steps=8it", "method.tune.lr=0.05")
    plain, _ = study(*JACKPOT)
    assert tuned["steps"] == 8
    assert found_mask(made) == found_mask(plain)
    after, before, mask = trained(made, 1), trained(plain, 1), found_mask(made)
    assert_pruned_are_zero(after, mask)
    assert all(not torch.equal(after[name], before[name]) for name in mask)


def test_controls_share_the_tuning_and_need_one(study: Callable[..., Any], tmp_path: Path) -> None:
    _, rows = study(*JACKPOT, "method.tune.steps=8it", "controls.random=1")
    assert [(row["control"], row["steps"]) for row in rows[1:]] == [(None, 8), ("random", 8)]
    made, _ = study(*JACKPOT, "method.tune.steps=8it", "controls.random=1")
    stages = json.loads((made.folder.path / "rounds" / "round_001.json").read_text())["stages"]
    searched = load_state(made.folder.path.parent.parent / ".store" / "search" / stages["search"] / "state.safetensors")
    dense = trained(made, 0)
    assert_same_bits({n: searched[n] for n in found_mask(made)}, {n: dense[n] for n in found_mask(made)})
    outcome = call(*COMMON, *JACKPOT, "controls.random=1", f"paths.runs={tmp_path / 'none'}")
    assert outcome.status == 2
    assert "controls.random: controls are retrained as the ticket is, and method.tune.steps=0it" in outcome.err
    assert not (tmp_path / "none").exists()


def test_a_search_in_loaded_weights(study: Callable[..., Any], tmp_path: Path) -> None:
    made, _ = study(*JACKPOT)
    state, path = trained(made, 0), tmp_path / "weights.safetensors"
    save_file(state, path)
    cfg = composed([*COMMON, *JACKPOT, "method.start=loaded", f"paths.runs={tmp_path / 'loaded'}"])
    cfg.model = {**TINY, "weights": str(path)}
    loaded = Study(checked(cfg))
    rows = loaded.run()
    assert rows[0]["steps"] == 0
    assert_same_bits(trained(loaded, 0), state)
    assert found_mask(loaded) == found_mask(made)


def test_the_overlap_with_criteria_is_in_the_table(study: Callable[..., Any]) -> None:
    _, (dense, found) = study(*JACKPOT, "probes=criteria", "method.short_restriction=0.0", *(
        f"probes.criteria.criteria.{name}.per_class=1" for name in ("snip", "grasp")))  # fmt: skip
    overlaps = found["probe/criteria_iou"]
    assert set(overlaps) == {"magnitude", "snip", "grasp", "random"}
    assert overlaps["magnitude"] == 1, "the mask was never allowed to move from it"
    assert 0 < found["probe/criteria_iou_chance"] < 1
    assert "probe/criteria_iou" not in dense


# -- edge-popup -------------------------------------------------------------------------------------------------------


def test_edge_popup_trains_no_weight_and_beats_chance(study: Callable[..., Any]) -> None:
    made, (untrained, found) = study(
        "method=edge_popup", "method.steps=150it", "method.density=0.5", "method.scores.lr=0.5"
    )
    assert untrained["steps"] == 0
    before, after, mask = trained(made, 0), trained(made, 1), found_mask(made)
    assert_same_bits({n: after[n] for n in mask}, {n: mask.apply(before)[n] for n in mask})
    assert mask.layer_kept == {name: shape.numel() - int(0.5 * shape.numel()) for name, shape in mask.shapes.items()}
    assert found["test_accuracy"] > 0.35 > 0.2 > untrained["test_accuracy"]


# -- structures -------------------------------------------------------------------------------------------------------


def test_tuning_keeps_removed_filters_silent(study: Callable[..., Any]) -> None:
    made, _ = study("method=bip", *SHORT, "method.pattern=filter", "method.density=0.5", "prunable.exclude=[fc]",
                    "method.tune.steps=8it")  # fmt: skip
    state, mask = trained(made, 1), found_mask(made)
    gone = ~mask["conv2.weight"].flatten(1).any(1)
    assert gone.any()
    assert not state["bn2.weight"][gone].any()
    assert not state["bn2.bias"][gone].any()
    assert state["bn2.bias"][~gone].any()


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([*JACKPOT, "method.start=loaded"], "method.start: got 'loaded', but nothing is: give model.weights=FILE"),
        (["method=jackpot"], "method.allocation: nothing chosen; choose one with allocation=NAME"),
        ([*JACKPOT, "method.initial=two_levels"], "method.initial: got 'two_levels', .*did you mean 'two_level'"),
        ([*JACKPOT, "method.short_restriction=quartc"], "method.short_restriction: got 'quartc', .*did you mean"),
        ([*JACKPOT, "method.short_restriction=1.5"], "method.short_restriction: got 1.5, .*constant in"),
        ([*JACKPOT, "method.start=trained"], "method.start: got 'trained', expected one of dense, loaded"),
        ([*JACKPOT, "method.short_restriction=null"], "method.short_restriction: got None, expected none, quartic"),
        (["method=bip", "method.pattern=124"], "method.pattern: got '124', .*in quotes, or YAML reads a time"),
        (["method=bip", "method.scores=5"], "method.scores: got 5, expected a mapping such as"),
        (["method=bip", "method.pattern=2:3"], "method.pattern: got '2:3', expected an M that divides the"),
        (["method=bip", "method.pattern=filters"], "method.pattern: got 'filters', .*did you mean 'filter'"),
        (["method=bip", "method.pattern=filter"], "'fc1.weight'"),
        (["method=bip", "method.gamma=0"], "method.gamma: got 0.0, expected a number > 0, or null"),
        (["method=bip", "method.inner=0"], "method.inner: got 0"),
        (["method=bip", "method.variant=repo", "method.inner=2"], "method.inner: got 2, expected 1"),
        (["method=bip", "method.pattern=2:4", "prunable.exclude=[output]"], "method.density: got 0.1, expected 0.5"),
        (["method=bip", "method.tune.steps=5it", "controls.invert=1"], "controls.invert: got 1, expected 0"),
        (["method=bip", "method.variant=released"], "method.variant: got 'released', expected one of paper, repo"),
        (["method=bip", "method.density=1e-7"], "method.density: got 1e-07, expected at least .*, one of the"),
        (["method=bip", "method.pattern=4:2"], "method.pattern: got '4:2', expected N:M with 0 < N <= M"),
        (["method=bip", "method.density=0"], "method.density: got 0.0"),
        (["method=bip", "method.steps=0it"], "method.steps: got '0it', expected a time longer than zero"),
        (["method=bip", "method.scores.lr=-1"], "method.scores.lr: got -1.0, expected a number ≥ 0"),
        (["method=bip", "method.weights.schedule=cosin"], "method.weights.schedule: got 'cosin', .*did you mean"),
        (["method=bip", "method.snapshots=0it"], "method.snapshots: got '0it', expected a time longer than zero"),
        (["method=edge_popup", "method.scope=net"], "method.scope: got 'net', expected 'layer' or 'global'"),
        (["method=edge_popup", "trainer.devices=2"], "one device"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, overrides: list[str], expected: str) -> None:
    outcome = call(*COMMON, f"paths.runs={tmp_path / 'runs'}", *overrides)
    assert outcome.status == 2, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert re.search(expected, outcome.err), outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_density_that_leaves_a_layer_no_filter_names_the_layer(study: Callable[..., Any]) -> None:
    with pytest.raises(
        Exception, match=r"method.density: got 0.2, expected at least 0.25: 'conv1.weight' has 4 filters"
    ):
        study("method=bip", *SHORT, "method.pattern=filter", "method.density=0.2", "prunable.exclude=[fc]")


def test_a_weights_file_that_does_not_match_lists_the_first_names(tmp_path: Path) -> None:
    save_file({f"layer{n}.weight": torch.zeros(2) for n in range(5)}, tmp_path / "other.safetensors")
    outcome = call(*COMMON, *JACKPOT, "method.start=loaded", f"model.weights={tmp_path / 'other.safetensors'}",
                   f"paths.runs={tmp_path / 'runs'}")  # fmt: skip
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert re.search(
        "is missing in the file; .* is missing in the file; .* is missing in the file; and 8 more", outcome.err
    )


@pytest.mark.slow
@pytest.mark.data
def test_a_jackpot_in_a_network_that_knows_imagenet(tmp_path: Path) -> None:
    """EfficientNet-Lite0 by its published weights, a new classifier, a few real photographs: end to end."""
    weights, images = efficientnet_lite0(), Path(os.environ.get("LOTTERY_DATA", "")) / "cifar10.safetensors"
    if not images.is_file():
        pytest.skip("$LOTTERY_DATA has no cifar10.safetensors")
    with safe_open(images, framework="pt") as file:
        few = {name: file.get_slice(name)[:120] for name in file.keys()}  # noqa: SIM118
    save_file(few, tmp_path / "cifar10.safetensors")
    cfg = composed([
        "+exp=jackpot_lite0", f"model.weights={weights}", "data.limit=80", "data.validation=40", "train.steps=2it",
        "method.steps=2it", "train.batch_size=16", "probes=light", "tracker=none", "trainer=cpu",
        "trainer.progress=false", f"paths.data={tmp_path}", f"paths.runs={tmp_path / 'runs'}",
    ])  # fmt: skip
    made = Study(cfg)
    dense, found = made.run()
    mask, before, after = found_mask(made), trained(made, 0), trained(made, 1)
    assert found["kept"] == round(0.5 * dense["kept"])
    assert dense["kept"] > 3_000_000
    assert_same_bits({n: after[n] for n in mask}, {n: mask.apply(before)[n] for n in mask})
