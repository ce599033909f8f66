"""The search stage: cut short anywhere it ends in the same bits; what it keeps is checked; its key is what it reads."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from training_tools import SMALL, TINY

from lottery.compose import checked, composed
from lottery.config import settings
from lottery.errors import Interrupted, LotteryError
from lottery.inventory.contents import read_contents
from lottery.inventory.verify import check_stage
from lottery.parts import typed_method
from lottery.signals import StopFlag
from lottery.stages.lab import Lab
from lottery.stages.trained import Searched
from lottery.ticket import Mask
from lottery.training.search_options import Search

METHODS = {
    "jackpot": ("method=jackpot", "allocation=magnitude_ratio"),
    "restricted": ("method=jackpot", "allocation=magnitude_ratio", "method.short_restriction=quartic"),
    "edge_popup": ("method=edge_popup",),
    "bip": ("method=bip", "method.inner=2", "method.gamma=10"),
    "bip_repo": ("method=bip", "method.variant=repo", "method.weights.weight_decay=0.1"),
    "bip adam": ("method=bip", "method.scores.optimizer=adam", "method.scores.lr=0.01"),
    "filters": ("method=bip", "method.pattern=filter", "method.density=0.5", "prunable.exclude=[fc]"),
    "channels_last, bf16": ("method=edge_popup", "train.channels_last=true", "train.precision=bf16"),
}
STEPS = 12
SHORT = (f"method.steps={STEPS}it", "method.snapshots=5it", "train.eval_every=4it", "data.flip=true", "data.crop=1")
Searching = Callable[..., Callable[[], Searched]]


@pytest.fixture
def searching(tmp_path: Path) -> Searching:
    """The search of a method in the initial network, to be done in the store of this name."""

    def make(method: str, *overrides: str, stop: StopFlag | None = None, runs: str = "runs") -> Callable[[], Searched]:
        common = [option for option in SMALL if not option.startswith("method.")]
        cfg = composed([*common, *METHODS[method], *SHORT, *overrides])
        OmegaConf.update(cfg, "model", TINY, merge=False)
        cfg.paths.runs = str(tmp_path / runs)
        cfg = checked(cfg)
        lab = Lab(settings(cfg), StopFlag() if stop is None else stop, lambda *_: None)
        program = typed_method(cfg.method)
        counts = [{n: s.numel() // 5 for n, s in lab.initial.mask.shapes.items()}] if "allocation" in cfg.method else []
        search: Search = program.search(lab, *counts)
        return lambda: lab.searched(lab.initial.state, program.steps, search, getattr(program, "weights", None))

    return make


def results(found: Searched) -> dict[str, object]:
    """All that the stage's folder holds but what may differ from run to run: the environment, and seconds."""
    states = {path.name: path.read_bytes() for path in found.folder.glob("s*.safetensors")}
    masks = {path.name: Mask.load(path).digest for path in found.folder.glob("mask*.safetensors")}
    assert set(states) == {"state.safetensors", "scores.safetensors"}
    return {**states, **masks, "result": {key: value for key, value in found.result.items() if key != "seconds"}}


