"""What the figures of `lottery.figures` show is what the table holds, and what they cannot show they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from report_tools import write_study

from lottery.analysis.intervals import t_interval
from lottery.errors import ConfigError, LotteryError
from lottery.figures import (
    connectivity,
    cost,
    density,
    layers,
    masks,
    quality,
    rewinding,
    searches,
    sizes,
)
from lottery.figures.curves import curves
from lottery.figures.experiments import experiments
from lottery.figures.sheet import draw_curve, draw_published, legend
from lottery.record.table import load_runs

SEEDS = (0, 1, 2)
CONV = {"_target_": "lottery.models.conv.conv", "blocks": 1}
IMP = {"_target_": "lottery.methods.imp.IMP", "rounds": 3, "one_shot": False}
SNIP = {"_target_": "lottery.methods.pai.PruningAtInit"}
BIP = {"_target_": "lottery.methods.bip.BiP"}
SCORES = {"_target_": "lottery.pruning.gradients.snip"}

Study = Callable[..., Path]


@pytest.fixture
def study(make_run, row) -> Study:
    """A function of (name, seed, rounds, changes of every row by round and control, configuration): a run folder."""

    def make(
        name: str, seed: int = 0, rounds: int = 3, controls: tuple[str, ...] = (), rows: Any = None, **config: Any
    ):
        made = []
        for k in range(rounds + 1):
            for control in (None, *controls) if k else (None,):
                changes = rows(k, control) if rows else {}
                digest = f"{'dense' if k == 0 else name} {seed} {k} {control}"
                accuracy = 0.95 - 0.01 * k + 0.001 * seed - (0.02 if control else 0)
                made.append(
                    row(
                        k,
                        control,
                        **{"test_accuracy": accuracy, "weights_digest": digest, "mask_digest": digest} | changes,
                    )
                )
        return make_run(f"{name}/{seed}", made, seed=seed, seeds={"init": seed}, **config)

    return make


@pytest.fixture
def lth(study, tmp_path) -> pd.DataFrame:
    """IMP over three seeds, with a control; the third seed has come a round less far."""
    for seed in SEEDS:
        study("lth", seed, rounds=2 if seed == 2 else 3, controls=("random",))
    return load_runs(tmp_path)


@pytest.fixture
def one_shot(study, tmp_path) -> pd.DataFrame:
    """SNIP, and BiP, at two densities each, over two seeds, from the same dense networks."""
    for method, config in (("snip", {"method": SNIP, "criterion": SCORES}), ("bip", {"method": BIP})):
        for target in (0.5, 0.1):
            for seed in (0, 1):
                searched = {"search_steps": 500, "search_batches": 1000, "search_seconds": 9.0, "steps": 0}

                def rows(k: int, _: Any, target: float = target, method: str = method, searched: Any = searched):
                    better = 0.02 if method == "bip" else 0
                    made = {"density": target, "density_weights": target, "test_accuracy": 0.8 + 0.1 * target + better}
                    return ({**made, **(searched if method == "bip" else {})}) if k else {"steps": 2000}

                of = config["method"] | {"density": target}
                study(f"{method}{target}", seed, rounds=1, rows=rows, **config | {"method": of})
    return load_runs(tmp_path)


def axes_of(panels: int = 1) -> Any:
    return Figure().subplots(1, panels)


def named(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


def band(axes: Any, x: float) -> tuple[float, float]:
    """The ends of the first band at x."""
    edges = axes.collections[0].get_paths()[0].vertices
    at = edges[np.isclose(edges[:, 0], x), 1]
    return at.min(), at.max()


# -- accuracy and early stop ------------------------------------------------------------------------------------------


def test_accuracy_is_the_mean_over_seeds_in_a_band_from_the_lowest_to_the_highest(lth):
    axes = axes_of()
    density.draw_densities(axes, experiments(lth), "test_accuracy")
    tickets = lth[lth["control"].isna()]
    at = tickets.groupby("round")["test_accuracy"]
    line = named(axes)["ticket (n = 2–3)"]
    assert list(line.get_xdata()) == pytest.approx(sorted(tickets["density"].unique()))
    np.testing.assert_allclose(line.get_ydata()[::-1], 100 * at.mean())
    sparsest = tickets["density"].min()
    assert band(axes, sparsest) == pytest.approx((100 * at.min()[3], 100 * at.max()[3]))
    dense = named(axes)["dense"]
    assert list(dense.get_ydata()) == [pytest.approx(95.1)] * 2, "the mean of the dense networks"
    control = named(axes)["random mask (n = 2–3)"]
    np.testing.assert_allclose(control.get_ydata(), line.get_ydata()[:3] - 2)


def test_a_t_interval_instead_of_the_range(lth):
    axes = axes_of()
    density.draw_densities(axes, experiments(lth[lth["control"].isna()]), "test_accuracy", band="t")
    at_1 = lth[(lth["round"] == 1) & lth["control"].isna()]
    expected = t_interval(100 * at_1["test_accuracy"])
    assert band(axes, at_1["density"].iloc[0]) == pytest.approx(tuple(expected))
    with pytest.raises(ConfigError, match="band: got 'sd', expected one of range, t, bootstrap"):
        curves(experiments(lth), "test_accuracy", "density", "sd")


def test_both_densities(lth, tmp_path):
    lth = lth.assign(density_weights=lth["density"] / 2 + 0.5)
    for name, words in density.DENSITY.items():
        axes = axes_of()
        density.draw_densities(axes, experiments(lth), "test_accuracy", name)
        ticket = axes.lines[0]
        assert list(ticket.get_xdata()) == pytest.approx(sorted(lth[name].unique()))
        assert (axes.get_xlabel(), axes.get_xscale()) == (words, "log")
    with pytest.raises(ConfigError, match="density: got 'sparsity', expected one of density, density_weights"):
        density.accuracy(lth, tmp_path / "a", density="sparsity")


def test_early_stop_is_in_steps_from_zero(lth):
    axes = axes_of()
    density.draw_densities(axes, experiments(lth), "early_stop_step")
    assert list(axes.lines[0].get_ydata()) == [4500, 5000, 5500, 6000]  # from the sparsest on
    assert axes.get_ylim()[0] == 0


def test_early_stop_without_a_validation_split_says_what_is_needed(lth, tmp_path):
    lth["early_stop_step"] = np.nan
    message = "early_stop_step: not measured in these runs; it needs a validation split, such as data.validation=5000"
    with pytest.raises(LotteryError, match=f"^{message}$"):
        density.early_stop(lth, tmp_path / "a")
    assert not list(tmp_path.glob("a*"))


def test_published_points_are_hollow_in_the_colour_of_their_curve_and_say_where_they_are_from(lth):
    axes = axes_of()
    published = [
        {"x": 0.5, "y": 0.975, "series": "random", "label": "random mask, Their Fig. 4"},
        {"x": 0.5, "y": 0.985, "series": None, "label": "ticket, Their Fig. 4"},
        {"x": 0.02, "y": 0.9, "series": None, "label": "ticket, Their Fig. 4"},
        {"x": 1, "y": 0.98, "series": "dense", "label": "dense, Their Fig. 4"},
    ]
    density.draw_densities(axes, experiments(lth), "test_accuracy", published=published)
    lines = named(axes)
    theirs, ours = lines["ticket, Their Fig. 4"], lines["ticket (n = 2–3)"]
    assert list(theirs.get_xdata()) == [0.5, 0.02]
    assert list(theirs.get_ydata()) == pytest.approx([98.5, 90])
    assert theirs.get_markerfacecolor() == "white"
    assert theirs.get_color() == ours.get_color()
    assert theirs.get_linestyle() == "None"
    assert lines["random mask, Their Fig. 4"].get_color() == lines["random mask (n = 2–3)"].get_color()
    assert lines["dense, Their Fig. 4"].get_color() == lines["dense"].get_color()
    left, right = axes.get_xlim()
    assert left > 1 > 0.02 > right, "the axis holds them"
    with pytest.raises(ConfigError, match=r"published: .* it has no label"):
        draw_published(axes, [{"x": 1, "y": 1}], [])


@pytest.mark.parametrize(
    ("module", "fixture", "options", "where"),
    [
        (rewinding, "instability", {"x": 500, "panel": "barrier"}, [1, 0]),
        (rewinding, "instability", {"x": 500}, [0, 1]),
        (cost, "one_shot", {"x": 3000, "density": 0.1}, [0, 1]),
        (sizes, "widths", {"x": 5000, "density": 0.2}, [1]),
        (quality, "widths", {"x": 0.2, "value": "probe/ood_auc_mnist"}, [0, 1, 0, 0]),
        (layers, "layer_tickets", {"x": 3, "panel": "speedup"}, [0, 1]),
    ],
)  # fmt: skip
def test_published_points_are_on_their_axes(module, fixture, options, where, request, tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(module, "legend", lambda panels, *_: figures.append(panels[0].figure))
    name = {cost: "cost", layers: "layers", quality: "quality", rewinding: "rewind", sizes: "width_depth"}[module]
    given = {"by": "model.hidden"} if module is quality else {}
    theirs = [{"y": 0.5, "label": "theirs", **options}]
    getattr(module, name)(request.getfixturevalue(fixture), tmp_path / "a", published=theirs, **given)
    assert [sum(line.get_label() == "theirs" for line in axes.lines) for axes in figures[0].axes] == where


# -- which rows make a curve ------------------------------------------------------------------------------------------


def test_studies_that_differ_are_curves_of_their_own_named_by_what_differs(study, tmp_path):
    for to in ("init", "500it", "1000it"):
        for seed in (0, 1):
            study(f"to{to}", seed, rewind={"to": to, "weights": "rewind", "schedule": "rewind"})
    frame = load_runs(tmp_path)
    words = [group.words for group in experiments(frame)]
    assert sorted(words) == ["IMP, reset to init", "IMP, rewound to 1000it", "IMP, rewound to 500it"]
    assert [g.words for g in experiments(frame[frame["config.rewind.to"] != "init"], "rewind.to")] == [
        "500it",
        "1000it",
    ]
    axes = axes_of()
    found = density.draw_densities(axes, experiments(frame), "test_accuracy")
    assert len({curve.colour for curve in found}) == 3
    assert {curve.counted.rpartition(" (")[2] for curve in found} == {"n = 2)"}


def test_what_sets_experiments_of_one_method_apart_is_in_their_names(study, tmp_path):
    for rate in (0.2, 0.5):
        study(f"rate{rate}", method=IMP | {"rate": rate})
    assert [group.words for group in experiments(load_runs(tmp_path))] == ["rate 0.2", "rate 0.5"]


def test_a_paper_s_label_names_a_curve(lth):
    frame = lth.assign(label=lth["seed"].map({0: "Ours", 1: "Ours", 2: "Theirs"}))
    assert [(g.words, g.rows["run"].nunique()) for g in experiments(frame)] == [("Ours", 2), ("Theirs", 1)]


def test_mixed_architectures_are_one_line_and_by_is_the_way_out(study, tmp_path):
    study("lenet")
    study("conv", model=CONV)
    frame = load_runs(tmp_path)
    message = (
        "2 architectures or data sets in one figure (Conv-2 on MNIST, LeNet-300-100 on MNIST): draw one, by "
        "load_runs(..., filters={'config.model._target_': ...}), or each as its own curve, by='model._target_'"
    )
    for function in (density.accuracy, masks.layer_density):
        with pytest.raises(LotteryError) as caught:
            function(frame, tmp_path / "a")
        assert str(caught.value) == message
    assert [group.words for group in experiments(frame, "model._target_")] == ["conv", "lenet 300 100"]


def test_mixed_data_sets_are_refused_also_where_architectures_may_differ(study, tmp_path):
    study("mnist")
    study("fashion", model=CONV, data={"_target_": "lottery.data.sources.fashion_mnist", "name": "fashion_mnist"})
    frame = load_runs(tmp_path)
    frame.loc[frame["run"] == frame["run"].iloc[0], "prunable"] = 5
    with pytest.raises(LotteryError, match=r"2 data sets in one figure \(Fashion-MNIST, MNIST\)"):
        sizes.width_depth(frame, tmp_path / "a")


def test_by_may_not_hide_a_difference(study, tmp_path):
    for rate in (0.2, 0.5):
        study(f"rate{rate}", seed=int(10 * rate), method=IMP | {"rate": rate})
    with pytest.raises(
        LotteryError, match=r"differ in config.method.rate \(0.2, 0.5\): add it to `by`, or leave out one$"
    ):
        experiments(load_runs(tmp_path), "model._target_")
    with pytest.raises(ConfigError, match=r"by: the table has no column 'method.rat'.*method.rate"):
        experiments(load_runs(tmp_path), "method.rat")


def test_a_seed_twice_is_refused_unless_it_is_the_same_training(lth, study, tmp_path):
    again = lth[lth["seed"] == 0].assign(run="elsewhere")
    frame = pd.concat([lth, again], ignore_index=True)
    assert experiments(frame)[0].rows["run"].nunique() == 3, "run again with other probes: once"
    again["weights_digest"] += " other"
    with pytest.raises(LotteryError, match=r"have the same seeds: give each seed once$"):
        experiments(pd.concat([lth, again], ignore_index=True))


def test_several_rewind_points_of_one_study_are_curves_of_their_own(instability):
    groups = experiments(instability)
    assert [group.words for group in groups] == ["rewound to step 0", "rewound to step 500"]
    assert all((group.rows["round"] > 0).all() for group in groups)
    axes = axes_of()
    density.draw_densities(axes, groups, "test_accuracy")
    assert "dense" in named(axes), "which belongs to no rewind point"


def test_densities_of_studies_of_their_own_are_one_curve_to_which_no_line_leads_from_dense(one_shot):
    axes = axes_of()
    density.draw_densities(axes, experiments(one_shot), "test_accuracy")
    lines = named(axes)
    assert set(lines) == {"SNIP at init (n = 2)", "BiP (n = 2)", "dense"}
    assert list(lines["BiP (n = 2)"].get_xdata()) == [0.1, 0.5]
    assert list(lines["BiP (n = 2)"].get_ydata()) == pytest.approx([83, 87])
    assert lines["dense"].get_ydata()[0] == pytest.approx(95.05), "two networks that eight studies share"


def test_dense_networks_that_differ_have_a_line_each(study, tmp_path):
    study("lenet")
    study("conv", model=CONV, rows=lambda k, _: {"weights_digest": f"conv {k}", "test_accuracy": 0.5})
    axes = axes_of()
    groups = experiments(load_runs(tmp_path), "model._target_")
    found = density.draw_densities(axes, groups, "test_accuracy")
    level = {line.get_color(): line.get_ydata()[0] for line in axes.lines if len(set(line.get_xdata())) == 2}
    assert level[found[0].colour] == pytest.approx(50)
    assert level[found[1].colour] == pytest.approx(95)
    assert "dense, each in its colour" in named(axes)


# -- masks ------------------------------------------------------------------------------------------------------------


def test_layer_densities_are_means_over_the_seeds(lth):
    lth["layer_density"] = [
        {"a": 1.0, "b": 0.5**k + 0.1 * seed} for k, seed in zip(lth["round"], lth["seed"], strict=True)
    ]
    (group,) = experiments(lth)
    table = masks.layer_table(group)
    assert list(table.index) == ["a", "b"]
    assert [place[0] for place in table] == [0, 1, 2, 3]
    np.testing.assert_allclose(table.loc["b"], [1 + 0.1, 0.5 + 0.1, 0.25 + 0.1, 0.125 + 0.05])
    axes = axes_of()
    mesh = masks.draw_layers(axes, table, 5.0)
    np.testing.assert_allclose(mesh.get_array().reshape(2, 4), table.to_numpy())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_ylim() == (2, 0), "downwards"
    assert axes.get_xticklabels()[1].get_text().startswith("1\n")


def test_one_shot_studies_are_places_by_density(one_shot):
    group = next(group for group in experiments(one_shot) if group.words == "BiP")
    assert [place for place in masks.layer_table(group)] == [(0, 1.0), (1, 0.5), (1, 0.1)]


@pytest.fixture
def masked(tmp_path) -> pd.DataFrame:
    """Two experiments of two seeds whose masks are equal seed by seed, and independent between seeds."""
    for seed in (0, 1):
        for name, to in (("init", "init"), ("late", "500it")):
            rewind = {"to": to, "weights": "rewind", "schedule": "rewind"}
            write_study(tmp_path / name, seed, rounds=2, copies=0, rewind=rewind)
    return load_runs(tmp_path)


def test_overlap_of_experiments_is_between_equal_seeds_and_on_the_diagonal_between_different_ones(masked, tmp_path):
    found = masks.chosen([Path(run) for run in masked["run"].unique()], None)
    names, pairs = masks._means(found, experiments(masked))
    assert names == ["IMP, reset to init (n = 2)", "IMP, rewound to 500it (n = 2)"]
    assert pairs[0, 1].iou == 1
    for i in (0, 1):
        assert pairs[i, i].iou == pytest.approx(pairs[i, i].iou_chance, rel=0.02)
    assert [path.name for path in masks.overlap(masked, tmp_path / "all")] == ["all.png", "all.svg", "all.pdf"]


def test_overlap_of_one_study_is_between_its_rounds(masked):
    """Not where each mask is part of the one before: test_study_figures.py."""
    one = masked[masked["run"] == masked["run"].iloc[0]]
    with pytest.raises(LotteryError, match="has 1 tickets, an overlap matrix takes 2 to 30"):
        masks._rounds(Path(one["run"].iloc[0]), one[one["round"] < 2])


# -- connectivity and rewinding ---------------------------------------------------------------------------------------


@pytest.fixture
def instability(study, tmp_path) -> pd.DataFrame:
    """Rounds 1 and 2 rewound to step 0, rounds 3 and 4 to step 500; the barrier falls to nothing."""

    def rows(seed: int) -> Any:
        def of(k: int, _: Any) -> dict[str, Any]:
            barrier = (0.1 if k < 3 else 0.0) + 0.01 * seed
            return {
                "step_rewind": 500 if k > 2 else 0,
                "density": 1.0 if k == 0 else (0.5, 0.25)[(k - 1) % 2],
                "probe/lmc_points": 3,
                "probe/lmc_copies": 2,
                "probe/lmc_error_test": barrier,
                "probe/lmc_curve_test": [0.1, 0.1 + barrier, 0.1],
            }

        return of

    for seed in (0, 1):
        study(
            "instability",
            seed,
            rounds=4,
            rows=rows(seed),
            method={"_target_": "lottery.methods.instability.Instability"},
        )
    return load_runs(tmp_path)


def test_error_along_a_line_is_the_mean_over_seeds_of_each_density(instability):
    axes = axes_of()
    first = experiments(instability)[0]
    connectivity.draw_lines(axes, first, "probe/lmc_curve_test", "lmc", 0.25)
    assert list(named(axes)) == ["50 %", "25 %"]
    line = named(axes)["25 %"]
    assert list(line.get_xdata()) == [0, 0.5, 1]
    assert list(line.get_ydata()) == pytest.approx([10, 20.5, 10])
    assert band(axes, 0.5) == pytest.approx((20, 21))
    assert axes.get_title() == "rewound to step 0, n = 2"


def test_lines_measured_in_different_ways_are_refused(instability, tmp_path):
    instability.loc[instability["seed"] == 1, "probe/lmc_points"] = 4
    with pytest.raises(LotteryError, match="2 copies, 3 points and 2 copies, 4 points"):
        connectivity.lmc(instability, tmp_path / "a")


def test_barrier_and_accuracy_against_the_rewind_step(instability):
    groups = experiments(instability, axis=rewinding.POINTS)
    assert len(groups) == 1, "rewind points are the axis"
    axes = axes_of()
    rewinding.draw_rewound(axes, groups, "probe/lmc_error_test", [0.5, 0.25])
    lines = named(axes)
    assert set(lines) == {"ticket 50 % (n = 2)", "ticket 25 % (n = 2)"}
    assert list(lines["ticket 25 % (n = 2)"].get_xdata()) == [0, 500]
    assert list(lines["ticket 25 % (n = 2)"].get_ydata()) == pytest.approx([10.5, 0.5])


def test_a_sweep_of_rewind_points_is_one_curve_too(study, tmp_path):
    for step in (0, 100):
        for seed in (0, 1):
            rewind = {"to": f"{step}it", "weights": "rewind", "schedule": "rewind"}
            rows = lambda k, _, step=step: {"step_rewind": step if k else 0, "probe/lmc_error_test": 0.02}  # noqa: E731
            study(f"to{step}", seed, rounds=1, rows=rows, rewind=rewind)
    (group,) = experiments(load_runs(tmp_path), axis=rewinding.POINTS)
    axes = axes_of()
    (curve,) = rewinding.draw_rewound(axes, [group], "probe/lmc_error_test", [group.rows["density"].min()])
    assert curve.points[["x", "n"]].to_numpy().tolist() == [[0, 2], [100, 2]]


@pytest.fixture
def stability(study, tmp_path) -> pd.DataFrame:
    """Tickets rewound to steps 0 and 100, with random masks of step 0; distances of the sparser round only."""

    def rows(step: int, seed: int) -> Any:
        def of(k: int, control: str | None) -> dict[str, Any]:
            place = {"step_rewind": step if k else 0}
            if k < 2:
                return place
            of_random = 2 if control else 1
            measured = {"l2_order": 10 + seed, "l2_pruning": 20, "angle_order": 30, "angle_pruning": 40 - step / 10}
            return place | {f"probe/{name}": of_random * value for name, value in measured.items()}

        return of

    for step in (0, 100):
        for seed in (0, 1):
            rewind = {"to": f"{step}it", "weights": "rewind", "schedule": "rewind"}
            controls = ("random",) if step == 0 else ()
            study(f"to{step}", seed, rounds=2, rows=rows(step, seed), rewind=rewind, controls=controls)
    return load_runs(tmp_path)


def test_distances_are_drawn_in_their_own_units_against_the_rewind_step(stability, tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(rewinding, "legend", lambda panels, *_: figures.append(panels[0].figure))
    theirs = [
        {"x": 0, "y": 20.7, "panel": "l2_order", "label": "theirs"},
        {"x": 0, "y": 58.6, "panel": "l2_order", "series": "random", "label": "theirs, random"},
    ]
    rewinding.stability(stability, tmp_path / "a", published=theirs)
    panels = {axes.get_ylabel(): named(axes) for axes in figures[0].axes}
    assert list(panels) == [
        "another data order: L2", "another data order: angle (°)", "pruning: L2", "pruning: angle (°)"
    ]  # fmt: skip
    order = panels["another data order: L2"]
    assert list(order["ticket (n = 2)"].get_xdata()) == [0, 100]
    assert list(order["ticket (n = 2)"].get_ydata()) == pytest.approx([10.5, 10.5])
    assert list(order["random mask (n = 2)"].get_ydata()) == pytest.approx([21])
    assert list(order["theirs"].get_ydata()) == pytest.approx([20.7])
    assert order["theirs, random"].get_color() == order["random mask (n = 2)"].get_color()
    assert list(panels["pruning: angle (°)"]["ticket (n = 2)"].get_ydata()) == pytest.approx([40, 30])
    assert all("theirs" not in lines for words, lines in panels.items() if words != "another data order: L2")


# -- cost and search --------------------------------------------------------------------------------------------------


def test_cost_is_of_all_trainings_that_a_ticket_builds_on(study, tmp_path):
    study("imp", method=IMP)
    study("at_once", method=IMP | {"one_shot": True})
    frame = cost.with_cost(load_runs(tmp_path, {"name": "lth_lenet"}), "steps")
    spent = {shot: rows["cost"].tolist() for shot, rows in frame.groupby("config.method.one_shot")}
    assert spent == {False: [50_000, 100_000, 150_000, 200_000], True: [50_000, 100_000, 100_000, 100_000]}


def test_cost_of_what_needs_no_dense_training_and_of_what_searches(one_shot):
    found = cost.with_cost(one_shot, "steps")
    tickets = found[found["round"] == 1].groupby("config.method._target_")["cost"].unique()
    assert list(tickets["lottery.methods.pai.PruningAtInit"]) == [50_000], "its own training"
    assert list(tickets["lottery.methods.bip.BiP"]) == [2000 + 1000], "dense training and the search's batches"
    seconds = cost.with_cost(one_shot, "seconds")
    assert set(seconds.loc[seconds["round"] == 1, "cost"]) == {60, 120}


def test_cost_panels_are_the_densities_that_experiments_share(one_shot):
    axes = axes_of()
    found = cost.draw_costs(axes, experiments(cost.with_cost(one_shot, "steps")), "steps", 0.1)
    assert {curve.words: curve.points["x"].tolist() for curve in found} == {"SNIP at init": [50_000], "BiP": [3000]}
    line = named(axes)["BiP (n = 2)"]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([3.0], [pytest.approx(83)]), "thousand batches"


def test_cost_says_what_it_cannot_know(instability, lth, tmp_path):
    with pytest.raises(LotteryError, match="cost: the rounds of Instability do not hold all trainings"):
        cost.cost(instability, tmp_path / "a")
    with pytest.raises(
        LotteryError, match=r"probe/cost_joules: not measured .* probes=\[light,cost\], on a machine that"
    ):
        cost.cost(lth, tmp_path / "a", x="joules")
    with pytest.raises(ConfigError, match="x: got 'euros', expected one of steps, seconds, joules"):
        cost.cost(lth, tmp_path / "a", x="euros")


@pytest.fixture
def searched(one_shot) -> pd.DataFrame:
    """With the searches of BiP, seed 1's a tenth better."""
    for run, rows in one_shot[one_shot["search_steps"].notna()].groupby("run"):
        better = 0.1 * int(rows["seed"].iloc[0])
        lines = [f"1,{step},1.0,{0.5 + better + step / 1000},{100 - step},0.5" for step in (0, 50, 100)]
        head = "round,step,train_loss,val_accuracy,swaps,magnitude_iou\n"
        (Path(str(run)) / "search.csv").write_text(head + "\n".join(lines) + "\n")
    return one_shot


