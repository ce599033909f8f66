"""Stability to pruning and data order, connectivity, features, curvature: through stages (methods/stability.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line_tools import call
from omegaconf import DictConfig
from training_tools import SMALL, Start

from lottery.compose import composed
from lottery.methods.imp import IMP
from lottery.probes.alignment import Alignment
from lottery.probes.connectivity import Connectivity
from lottery.probes.copies import DataOrder, Pruning
from lottery.probes.curvature import Curvature
from lottery.ranks.broadcast import Broadcast
from lottery.seeding import derive
from lottery.stages.bench import Bench
from lottery.stages.controls import run_control
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.study import Study
from lottery.ticket import Mask
from lottery.training.progress import Progress

MakeLab = Callable[..., Lab]


def rounds_of(lab: Bench, count: int = 1) -> list[Round]:
    lab.history = list(IMP(rounds=count, rate=0.5)(lab))
    return lab.history


# -- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_is_the_training_of_a_study_with_that_order(make_lab: MakeLab, starts: list[Start]) -> None:
    """Same weights, mask, schedule; other batches. Probes and studies share it by its key."""
    lab = Bench(make_lab())
    own, copy = lab.copies(lab.initial, 2)
    assert own.ticket.state == copy.ticket.state
    assert own.state != copy.state
    assert len(starts) == 2
    assert lab.used == {"train copy 1": copy.key}
    lab.copies(lab.initial, 2)
    other = make_lab(f"seeds.order={derive(lab.config.seeds.order, 'copy', 1)}")
    assert other.train(other.initial).key == copy.key
    assert len(starts) == 2


def test_a_copy_in_the_studys_own_order_is_at_distance_zero(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    same = lab.train(replace(lab.initial, order_seed=lab.config.seeds.order))
    assert same.key == lab.train(lab.initial).key
    round = Round(0, lab.initial, same)
    lab.copies = lambda ticket, count: [same] * count  # type: ignore[method-assign]
    assert DataOrder()(round, None, lab) == {"l2_order": 0.0, "angle_order": 0.0}
    figures = Connectivity(points=5, splits=["train", "test"])(round, None, lab)
    assert (figures["lmc_points"], figures["lmc_copies"], figures["lmc_bn_recomputed"]) == (5, 2, 0)
    assert figures["lmc_images_train"] == lab.dataset.sizes["train"]
    assert len(set(figures["lmc_curve_test"])) == 1
    barriers = {name: value for name, value in figures.items() if name.startswith(("lmc_error", "lmc_loss"))}
    assert barriers == pytest.approx(dict.fromkeys(barriers, 0.0), abs=1e-6)
    assert {
        f"lmc_{what}_{split}{end}" for what in ("error", "loss") for split in ("train", "test") for end in ("", "_max")
    } == set(barriers)


def test_other_ranks_are_told_of_the_order(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    ticket = replace(lab.initial, order_seed=5)
    state = lab.initial.state.tensors()
    told = Broadcast.read(*Broadcast("k", ticket, None, frozenset(), (state, None, Progress(0))).written())
    assert told.ticket.order_seed == 5


@pytest.mark.parametrize("to", ["init", "7it"])
def test_without_a_mask_pruning_moves_nothing(make_lab: MakeLab, starts: list[Start], to: str) -> None:
    """T2.5, exactly; and for tickets reset to the initial weights nothing more is trained."""
    lab = Bench(make_lab("rewind=init" if to == "init" else "rewind=weights", f"rewind.to={to}"))
    dense, ticket = rounds_of(lab)
    full = replace(ticket.ticket, mask=Mask.ones(ticket.mask.shapes))
    before = len(starts)
    assert Pruning()(Round(1, full, lab.train(full)), dense, lab) == {"l2_pruning": 0.0, "angle_pruning": 0.0}
    assert len(starts) - before == (0 if to == "init" else 1)
    moved = Pruning()(ticket, dense, lab)
    assert moved["l2_pruning"] > 0
    assert 0 < moved["angle_pruning"] < 180
    assert len(starts) - before == (0 if to == "init" else 1), "the same unpruned training for every round"


def test_what_is_not_trained_has_no_copies(make_lab: MakeLab, starts: list[Start]) -> None:
    """A mask that was searched for and not tuned, an untrained network: distances of 0 would look like stability."""
    lab = Bench(make_lab())
    lab.history = [Round(0, lab.untrained, lab.train(lab.untrained))]
    before = len(starts)
    for index in (0, 1):
        round = replace(lab.dense, index=index)
        for probe in (DataOrder(), Pruning(), Connectivity(points=3), Alignment(between="copies")):
            figures = probe(round, None, lab)
            assert not any(name.startswith(("l2", "angle", "lmc", "cka")) for name in figures), figures
    assert len(starts) == before


@pytest.mark.usefixtures("undrawn")
def test_a_searched_mask_has_no_unpruned_counterpart_in_the_dense_run(tmp_path: Path) -> None:
    search = ["method=bip", "method.steps=10it", "method.density=0.3", "method.tune.steps=10it"]
    kept = [override for override in SMALL if not override.startswith(("method.", "probes="))]
    probes = ["probes=[copies,connectivity]", "probes.connectivity.points=3"]
    dense, found = Study(composed([*kept, *search, *probes, f"paths.runs={tmp_path}"])).run()
    assert found["steps"] == 10
    assert "probe/l2_pruning" not in found
    assert found["probe/l2_order"] > 0, "copies of its tuning"
    assert dense["probe/l2_order"] > 0


# -- connectivity -----------------------------------------------------------------------------------------------------


def test_the_ends_of_a_curve_are_the_networks_own_scores(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    dense, ticket = rounds_of(lab)
    (curve,) = Connectivity(between="previous", points=4).curves(
        [dense.trained.state, ticket.trained.state], "test", lab
    )
    for index, trained in ((0, dense.trained), (-1, ticket.trained)):
        assert curve.loss[index] == pytest.approx(trained.result["test_loss"], rel=1e-5)
        assert curve.error[index] == pytest.approx(1 - trained.result["test_accuracy"])
    assert len(curve.loss) == 4


def test_how_normalisation_is_treated_matters_and_is_in_the_key(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    *_, ticket = rounds_of(lab)
    found = {bn: Connectivity(points=3, bn=bn)(ticket, None, lab) for bn in ("interpolate", "recompute")}
    assert found["interpolate"] != found["recompute"]


def test_between_rounds(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    dense, ticket = rounds_of(lab)
    probe = Connectivity(between="previous", points=3)
    assert probe(dense, None, lab) == {}
    assert len(probe(ticket, dense, lab)["lmc_previous_curve_test"]) == 3
    assert probe(ticket, dense, lab)["lmc_previous_error_test"] >= 0


def test_along_a_path_of_all_tickets(make_lab: MakeLab) -> None:
    """The highest barrier of its lines, each of which is that between two rounds."""
    lab = Bench(make_lab())
    dense, first, second = rounds_of(lab, 2)
    path = Connectivity(between="path", points=3)(second, first, lab)
    lines = [Connectivity(between="previous", points=3)(r, p, lab) for r, p in ((first, dense), (second, first))]
    assert path["lmc_path_loss_test"] == pytest.approx(max(line["lmc_previous_loss_test"] for line in lines))
    assert len(path["lmc_path_curve_test"]) == 5


def test_a_control_takes_its_tickets_place_on_the_path(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    dense, first, second = rounds_of(lab, 2)
    probe = Connectivity(between="path")
    control = run_control(lab, second, "random", 0)
    expected = [dense.trained.state, first.trained.state, control.trained.state]
    assert probe.ends(control, first, lab) == expected
    assert probe.ends(second, first, lab) == [*expected[:2], second.trained.state]


def test_a_path_holds_the_tickets_of_its_own_rewind_point(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    dense, first, second = rounds_of(lab, 2)
    lab.history = [dense, replace(first, rewound=0), replace(second, rewound=7)]
    ends = Connectivity(between="path").ends(replace(second, index=3, rewound=7), None, lab)
    assert ends == [dense.trained.state, second.trained.state, second.trained.state]


def test_only_copies_are_planned_as_trainings(tmp_path: Path) -> None:
    for between, planned in (("copies", 6), ("previous", 3), ("path", 3)):
        probe = ["probes=connectivity", f"probes.connectivity.between={between}"]
        kept = [override for override in SMALL if not override.startswith("probes=")]
        assert Study(composed([*kept, *probe, f"paths.runs={tmp_path}"])).trainings() == planned


def test_fewer_images_are_others_and_are_reported(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    *_, ticket = rounds_of(lab)
    few = Connectivity(points=3, limit=50)(ticket, None, lab)
    assert few["lmc_images_test"] == 50
    assert few["lmc_loss_test"] != Connectivity(points=3)(ticket, None, lab)["lmc_loss_test"]


# -- features and curvature -------------------------------------------------------------------------------------------


def test_features_of_one_network_are_aligned_with_themselves(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    dense, ticket = rounds_of(lab)
    same = Alignment(batch=50)(Round(1, dense.ticket, dense.trained), None, lab)["cka_dense"]
    assert same == pytest.approx(dict.fromkeys(same, 1.0))
    other = Alignment(batch=50)(ticket, dense, lab)["cka_dense"]
    assert other.keys() == same.keys()
    assert all(value < 0.9999 for value in other.values())


def test_curvature_is_that_of_the_kept_weights(make_lab: MakeLab) -> None:
    lab = Bench(make_lab())
    *_, ticket = rounds_of(lab)
    found = Curvature(per_class=1, products=200, samples=3, tolerance=0.05)(ticket, None, lab)
    assert found["hessian_top"] > 0
    assert found["hessian_trace_error"] > 0
    none = Curvature(per_class=1, products=1, samples=1, tolerance=1e-9)(ticket, None, lab)
    assert none["hessian_top"] is None, "not converged"


# -- as a study -------------------------------------------------------------------------------------------------------


def small(tmp_path: Path, *overrides: str) -> DictConfig:
    kept = [override for override in SMALL if not override.startswith("probes=")]
    few = ["probes.gradient_norm.per_class=1", "probes.curvature.per_class=1", "probes.curvature.products=3"]
    few += ["probes.curvature.samples=2", "probes.connectivity.points=3", "probes.connectivity_previous.points=3"]
    return composed([*kept, "probes=full", *few, f"paths.runs={tmp_path}", *overrides])


@pytest.mark.slow
def test_every_probe_in_a_study_with_controls(tmp_path: Path, starts: list[Start]) -> None:
    """Figures are JSON; copies are named in rounds/*.json, so that gc keeps them; a second run trains nothing."""
    study = Study(small(tmp_path, "controls.random=1", "method.rounds=1"))
    rows = study.run()
    assert all((study.folder.path / "figures" / f"{name}.png").exists() for name in ("lmc", "lmc_previous"))
    assert len(starts) == study.trainings() + 1 == 7, "three, each twice, and the unpruned one (rewind.to=7it)"
    wanted = {"mask_hamming_previous", "mask_iou_magnitude", "density_effective", "pq_layers", "l2_from_dense"}
    wanted |= {"l2_order", "angle_pruning", "lmc_error_train", "lmc_loss_test_max", "cka_dense", "hessian_trace", "ece"}
    wanted |= {"pq_least_layers", "lmc_previous_error_test", "cka_copies"}
    for row in rows[1:]:
        assert {f"probe/{name}" for name in wanted} <= row.keys()
        json.dumps(row, allow_nan=False)
    stages = json.loads((study.folder.path / "rounds" / "round_001.random-0.json").read_text())["stages"]
    assert {"train", "train copy 1", "train unpruned", "evaluate pruning"} <= stages.keys()
    outcome = call("store", "gc", "--store", str(tmp_path / ".store"), "--runs", str(tmp_path), "--yes")
    assert "removed 0 stages" in outcome.out
    assert Study(small(tmp_path, "controls.random=1", "method.rounds=1")).run() == rows
    assert len(starts) == 7


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_study_keeps_its_copies(tmp_path: Path) -> None:
    """They differ from what the configuration says in the seed of the order alone."""
    study = Study(small(tmp_path, "method.rounds=1"))
    study.run()
    status = study.folder.path / "status.json"
    status.write_text(status.read_text().replace('"done"', '"interrupted"'))
    for path in (study.folder.path / "rounds").glob("*.json"):
        path.unlink()
    outcome = call("store", "gc", "--store", str(tmp_path / ".store"), "--runs", str(tmp_path), "--yes")
    assert len([path for path in (tmp_path / ".store" / "train").iterdir()]) == 5, outcome.out


@pytest.mark.usefixtures("undrawn")
def test_copies_only_in_the_rounds_that_are_asked_for(tmp_path: Path, starts: list[Start]) -> None:
    rounds = [f"probes.{name}.rounds=[2]" for name in ("data_order", "pruning", "connectivity", "alignment_copies")]
    study = Study(small(tmp_path, "method.rounds=2", "rewind=init", "rewind.to=init", *rounds))
    rows = study.run()
    assert ["probe/l2_order" in row for row in rows] == [False, False, True]
    assert len(starts) == study.trainings() == study.terminal.progress.done == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probes=copies", "probes.data_order.copies=1"], "probes.data_order.copies: got 1, expected a number ≥ 2"),
        (["probes=copies", "rewind=lr"], "rewind.weights: got 'keep'"),
        (["probes=connectivity", "probes.connectivity.copies=1"], "probes.connectivity.copies: got 1"),
        (["probes=connectivity", "probes.connectivity.bn=none"], "probes.connectivity.bn: got 'none', expected one of"),
        (["probes=connectivity", "probes.connectivity.points=1"], "probes.connectivity.points: got 1"),
        (["probes=connectivity", "probes.connectivity.limit=0"], "probes.connectivity.limit: got 0"),
        (["probes=connectivity", "probes.connectivity.splits=[val]"], "probes.connectivity.splits: got 'val'"),
        (
            ["probes=connectivity", "probes.connectivity.splits=[validation]", "data.validation=0"],
            "probes.connectivity.splits: got 'validation', expected a split that has images",
        ),
        (["probes=alignment", "probes.alignment.layers=[fc9]"], "probes.alignment.layers: got 'fc9'"),
        (["probes=alignment", "probes.alignment.batch=3"], "probes.alignment.batch: got 3"),
        (["probes=curvature", "probes.curvature.per_class=9000"], "probes.curvature.per_class: got 9000"),
        (["probes=curvature", "probes.curvature.samples=0"], "probes.curvature.samples: got 0"),
        (["probes=full", "probes.connectivity_previous.bn=none"], "probes.connectivity_previous.bn: got 'none'"),
        (["probes=light", "probes.pq.p=2"], "probes.pq.p, q: got (2"),
    ],
)
def test_a_wrong_probe_is_one_line_and_writes_nothing(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(*overrides, "tracker=none", "train.steps=20it")
    assert outcome.status == 2, outcome
    assert outcome.line.startswith(f"lottery: {message}")
    assert not any(tmp_path.iterdir())
