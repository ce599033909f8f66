"""Masks at initialisation, random or scored, as rounds over the lab (docs/methods/pai.md, random.md)."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from command_line_tools import call
from torch import Tensor
from training_tools import SMALL, Start, assert_pruned_are_zero, assert_same_bits

from lottery.compose import composed
from lottery.errors import Interrupted, LotteryError
from lottery.methods.imp import IMP
from lottery.methods.pai import PruningAtInit
from lottery.methods.random import RandomPruning
from lottery.signals import StopFlag
from lottery.stages.controls import run_control
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.stages.store import Stage, Store
from lottery.state import StateRef
from lottery.study import Study
from lottery.ticket import Mask

QUIET = ("tracker=none", "trainer.progress=false", "train.steps=20it", "train.eval_every=10it")
MakeLab = Callable[..., Lab]
ERK = {"_target_": "lottery.pruning.allocations.erk", "_partial_": True}
UNIFORM = {"_target_": "lottery.pruning.allocations.uniform", "_partial_": True}
SNIP_RATIO = {
    "_target_": "lottery.pruning.allocations.from_criterion",
    "_partial_": True,
    "criterion": {"_target_": "lottery.pruning.gradients.snip", "_partial_": True, "per_class": 1},
}


def pruned(method: PruningAtInit | RandomPruning, lab: Lab) -> Round:
    dense, ticket = method(lab)
    assert (dense.index, ticket.index) == (0, 1)
    assert dense.mask == lab.initial.mask
    return ticket


@pytest.mark.parametrize("criterion", ["magnitude", "random", "snip", "grasp", "synflow", "lamp"])
def test_every_criterion_prunes_the_initial_weights(make_lab: MakeLab, starts: list[Start], criterion: str) -> None:
    """Exactly round(D N) weights stay; they start at their initial values, buffers included, from step 0 on."""
    few = ["criterion.per_class=1"] if criterion in ("snip", "grasp") else []
    lab = make_lab(f"criterion={criterion}", *few)
    initial = lab.network(0).state_dict()
    ticket = pruned(PruningAtInit(density=0.3, steps=2), lab)
    assert ticket.mask.kept == round(0.3 * ticket.mask.size)
    assert (ticket.ticket.step, ticket.ticket.steps) == (0, 30)
    assert_same_bits(starts[-1].network, ticket.mask.apply(initial))
    assert_pruned_are_zero(ticket.trained.state.tensors(), ticket.mask)


def test_each_step_scores_anew_and_takes_an_equal_factor(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """T3.5: after step i the density is D^(i/n), to the nearest weight, and each mask is a subset of the one before."""
    lab = make_lab("criterion=synflow")
    masks = [lab.initial.mask]
    original = Lab.scores

    def scores(self: Lab, state: StateRef, mask: Mask) -> dict[str, Tensor]:
        masks.append(mask)
        return original(self, state, mask)

    monkeypatch.setattr(Lab, "scores", scores)
    ticket = pruned(PruningAtInit(density=0.05, steps=20), lab)
    ladder = [*masks[1:], ticket.mask]
    assert [mask.kept for mask in ladder] == [round(0.05 ** (i / 20) * ticket.mask.size) for i in range(21)]
    assert all(later.issubset(mask) for mask, later in pairwise(ladder))


def test_an_allocation_fixes_the_counts_and_the_criterion_the_positions(make_lab: MakeLab) -> None:
    lab = make_lab("criterion=magnitude")
    counts = lab.counts(ERK, 0.2)
    ticket = pruned(PruningAtInit(density=0.2, steps=3, allocation=ERK), lab)
    assert ticket.mask.layer_kept == counts
    assert sum(counts.values()) == round(0.2 * ticket.mask.size)
    weights = lab.initial.state.tensors()
    for name, kept in ticket.mask.items():
        magnitude = weights[name].abs()
        if not kept.all():
            assert magnitude[kept].min() >= magnitude[~kept].max()
    assert ticket.mask != pruned(PruningAtInit(density=0.2), lab).mask, "ranked together they are another mask"


def test_a_mask_is_searched_once(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from the store the second time, and so does its inverse."""
    found = []
    for attempt in range(2):
        lab = make_lab("criterion=lamp", "controls.invert=1")
        ticket = pruned(PruningAtInit(density=0.3), lab)
        found.append((ticket.mask, run_control(lab, ticket, "invert", 0).mask))
        assert (lab.store.root / "score" / ticket.stages["score"] / "mask.safetensors").exists()
        if attempt == 0:
            monkeypatch.setattr(Lab, "scores", lambda *_: pytest.fail("scored again"))
    assert found[0] == found[1]