def test_searches_converge_in_means_over_seeds(searched):
    line = axes_of(3)
    tables = [[searches.first_search(Path(run)) for run in sorted(searched["run"].unique()) if "bip0.1" in run]]
    (group,) = experiments(searched[searched["search_steps"].notna()])
    searches.draw_searches(line, [group], tables, searched)
    error, swaps, overlap = (named(axes)["search (n = 2)"] for axes in line)
    assert list(error.get_xdata()) == [0, 50, 100]
    assert list(error.get_ydata()) == pytest.approx([45, 40, 35])
    assert list(swaps.get_ydata()) == [100, 50, 0]
    assert list(overlap.get_ydata()) == [0.5] * 3
    assert band(line[0], 100) == pytest.approx((30, 40))


def test_without_a_search_it_says_which_methods_have_one(lth, tmp_path):
    with pytest.raises(
        LotteryError, match=r"search_steps: not measured .*a method that searches for masks, such as \+exp=bip"
    ):
        searches.search(lth, tmp_path / "a")


# -- sizes, quality, layers -------------------------------------------------------------------------------------------


@pytest.fixture
def widths(study, tmp_path) -> pd.DataFrame:
    """MLPs of two widths, with qualities."""
    for width, weights in ((20, 1000), (80, 16_000)):
        for seed in (0, 1):

            def rows(k: int, _: Any, weights: int = weights, width: int = width) -> dict[str, Any]:
                low = 0.1 if k else 0
                found = {"prunable": weights, "density": 0.2 if k else 1.0, "test_accuracy": 0.8 + width / 1000 - low}
                accuracies = {f"probe/accuracy_{name}": 0.5 - low for name in ("fgsm", "noise", "corrupted")}
                digest = f"{width} {k}"
                return found | accuracies | {"probe/ece": 0.02, "probe/ood_auc_mnist": 0.7, "weights_digest": digest}

            model = {"_target_": "lottery.models.mlp.mlp", "hidden": [width, width]}
            study(f"w{width}", seed, rounds=1, rows=rows, model=model)
    return load_runs(tmp_path)


