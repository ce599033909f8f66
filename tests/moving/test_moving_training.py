"""Trainings whose mask moves: counts, what is grown, what a kill costs, and what the rows say."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line_tools import call
from training_tools import SMALL, TINY, assert_pruned_are_zero

from lottery.compose import checked, composed
from lottery.config import settings
from lottery.errors import Interrupted
from lottery.methods.srste import add_decay_
from lottery.moving.plan import expected_exploration
from lottery.parts import typed_method
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.stages.trained import Moved
from lottery.training.moving import MovingTraining

COMMON = [option for option in SMALL if not option.startswith("method.")]
ERK = "allocation=erk"
METHODS = {
    "set": ["method=set", ERK, "method.density=0.3", "method.every=4it"],
    "rigl": ["method=rigl", ERK, "method.density=0.3", "method.every=4it"],
    "itop": ["method=itop", ERK, "method.density=0.3", "method.every=7it"],
    "mest": ["method=mest", ERK, "method.density=0.3", "method.every=4it"],
    "em_s": ["method=mest", ERK, "method.density=0.3", "method.every=4it", "method.variant=em_s"],
    "gmp": ["method=gmp", "method.density=0.3", "method.every=4it"],
    "gmp global": ["method=gmp", "method.density=0.3", "method.every=4it", "method.scope=global"],
    "granet": ["method=granet", ERK, "method.density=0.3", "method.every=4it"],
    "acdc": ["method=acdc", "method.density=0.3", "method.every=5it"],
    "issp": ["method=issp", "method.density=0.3"],
    "srste": ["method=srste"],
    "progressive": ["method=progressive_nm", "method.rate=0.1"],
}
EXCHANGE = ("set", "rigl", "itop", "mest")


def configuration(folder: Path, *overrides: str, **groups: str) -> Any:
    cfg = composed(
        [*COMMON, "optim=momentum", f"paths.runs={folder}", *overrides, *(f"{k}={v}" for k, v in groups.items())]
    )
    if "model" not in groups:
        cfg.model = TINY
    return checked(cfg)


class Watched:
    """A lab, and what each move of its trainings changed."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *overrides: str, **groups: str) -> None:
        self.stop = StopFlag()
        cfg = configuration(folder, *overrides, **groups)
        self.lab, self.method = Lab(settings(cfg), self.stop, lambda *_: None), typed_method(cfg.method)
        self.moves: list[dict[str, Any]] = []
        move = MovingTraining.move_

        def spied(run: MovingTraining, step: int, masks: list[np.ndarray]) -> None:
            before = run.kept()
            values = [weight.detach().clone() for weight in run.weights]
            move(run, step, masks)
            now = run.kept()
            slots = [run.optimizer.state[weight]["momentum_buffer"].clone() for weight in run.weights]
            self.moves.append({"step": step, "before": before, "now": now, "values": values, "slots": slots,
                               "weights": [weight.detach().clone() for weight in run.weights]})  # fmt: skip

        patch.setattr(MovingTraining, "move_", spied)

    def run(self) -> Moved:
        rounds = list(self.method(self.lab))
        assert isinstance(rounds[1].trained, Moved)
        assert rounds[1].mask == rounds[1].trained.mask
        return rounds[1].trained


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    return lambda *overrides, **groups: Watched(tmp_path, monkeypatch, *overrides, **groups)


@pytest.mark.parametrize("name", METHODS)
def test_pruned_weights_are_zero_at_the_end_and_the_density_is_exact(watch: Callable[..., Watched], name: str) -> None:
    studied = watch(*METHODS[name])
    moved = studied.run()
    assert_pruned_are_zero(moved.state.tensors(), moved.mask)
    if name not in ("srste", "progressive"):
        goal = 0.3 * moved.mask.size
        assert abs(moved.mask.kept - goal) <= (len(moved.mask) if name in ("gmp", "issp") else 0.5)
    else:
        whole = [kept for kept in moved.mask.values() if kept.shape[1] % 4 == 0]
        assert whole
        assert all((kept.unflatten(1, (-1, 4)).sum(2) == 2).all() for kept in whole)
    assert moved.facts["probe/moves"] > 0
    assert 0 < moved.facts["probe/train_cost"] <= 1 + 1e-12