@pytest.mark.parametrize("method", [n if n == "bip" else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_interrupted_after_each_step_it_ends_in_the_same_bits(
    searching: Searching, on_batch: list[Callable[[int], object]], signals: Callable[[], StopFlag], method: str
) -> None:
    """Each attempt gets one step further: scores, their momentum, masks, weights and the log are all carried on."""
    expected = results(searching(method, runs="undisturbed")())
    assert "mask.safetensors" in expected
    stop = signals()
    attempt = searching(method, stop=stop)
    on_batch.append(lambda step: os.kill(os.getpid(), signal.SIGTERM))
    for at in range(STEPS):
        stop.signum = None
        with pytest.raises(Interrupted, match=f"at step {at + 1};"):
            attempt()
    on_batch.clear()
    stop.signum = None
    assert results(attempt()) == expected


def test_found_again_it_is_not_searched_for(searching: Searching, on_batch: list[Callable[[int], object]]) -> None:
    first = searching("jackpot")()
    on_batch.append(lambda step: pytest.fail("searched again"))
    again = searching("jackpot")()
    assert (first.cached, again.cached) == (False, True)
    assert again.mask == first.mask
    assert again.state.digest == first.state.digest


def test_snapshots_are_the_masks_on_the_way(searching: Searching) -> None:
    found = searching("bip", "method.scores.lr=2")()
    assert list(found.snapshots) == [5, 10]
    assert len({found.mask, *found.snapshots.values()}) == 3
    assert {mask.kept for mask in found.snapshots.values()} == {found.mask.kept}
    assert found.result["steps"] == STEPS
    assert found.result["batches"] == 3 * STEPS
    assert [entry["step"] for entry in found.result["log"]] == [0, 4, 8, 12]


@pytest.mark.parametrize("name", ["mask", "state"])
def test_a_damaged_result_is_refused(searching: Searching, name: str) -> None:
    found = searching("jackpot")()
    path = found.folder / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0b1000_0000 if name == "mask" else 1
    path.write_bytes(data)
    with pytest.raises(LotteryError, match=path.name):
        _ = found.mask if name == "mask" else found.state.tensors()


@pytest.mark.parametrize(
    "override",
    [
        "method.density=0.2", "method.steps=11it", "method.initial=uniform", "method.scores.lr=0.2", "seeds.mask=5",
        "method.scores.weight_decay=0.1", "method.snapshots=6it", "seeds.order=5", "seeds.init=5", "method.gamma=5",
        "method.weights.lr=0.02", "method.inner=1", "train.batch_size=8",
    ],
)  # fmt: skip
def test_whatever_it_reads_is_in_its_key(searching: Searching, override: str) -> None:
    assert searching("bip", override)().key != searching("bip")().key


@pytest.mark.parametrize("override", ["method.scores.lr=0.3", "method.initial=uniform"])
def test_the_released_update_does_not_read_the_scores_options(searching: Searching, override: str) -> None:
    assert searching("bip_repo", override)().key == searching("bip_repo")().key


def test_the_released_update_leaves_the_rest_of_a_removed_filter(searching: Searching) -> None:
    filters = ("method.pattern=filter", "method.density=0.5", "prunable.exclude=[fc]")
    assert not searching("bip_repo", *filters)().result["silent"]
    assert searching("bip", *filters)().result["silent"]


@pytest.mark.parametrize("override", ["optim.lr=0.3", "train.steps=20it", "method.tune.steps=5it", "controls.random=1"])
def test_what_only_other_phases_read_is_not(searching: Searching, override: str) -> None:
    assert searching("bip", override)().key == searching("bip")().key


def test_the_inputs_say_what_was_asked_for(searching: Searching) -> None:
    found = searching("restricted")()
    inputs = json.loads((found.folder / "stage.json").read_text())["inputs"]
    assert inputs["search"]["kind"] == "jackpot"
    assert inputs["search"]["restriction"] == "quartic"
    assert inputs["search"]["counts"]


@pytest.mark.parametrize("how", ["whole", "a bit", "missing", "another step's"])
def test_a_damaged_mask_on_the_way_is_searched_for_again(
    searching: Searching, on_batch: list[Callable[[int], object]], tmp_path: Path, how: str
) -> None:
    """Nothing leads back to it from a checkpoint after it, so the search begins again. `verify` sees it before."""
    expected = searching("bip", "method.scores.lr=5", runs="undisturbed")()
    stop = StopFlag()
    attempt = searching("bip", "method.scores.lr=5", stop=stop)
    steps: list[int] = []
    on_batch.append(steps.append)
    on_batch.append(lambda _: setattr(stop, "signum", 15) if len(steps) == 3 * 10 + 1 else None)
    with pytest.raises(Interrupted, match="at step 11"):
        attempt()
    [path] = (tmp_path / "runs").rglob("mask_00000005.safetensors")
    if how == "a bit":
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 128]))
    elif how == "missing":
        path.unlink()
    elif how == "another step's":
        shutil.copy(path.with_name("mask_00000010.safetensors"), path)
    [entry] = read_contents(tmp_path / "runs" / ".store").entries
    assert [finding.what.partition(":")[0] for finding in check_stage(entry)] == [path.name] * (how != "whole")
    stop.signum = None
    on_batch.pop()
    steps.clear()
    assert results(attempt()) == results(expected)
    assert len(steps) == 3 * (STEPS - 11 if how == "whole" else STEPS)