def test_width_is_by_prunable_weights_and_named_by_what_differs(widths):
    assert sizes.size_words(widths) == {1000: "20-20", 16_000: "80-80"}
    axes = axes_of()
    models = [name for name in widths if name.startswith("config.model.")]
    (group,) = experiments(widths, axis=models, architectures=True)
    sizes.draw_sizes(axes, [group], "test_accuracy", 0.2)
    lines = named(axes)
    assert list(lines["dense (n = 2)"].get_xdata()) == list(lines["ticket (n = 2)"].get_xdata()) == [1000, 16_000]
    assert list(lines["dense (n = 2)"].get_ydata()) == pytest.approx([82, 88])
    assert list(lines["ticket (n = 2)"].get_ydata()) == pytest.approx([72, 78])


def test_one_network_has_no_width(lth, tmp_path):
    with pytest.raises(LotteryError, match=r"width_depth: one network only \(LeNet-300-100\)"):
        sizes.width_depth(lth, tmp_path / "a")


def test_quality_has_an_axis_for_each_measurement(widths):
    assert quality.default_values(widths) == [
        "probe/ece", "probe/ood_auc_mnist", "probe/accuracy_fgsm", "probe/accuracy_corrupted",
    ]  # fmt: skip
    axes = axes_of()
    density.draw_densities(axes, experiments(widths, "model.hidden"), "probe/ood_auc_mnist")
    assert axes.get_ylabel() == "OOD ROC-AUC, MNIST (%)"
    assert list(named(axes)["20-20 (n = 2)"].get_ydata()) == pytest.approx([70])