@pytest.mark.parametrize("name", EXCHANGE)
def test_as_many_grow_as_are_dropped_in_each_layer_and_from_zero(watch: Callable[..., Watched], name: str) -> None:
    studied = watch(*METHODS[name])
    studied.run()
    assert sum(sum(int((b & ~n).sum()) for b, n in zip(m["before"], m["now"], strict=True)) for m in studied.moves) > 0
    for move in studied.moves:
        for before, now, weight, slot in zip(move["before"], move["now"], move["weights"], move["slots"], strict=True):
            assert before.sum() == now.sum()
            grown = torch.from_numpy(now & ~before).view(weight.shape)
            assert not weight[grown].any()
            assert not slot[torch.from_numpy(~(now & before)).view(weight.shape)].any()


def test_the_smallest_go(watch: Callable[..., Watched]) -> None:
    studied = watch(*METHODS["set"])
    studied.run()
    for move in studied.moves[:2]:
        for before, now, values in zip(move["before"], move["now"], move["values"], strict=True):
            size = np.abs(values.flatten().numpy())
            if (before & ~now).any():
                assert size[before & ~now].max() <= size[before & now].min()


def test_rigl_grows_where_the_gradient_is_largest_and_set_does_not_ask(
    watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[np.ndarray]] = []
    dense_gradient = MovingTraining.dense_gradient

    def spied(run: MovingTraining) -> list[np.ndarray]:
        found = dense_gradient(run)
        taken.append([np.abs(each).copy() for each in found])
        return found

    monkeypatch.setattr(MovingTraining, "dense_gradient", spied)
    watch(*METHODS["set"]).run()
    assert not taken
    studied = watch(*METHODS["rigl"])
    studied.run()
    first, slopes = studied.moves[0], taken[0]
    for before, now, slope in zip(first["before"], first["now"], slopes, strict=True):
        grown, free = now & ~before, ~now
        if grown.any() and free.any():
            assert slope[grown].min() >= slope[free].max()
    for before, now, old, new in zip(*(first[name] for name in ("before", "now", "values", "weights")), strict=True):
        both = torch.from_numpy(before & now).view(old.shape)
        assert torch.equal(old[both], new[both])  # the move takes the place of the optimizer's step


@pytest.mark.parametrize("name", ["gmp", "gmp global"])
def test_gradual_masks_are_nested_and_static_after_the_plan(watch: Callable[..., Watched], name: str) -> None:
    studied = watch(*METHODS[name])
    moved = studied.run()
    for move in studied.moves:
        assert all(not (now & ~before).any() for before, now in zip(move["before"], move["now"], strict=True))
    assert studied.moves[-1]["step"] == round(0.75 * 30)
    assert moved.result["history"][-1][0] == round(0.75 * 30) + 1
    assert moved.facts["probe/explored"] == 1.0


def test_acdc_lets_all_weights_train_again(watch: Callable[..., Watched]) -> None:
    moved = watch(*METHODS["acdc"]).run()
    kept = [sum(entry[2:]) for entry in moved.result["history"]]
    assert kept[0] == moved.mask.size
    assert len(set(kept)) == 2
    assert kept[-1] == moved.mask.kept


@pytest.mark.parametrize(("ratio", "like"), [(1.0, "dense"), (0.0, "hard")])
def test_soft_shrinkage_at_its_ends(watch: Callable[..., Watched], ratio: float, like: str) -> None:
    studied = watch(*METHODS["issp"], f"method.ratio={ratio}", "method.end=1.0")
    shrunk: list[float] = []
    measure = MovingTraining.measure

    def spied(run: MovingTraining) -> None:
        shrunk.append(sum(int((weight == 0).sum()) for weight in run.weights) / run.ticket.mask.size)
        measure(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MovingTraining, "measure", spied)
        moved = studied.run()
    dense = studied.lab.train(studied.lab.initial)
    curves = [entry for entry in moved.result["curve"] if entry[0] < 30]
    if like == "dense":
        assert curves == [entry for entry in dense.result["curve"] if entry[0] < 30]
    else:
        assert shrunk[1] == pytest.approx(0.7, abs=0.01)