def test_a_signal_ends_a_search_between_two_steps(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept of it; the same study searches again, and nothing else was left locked."""
    stop = StopFlag()
    lab = make_lab("criterion=synflow", stop=stop)
    original, steps = Lab.scores, []

    def scores(self: Lab, state: StateRef, mask: Mask) -> dict[str, Tensor]:
        steps.append(mask.kept)
        if len(steps) == 3:
            stop.signum = 15
        return original(self, state, mask)

    monkeypatch.setattr(Lab, "scores", scores)
    with pytest.raises(Interrupted):
        next(PruningAtInit(density=0.05, steps=20)(lab))
    assert len(steps) == 3
    stop.signum = None
    assert pruned(PruningAtInit(density=0.05, steps=20), lab).mask.kept == round(0.05 * lab.initial.mask.size)


def test_the_inverse_keeps_what_is_pruned_first(make_lab: MakeLab) -> None:
    """T3.7, methods 3.4: as many weights in each layer, of the lowest scores."""
    lab = make_lab("criterion=magnitude", "controls.invert=1")
    ticket = pruned(PruningAtInit(density=0.3), lab)
    inverse = run_control(lab, ticket, "invert", 0)
    assert inverse.mask.layer_kept == ticket.mask.layer_kept
    assert inverse.ticket.state == ticket.ticket.state
    weights = lab.initial.state.tensors()
    for name, kept in inverse.mask.items():
        magnitude = weights[name].abs()
        assert magnitude[kept].max() <= magnitude[~kept].min()


def test_imp_has_the_inverse_too(make_lab: MakeLab) -> None:
    """What an earlier round pruned comes before what a later one pruned."""
    lab = make_lab("controls.invert=1")
    masks = {}
    for round in IMP(rounds=3, rate=0.3)(lab):
        masks[round.index] = round.mask
        if round.index:
            inverse = run_control(lab, round, "invert", 0).mask
            assert inverse.layer_kept == round.mask.layer_kept
    for name, kept in inverse.items():  # of round 3, which keeps 0.343
        first, second = ~masks[1][name], masks[1][name] & ~masks[2][name]
        assert int((kept & first).sum()) == min(int(kept.sum()), int(first.sum()))
        assert not (kept & second).any() or bool((kept & first).sum() == first.sum())


def test_imp_prunes_by_any_criterion_after_training(make_lab: MakeLab) -> None:
    lab = make_lab("criterion=snip", "criterion.per_class=1")
    rounds = list(IMP(rounds=2, rate=0.3)(lab))
    assert all(b.mask.kept == a.mask.kept - round(0.3 * a.mask.kept) for a, b in pairwise(rounds))
    scores = lab.scores(rounds[1].trained.state, rounds[1].mask)
    left, gone = [], []
    for name, kept in rounds[2].mask.items():
        left.append(scores[name][kept])
        gone.append(scores[name][rounds[1].mask[name] & ~kept])
    assert torch.cat(left).min() >= torch.cat(gone).max()


def test_random_masks_have_the_counts_of_their_allocation(make_lab: MakeLab) -> None:
    """T3.8: the same seeds.mask gives the same positions, another one an overlap near chance."""
    lab = make_lab("seeds.mask=1")
    ticket = pruned(RandomPruning(density=0.2, allocation=ERK), lab)
    assert ticket.mask.layer_kept == lab.counts(ERK, 0.2)
    assert ticket.ticket.state == lab.initial.state
    again = pruned(RandomPruning(density=0.2, allocation=ERK), make_lab("seeds.mask=1", "optim.lr=0.01", runs="b"))
    other = pruned(RandomPruning(density=0.2, allocation=ERK), make_lab("seeds.mask=2"))
    assert again.mask == ticket.mask
    assert other.mask != ticket.mask
    for name, kept in ticket.mask.items():
        n, k = kept.numel(), int(kept.sum())
        deviation = (k * k / n * (1 - k / n) ** 2 * n / max(1, n - 1)) ** 0.5  # hypergeometric
        assert abs(int((kept & other.mask[name]).sum()) - k * k / n) <= 5 * deviation + 1


def test_snip_ratio_takes_only_the_layer_counts_of_snip(make_lab: MakeLab) -> None:
    lab = make_lab("criterion=snip", "criterion.per_class=1")
    scored = pruned(PruningAtInit(density=0.2), lab).mask
    drawn = pruned(RandomPruning(density=0.2, allocation=SNIP_RATIO), lab).mask
    assert all(abs(drawn.layer_kept[name] - scored.layer_kept[name]) <= 1 for name in scored)
    assert drawn.kept == scored.kept
    assert drawn != scored


def test_scoring_is_a_function_of_the_state_and_the_seed(make_lab: MakeLab) -> None:
    """Batch normalisation in training mode moves its statistics: those of a private copy (methods 3, pitfalls)."""
    lab = make_lab("criterion=snip", "criterion.per_class=1", "seeds.mask=1")
    first, second = (lab.scored_by(lab._criterion, lab.initial.state, lab.initial.mask) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lab = make_lab("criterion=snip", "criterion.per_class=1", "seeds.mask=2")
    other = lab.scored_by(lab._criterion, lab.initial.state, lab.initial.mask)
    assert not all(torch.equal(first[name], other[name]) for name in first), "other images"


def test_scores_that_looked_at_the_network_are_kept(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a study continued on another machine prunes the same weights; those of |w| need no stage."""
    masks = []
    for attempt in range(2):
        lab = make_lab("criterion=snip", "criterion.per_class=1")
        *_, ticket = IMP(rounds=1, rate=0.3)(lab)
        masks.append(ticket.mask)
        assert (lab.store.root / "score" / ticket.stages["score"] / "scores.safetensors").exists()
        if attempt == 0:
            monkeypatch.setattr(Lab, "scored_by", lambda *_: pytest.fail("scored again"))
    assert masks[0] == masks[1]
    monkeypatch.undo()
    path = lab.store.root / "score" / ticket.stages["score"] / "scores.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(LotteryError, match="changed or damaged"):
        list(IMP(rounds=1, rate=0.3)(make_lab("criterion=snip", "criterion.per_class=1")))
    lab = make_lab(runs="magnitude")
    *_, ticket = IMP(rounds=1, rate=0.3)(lab)
    assert "score" not in ticket.stages
    assert not (lab.store.root / "score").exists()


def test_layers_that_score_nothing_are_named(make_lab: MakeLab, caplog: pytest.LogCaptureFixture) -> None:
    """As do blocks that start switched off, by a normalisation whose scale is 0."""
    lab = make_lab("criterion=synflow")
    state = lab.initial.state.tensors()
    name = next(name for name in state if "bn" in name and name.endswith("weight"))
    state[name].zero_()
    with caplog.at_level("WARNING", "lottery"):
        for _ in range(2):
            lab.scored_by(lab._criterion, StateRef.of(state), lab.initial.mask)
    assert [record.getMessage().partition(" score 0")[2][:11] for record in caplog.records] == [" everywhere"]


# -- keys -------------------------------------------------------------------------------------------------------------

SCORED = ("criterion=snip", "criterion.per_class=1")
OTHER_MASK = {  # each changes what a search reads
    "the criterion's option": (("criterion=snip", "criterion.per_class=2", "data.limit=190"), 0.3, 2, None),
    "the criterion": (("criterion=synflow",), 0.3, 2, None),
    "seeds.mask": ((*SCORED, "seeds.mask=5"), 0.3, 2, None),
    "seeds.init": ((*SCORED, "seeds.init=5"), 0.3, 2, None),
    "seeds.split": ((*SCORED, "seeds.split=6"), 0.3, 2, None),
    "the images": ((*SCORED, "data.limit=97"), 0.3, 2, None),
    "the scaling": ((*SCORED, "data.scaling=l2"), 0.3, 2, None),
    "prunable.exclude": ((*SCORED, "prunable.exclude=[fc]"), 0.3, 2, None),
    "density": (SCORED, 0.31, 2, None),
    "steps": (SCORED, 0.3, 3, None),
    "allocation": (SCORED, 0.3, 2, ERK),
    "another allocation": (SCORED, 0.3, 2, UNIFORM),
}
SAME_MASK = (
    "optim.lr=0.3",
    "train.steps=20it",
    "paths.data=elsewhere",
    "name=other",
    "trainer.threads=1",
    "probes=light",
)


def score_key(lab: Lab, density: float, steps: int, allocation: dict[str, object] | None) -> str:
    """Of the stage that a search of method `pai` would be kept in; nothing is scored."""
    keys: list[str] = []
    finished = StopFlag()
    finished.signum = 15
    lab.store.stop = finished  # so that the stage is named and not computed
    original = Store.stage

    def stage(store: Store, kind: str, inputs: dict[str, object]) -> Stage:
        made = original(store, kind, inputs)
        keys.append(made.key)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "stage", stage)
        with pytest.raises(Interrupted):
            next(PruningAtInit(density=density, steps=steps, allocation=allocation)(lab))
    assert len(keys) == 1
    return keys[0]