def test_robustness_stands_side_by_side(widths):
    axes = axes_of()
    groups = experiments(widths, "model.hidden")
    quality.draw_robustness(axes, groups, ["test_accuracy", "probe/accuracy_noise", "probe/accuracy_corrupted"], 0.2)
    drawn = {container.get_label(): container.lines[0] for container in axes.containers}
    assert set(drawn) == {f"{w}-{w}{dense} (n = 2)" for w in (20, 80) for dense in ("", ", dense")}
    assert list(drawn["80-80 (n = 2)"].get_ydata()) == pytest.approx([78, 40, 40])
    assert list(drawn["80-80, dense (n = 2)"].get_ydata()) == pytest.approx([88, 50, 50])
    assert [round(x) for x in drawn["80-80 (n = 2)"].get_xdata()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (quality.quality, "probe/ece: not measured in these runs; it needs probes=quality"),
        (quality.robustness, "probe/accuracy_corrupted: not measured in these runs; it needs probes=robustness"),
        (connectivity.lmc, "probe/lmc_curve_test: not measured in these runs; it needs probes=[light,connectivity]"),
        (rewinding.rewind, "probe/lmc_error_test: not measured in these runs; it needs probes=[light,connectivity]"),
        (rewinding.stability, "probe/l2_order: not measured in these runs; it needs probes=[light,copies]"),
        (layers.layers, "removed_units: not measured in these runs; it needs a method that removes layers, such as "
         "+exp=layer_tickets"),
    ],
)  # fmt: skip
def test_what_was_not_measured_is_one_line_that_says_what_measures_it(lth, tmp_path, function, message):
    with pytest.raises(LotteryError) as caught:
        function(lth, tmp_path / "a")
    assert str(caught.value) == message