def test_what_a_set_has_explored_is_what_is_expected(watch: Callable[..., Watched]) -> None:
    """LeNet-300-100 at 10 %, α = 0.3 constant: .8348 after 50 updates if every layer had this density (C1)."""
    studied = watch(
        "method=set", "allocation=uniform", "method.density=0.1", "method.every=1it", "method.share=0.3",
        "method.end=1.0", "method.decay=constant", "train.steps=51it", "train.eval_every=25it",
        model="lenet_300_100", data="digits",
    )  # fmt: skip
    moved = studied.run()
    assert moved.facts["probe/moves"] == 50
    sizes = {name: shape.numel() for name, shape in moved.ticket.mask.shapes.items()}
    kept = moved.ticket.mask.layer_kept
    expected = sum(
        size * expected_exploration(kept[name] / size, [int(0.3 * kept[name]) / kept[name]] * 50)
        for name, size in sizes.items()
    ) / sum(sizes.values())
    assert expected == pytest.approx(0.8348, abs=2e-3)
    assert moved.facts["probe/explored"] == pytest.approx(expected, abs=0.005)
    course = moved.notes["moving"]
    assert [point["step"] for point in course] == [0, 25, 50, 51]
    assert course[0]["explored"] == pytest.approx(course[0]["expected"]) == pytest.approx(0.1, abs=1e-4)
    assert course[-1]["expected"] == pytest.approx(expected, abs=1e-12)
    assert course[-1]["explored"] == moved.facts["probe/explored"]
    assert course[1]["explored"] == pytest.approx(course[1]["expected"], abs=0.005)
    assert course[-1]["layer_density"] == {name: number / sizes[name] for name, number in kept.items()}


@pytest.mark.data
def test_the_counts_of_lenet_and_its_first_drop(watch: Callable[..., Watched]) -> None:
    """18,715, 6,906 and 1,000 weights of ERK at 10 %, 26,621 in all: the house takes the one weight too many from one.

    The first move drops int(0.3 k) of them, 5,614 and 2,071 (Evci et al. 2020). The output layer is full: it has no
    room to grow, so nothing of it goes.
    """
    studied = watch(
        "method=set", ERK, "method.density=0.1", "method.every=1it", "train.steps=2it", "rewind.to=1it",
        "method.end=1.0", "method.decay=constant", model="lenet_300_100", data="mnist",
    )  # fmt: skip
    kept = list(studied.run().ticket.mask.layer_kept.values())
    assert sum(kept) == 26_620
    assert np.abs(np.subtract(kept, [18_715, 6_906, 1_000])).sum() == 1
    (move,) = studied.moves
    went = [int((before & ~now).sum()) for before, now in zip(move["before"], move["now"], strict=True)]
    assert went == [5_614, 2_071, 0]


def test_the_decay_of_srste_is_in_the_gradient() -> None:
    """[.1, -.5, .3, .2] at 2:4 with a dense gradient of 1 and λ = 2e-4: [1.00002, 1, 1, 1.00004]."""
    weight = torch.nn.Parameter(torch.tensor([[0.1, -0.5, 0.3, 0.2]]))
    weight.grad = torch.ones_like(weight)
    add_decay_([weight], [torch.tensor([[0.0, 1.0, 1.0, 0.0]])], 2e-4)
    assert weight.grad[0].tolist() == pytest.approx([1.00002, 1, 1, 1.00004], abs=1e-7)


def test_a_mask_of_full_strength_is_dense_training_to_the_bit(watch: Callable[..., Watched]) -> None:
    """β = 1 (rate 0), up to the end of the plan."""
    studied = watch(*METHODS["progressive"], "method.rate=0", "method.strength=linear", "method.end=1.0")
    moved, dense = studied.run(), studied.lab.train(studied.lab.initial)
    losses = [[entry for entry in each.result["curve"] if entry[0] <= 20] for each in (moved, dense)]
    assert losses[0] == losses[1]


def test_the_frames_of_a_decaying_structure(tmp_path: Path) -> None:
    for pattern, frames in {"1:8": [7, 4, 2, 1], "2:4": [3, 2], "1:4": [3, 2, 1], "4:8": [7, 4]}.items():
        method = typed_method(configuration(tmp_path, "method=progressive_nm", f"method.pattern='{pattern}'").method)
        assert method.frames() == frames


# -- interrupted ------------------------------------------------------------------------------------------------------


def outcome(moved: Moved) -> tuple[Any, ...]:
    result = {key: value for key, value in moved.result.items() if key != "seconds"}
    return result, (moved.folder / "state.safetensors").read_bytes(), moved.mask.digest