def test_the_key_of_a_mask_holds_all_that_its_search_reads(make_lab: MakeLab) -> None:
    known = {"as it is": score_key(make_lab(*SCORED), 0.3, 2, None)}
    for change, (overrides, *method) in OTHER_MASK.items():
        known[change] = score_key(make_lab(*overrides), *method)
    assert len(set(known.values())) == len(known), "two of these share a mask"
    for override in SAME_MASK:
        assert score_key(make_lab(*SCORED, override, runs="b"), 0.3, 2, None) == known["as it is"], override


def test_two_methods_do_not_share_a_search(make_lab: MakeLab) -> None:
    lab = make_lab()
    drawn = pruned(RandomPruning(density=0.3, allocation=ERK), lab).mask
    lab.config.method["_target_"] = "lottery.methods.pai.PruningAtInit"
    assert lab.found(lambda lab: lab.initial.mask, density=0.3, allocation=ERK) != drawn


def test_a_saved_mask_counts_by_its_content(make_lab: MakeLab, tmp_path: Path) -> None:
    lab, path = make_lab(), tmp_path / "mask.safetensors"
    node = {"_target_": "lottery.pruning.allocations.from_mask", "_partial_": True, "path": str(path)}
    found = []
    for allocation in (ERK, UNIFORM, ERK):
        lab.drawn(lab.counts(allocation, 0.3)).save(path, round=1, study="s", parent=None)
        found.append(pruned(RandomPruning(density=0.2, allocation=node), lab).mask)
    assert found[0] == found[2]
    assert found[0].layer_kept != found[1].layer_kept