@pytest.fixture
def layer_tickets(study, tmp_path) -> pd.DataFrame:
    for criterion in ("snip", "random"):
        for seed in (0, 1):
            target = {"_target_": f"lottery.layers.from_weights.{criterion}"}
            method = {"_target_": "lottery.methods.layers.LayerTickets", "criterion": target, "scored": "init"}

            def rows(k: int, _: Any) -> dict[str, Any]:
                return {"removed_units": ["block"] * 2 * k, "probe/cost_step_speedup": 1 + k if k else None}

            study(criterion, seed, rounds=2, rows=rows, method=method)
    return load_runs(tmp_path)


def test_layers_are_against_the_number_of_units_removed(layer_tickets):
    frame = layer_tickets.assign(removed=layer_tickets["removed_units"].map(len))
    axes, speed = axes_of(2)
    groups = experiments(frame, axis=layers.REMOVED)
    layers.draw_removed(axes, groups, "test_accuracy")
    line = named(axes)["SNIP (n = 2)"]
    assert list(line.get_xdata()) == [0, 2, 4]
    assert list(line.get_ydata()) == pytest.approx([95.05, 94.05, 93.05])
    layers.draw_removed(speed, groups, layers.SPEEDUP)
    assert list(named(speed)["random (n = 2)"].get_ydata()) == [2, 3]