QUICK = ("rigl", "gmp", "progressive")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_interrupted_after_each_step_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_batch: list[Callable[[int], object]],
    signals: Callable[[], StopFlag], name: str,
) -> None:  # fmt: skip
    expected = outcome(Watched(tmp_path / "undisturbed", monkeypatch, *METHODS[name]).run())
    stop = signals()
    studied = Watched(tmp_path / "store", monkeypatch, *METHODS[name])
    studied.lab.train(studied.lab.initial, studied.lab.rewind.keep_dense())
    studied.lab.stop = stop
    on_batch.append(lambda step: os.kill(os.getpid(), signal.SIGTERM))
    for at in range(30):
        with pytest.raises(Interrupted, match=f"at step {at + 1};"):
            studied.run()
        stop.signum = None
    on_batch.clear()
    assert outcome(studied.run()) == expected


# -- what a user sees -------------------------------------------------------------------------------------------------


def test_the_row_and_the_snapshots(tmp_path: Path) -> None:
    assert (
        call("+exp=set", "train.steps=200it", f"paths.runs={tmp_path}", "tracker=none", "method.snapshots=60it").status
        == 0
    )
    (folder,) = (tmp_path / "set").iterdir()
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    ticket, static = rows[1], next(row for row in rows if row["control"] == "static")
    assert ticket["mask_digest"] == static["mask_digest"] != ticket["start_mask_digest"]
    assert ticket["probe/moves"] == 3
    assert 0.1 < ticket["probe/explored"] < 0.3
    assert ticket["probe/train_cost"] == pytest.approx(0.1, abs=0.03)
    assert static["weights_digest"] != ticket["weights_digest"]
    found = sorted(path.name for path in (folder / "masks" / "training" / "round_001").iterdir())
    assert found == [f"step_{step:08d}.safetensors" for step in (60, 120, 180)]
    again = call("+exp=set", "train.steps=200it", f"paths.runs={tmp_path}", "tracker=none", "method.snapshots=60it")
    assert again.status == 0


WRONG = {
    "method.every=0it": "method.every: got '0it', expected a time longer than zero",
    "method.density=0": "method.density: got 0.0, expected a fraction of the weights",
    "method.density=1.5": "method.density: got 1.5, expected a fraction of the weights",
    "method.end=1.2": "method.end: got 1.2, expected a number > 0 and ≤ 1",
    "method.begin=0.8": "method.begin: got 0.8, expected a share of the training below method.end=0.75",
    "controls.invert=1": "controls.invert: got 1, expected 0",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_options_are_one_line_before_training(tmp_path: Path, override: str) -> None:
    outcome = call("+exp=set", override, f"paths.runs={tmp_path}/runs", "tracker=none")
    assert outcome.status == 2
    assert WRONG[override] in outcome.line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["+exp=srste", "method.pattern='5:4'"], "method.pattern: got '5:4', expected N:M with 0 < N ≤ M"),
        (["+exp=srste", "method.pattern='2:7'", "method.ungrouped=refuse"], "expected an M that divides the 40 inputs"),
        (["+exp=srste", "method.pattern='1:3'"], "an M that divides the inputs of some layer"),
        (["+exp=granet", "method.initial=0.05"], "method.initial: got 0.05, expected at least method.density=0.1"),
        (["+exp=gmp", "method.initial=0.05"], "method.initial: got 0.05, expected at least method.density=0.1"),
        (["+exp=set", "method.density=1"], "method.density: got 1.0, expected less than 1"),
        (["+exp=mest", "method.stages=[0.7,0.2]"], "method.stages: got [0.7, 0.2], expected ascending shares"),
    ],
)
def test_what_contradicts_itself(tmp_path: Path, overrides: list[str], line: str) -> None:
    outcome = call(*overrides, f"paths.runs={tmp_path}/runs", "tracker=none")
    assert outcome.status == 2
    assert line in outcome.line


def test_by_layer_a_sparse_start_keeps_its_shares_and_the_density_is_reached(watch: Callable[..., Watched]) -> None:
    moved = watch("method=gmp", ERK, "method.density=0.3", "method.initial=0.6", "method.every=4it").run()
    assert abs(moved.mask.kept - 0.3 * moved.mask.size) <= len(moved.mask)