def test_an_edited_criterion_of_ones_own_is_asked_again(
    make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No version of ours is raised when somebody edits theirs: the file is in the key."""
    monkeypatch.syspath_prepend(tmp_path)
    masks = []
    for sign in ("", "-", ""):
        (tmp_path / "own_criterion.py").write_text(
            f"def score(at):\n    return {{name: {sign}weight for name, weight in at.weights.items()}}\n"
        )
        monkeypatch.delitem(sys.modules, "own_criterion", raising=False)
        importlib.invalidate_caches()
        lab = make_lab()
        lab.config.criterion = {"_target_": "own_criterion.score", "_partial_": True}
        masks.append(pruned(PruningAtInit(density=0.3), lab).mask)
    assert masks[0] == masks[2] != masks[1]


# -- as studies -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_a_study_at_init(tmp_path: Path, starts: list[Start]) -> None:
    """Rows, masks and records of every control; a second run of it computes nothing, and gc keeps what it needs."""
    small = [override for override in SMALL if not override.startswith(("method.", "probes="))]
    small += ["probes=quality", "probes.gradient_norm.per_class=1"]
    method = ["method=pai", "criterion=synflow", "method.density=0.2", "method.steps=5"]
    cfg = composed([*small, *method, "controls=sanity", "controls.random=1", f"paths.runs={tmp_path}"])
    study = Study(cfg)
    rows = study.run()
    assert [(row["round"], row["control"]) for row in rows] == [
        (0, None), (1, None), (1, "reinit"), (1, "random"), (1, "shuffle"), (1, "invert"),
    ]  # fmt: skip
    assert study.trainings() == 6
    assert len({row["kept"] for row in rows[1:]}) == 1
    assert len({json.dumps(row["layer_density"]) for row in rows[1:]}) == 1
    masks = {row["control"]: row["mask_digest"] for row in rows[1:]}
    assert masks[None] == masks["reinit"]
    assert len(set(masks.values())) == 4
    stages = [json.loads(p.read_text())["stages"] for p in sorted((study.folder.path / "rounds").glob("*_001*.json"))]
    assert sum("score" in found for found in stages) == 3, "the ticket, the same mask reinitialised, and the inverse"
    assert all({"evaluate quality", "evaluate gradient norm"} <= found.keys() for found in stages)
    outcome = call("store", "gc", "--store", str(tmp_path / ".store"), "--runs", str(tmp_path), "--yes")
    assert (outcome.status, outcome.err) == (0, "")
    assert "removed 0 stages" in outcome.out
    assert Study(cfg).run() == rows
    assert len(starts) == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+exp=random_erk", "method.density=0.0001"], "method.density: got 0.0001, expected at least"),
        (["+exp=random_erk", "method.density=1.2"], "method.density: got 1.2"),
        (["+exp=random_erk", "controls.invert=1"], "controls.invert: got 1, expected 0"),
        (["method=random"], "method.allocation: nothing chosen"),
        (["allocation=erk"], "method.allocation: no such key"),
        (["+exp=synflow", "method.steps=0"], "method.steps: got 0"),
        (["+exp=snip", "criterion.per_class=5000"], "criterion.per_class: got 5000, expected at most"),
        (["+exp=snip", "+criterion.classes=3"], "criterion: lottery.pruning.gradients.snip: "),
        (["criterion=grasp", "criterion.variant=plain"], "criterion.variant: got 'plain', expected one of signed"),
        (
            ["+exp=random_erk", "allocation=grasp_ratio", "method.allocation.criterion.temperature=0"],
            "method.allocation.criterion.temperature: got 0",
        ),
        (
            ["+exp=random_erk", "allocation=snip_ratio", "method.allocation.criterion.per_class=5000"],
            "method.allocation.criterion.per_class: got 5000, expected at most",
        ),
        (["+exp=random_erk", "allocation=from_mask"], "method.allocation.path"),
        (
            ["+exp=random_erk", "allocation=from_mask", "method.allocation.path=nowhere.safetensors"],
            "method.allocation.path: got 'nowhere.safetensors', expected the file of a mask",
        ),
        (["+exp=synflow", "method.density=1e-9"], "method.density: got 1e-09, expected at least 6.667e-05"),
        (["+exp=random_erk", "criterion=snip"], "criterion: got 'snip', expected none"),
        (["criterion=snip", "criterion.per_class=abc"], "criterion.per_class: got 'abc', expected a whole number"),
        (["criterion=snip", "criterion.per_class=1.5"], "criterion.per_class: got 1.5, expected a whole number"),
        (["criterion=grasp", "criterion.temperature=null"], "criterion.temperature: got None, expected a number"),
        (["probes=quality", "probes.quality.bins=1.5"], "probes.quality.bins: got 1.5, expected a whole number"),
        (
            ["+exp=random_erk", "allocation=uniform_plus", "method.allocation.classifier=abc"],
            "method.allocation.classifier: got 'abc', expected a number",
        ),
        (
            ["+exp=random_erk", "allocation=snip_ratio", "method.allocation.criterion=null"],
            "method.allocation.criterion: got None, expected a criterion",
        ),
        (["+exp=random_uniform", "method.allocation._target_=nowhere.at_all"], "method.allocation._target_"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(*overrides, *QUIET)
    assert outcome.status == 2, outcome
    assert message in outcome.line
    assert not any(tmp_path.iterdir())