# -- files ------------------------------------------------------------------------------------------------------------


FIGURES = {
    "accuracy": (density.accuracy, "lth", {}),
    "early_stop": (density.early_stop, "lth", {}),
    "layer_density": (masks.layer_density, "one_shot", {}),
    "overlap": (masks.overlap, "masked", {}),
    "lmc": (connectivity.lmc, "instability", {}),
    "rewind": (rewinding.rewind, "instability", {}),
    "stability": (rewinding.stability, "stability", {}),
    "cost": (cost.cost, "one_shot", {"x": "seconds"}),
    "search": (searches.search, "searched", {}),
    "width_depth": (sizes.width_depth, "widths", {}),
    "quality": (quality.quality, "widths", {"by": "model.hidden"}),
    "robustness": (quality.robustness, "widths", {"by": "model.hidden"}),
    "layers": (layers.layers, "layer_tickets", {}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_written_as_png_svg_and_pdf_and_leaves_the_table_alone(name, request, tmp_path):
    function, fixture, options = FIGURES[name]
    frame = request.getfixturevalue(fixture)
    before = frame.copy()
    paths = function(frame, tmp_path / "out" / "v1.2", **options)
    assert paths == [tmp_path / "out" / f"v1.2.{kind}" for kind in ("png", "svg", "pdf")]
    height, width, _ = matplotlib.image.imread(paths[0]).shape
    assert 300 <= height <= 2400
    assert 600 <= width <= 2400
    assert paths[1].read_text().startswith("<?xml")
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    pdf = paths[2].read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"/Subtype /Type3" not in pdf, "publishers refuse fonts of Type 3"
    assert b"/CreationDate" not in pdf
    pd.testing.assert_frame_equal(frame, before)


def test_equal_tables_give_equal_files(lth, tmp_path):
    one, other = (density.accuracy(lth, tmp_path / f"{name}.png", title="A") for name in "ab")
    assert [path.name for path in one] == ["a.png", "a.svg", "a.pdf"], "an ending is left off"
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_a_legend_stands_below_the_axes_however_long_it_is(lth):
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    (curve, *_) = curves(experiments(lth), "test_accuracy", "density")
    for number in range(12):
        draw_curve(axes, curve)
        axes.lines[-1].set_label(f"a name that is as long as a source with its year and figure, number {number}")
    legend([axes], note="a note")
    figure.draw_without_rendering()
    assert figure.legends[0].get_title().get_text() == "a note"
    box = figure.legends[0].get_window_extent()
    assert box.y1 <= axes.get_tightbbox().y0 + 1
    assert box.x1 <= figure.bbox.x1
    assert axes.get_window_extent().height > 150


def test_an_empty_or_a_foreign_table_is_one_line(lth, tmp_path):
    with pytest.raises(LotteryError, match="the table has no row"):
        density.accuracy(lth[:0], tmp_path / "a")
    with pytest.raises(
        ConfigError, match=r"the table has no column 'run', expected one of lottery.record.table.load_runs"
    ):
        density.accuracy(pd.DataFrame({"x": [1]}), tmp_path / "a")


def test_figures_need_no_torch():
    code = (
        "import sys, pkgutil, importlib, lottery.figures as p\n"
        "for m in pkgutil.iter_modules(p.__path__): importlib.import_module(f'{p.__name__}.{m.name}')\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
