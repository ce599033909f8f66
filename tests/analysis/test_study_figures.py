"""What the figures show is what the run folders hold, and no run folder makes them fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from lottery.errors import LotteryError
from lottery.figures import density, masks, sheet
from lottery.figures.axes import ACCURACY_SPAN
from lottery.figures.study import draw_study
from lottery.figures.style import looks, percent, spaced, title
from lottery.record.table import load_runs
from lottery.ticket import Mask

ONE_SHOT = {"_target_": "lottery.methods.pai.PruningAtInit"}


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Any]:
    """The figures as matplotlib holds them, by file name; the files are written all the same."""
    kept: dict[str, Any] = {}
    canvas = sheet.canvas

    @contextmanager
    def keeping(path: Path, *args: Any) -> Iterator[Any]:
        with canvas(path, *args) as figure:
            yield figure
            kept[path.name] = figure

    monkeypatch.setattr(sheet, "canvas", keeping)
    return kept


def line(axes, label):
    """The one line of this label."""
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return found


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def study(row, rounds=4, copies=2, **changes):
    """A ticket and its reinit controls; copy c is 0.01 (c + 1) and 100 (c + 1) steps from the ticket."""
    rows = []
    for k in range(rounds + 1):
        ticket = row(k, **changes)
        rows.append(ticket)
        for c in range(copies if k else 0):
            accuracy, stop = ticket["test_accuracy"], ticket["early_stop_step"]
            worse = {"test_accuracy": accuracy and accuracy - 0.01 * (c + 1)}
            rows.append(row(k, "reinit", c, **changes | worse | {"early_stop_step": stop and stop + 100 * (c + 1)}))
    return rows


# -- one study --------------------------------------------------------------------------------------------------------


def test_a_study_gets_three_figures_of_readme_size(make_run, row):
    run = make_run("a", study(row))
    paths = draw_study(run)
    assert paths == [run / "figures" / f"{name}.png" for name in ("accuracy", "early_stop", "layer_density")]
    for path in paths:
        height, width, _ = matplotlib.image.imread(path).shape
        assert width == 960
        assert 300 <= height <= 1500
    assert sorted(p.name for p in (run / "figures").iterdir()) == sorted(p.name for p in paths)


def test_the_ticket_is_drawn_at_its_densities(make_run, row, drawn):
    rows = study(row)
    draw_study(make_run("a", rows))
    tickets = [r for r in rows if r["control"] is None]
    axes = drawn["accuracy.png"].axes[0]
    ticket = line(axes, "ticket (n = 1)")
    np.testing.assert_allclose(ticket.get_xdata()[::-1], [r["density"] for r in tickets])
    np.testing.assert_allclose(ticket.get_ydata()[::-1], [100 * r["test_accuracy"] for r in tickets])
    assert ticket.get_marker() == "o"
    stop = line(drawn["early_stop.png"].axes[0], "ticket (n = 1)")
    np.testing.assert_allclose(stop.get_ydata()[::-1], [r["early_stop_step"] for r in tickets])


def test_density_falls_to_the_right_on_a_log_axis_with_plain_percentages(make_run, row, drawn):
    """Frankle & Carbin 2019, figs. 3 to 5: 100 leftmost; 51.3 is LeNet-300-100's third level (methods, T1.3)."""
    draw_study(make_run("a", study(row, rounds=3)))
    for name in ("accuracy.png", "early_stop.png"):
        axes = drawn[name].axes[0]
        left, right = axes.get_xlim()
        assert left > 1 > 0.513 > right
        assert axes.get_xscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "80", "64.1", "51.3"]


def test_a_control_is_the_mean_of_its_copies_in_a_band_from_lowest_to_highest(make_run, row, drawn):
    rows = study(row, rounds=3, copies=3)
    draw_study(make_run("a", rows))
    axes = drawn["accuracy.png"].axes[0]
    ticket = np.array([100 * r["test_accuracy"] for r in rows if r["control"] is None])[1:]
    control = line(axes, "random reinit (n = 3)")
    np.testing.assert_allclose(control.get_ydata()[::-1], ticket - 2)
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    for x, top in zip(control.get_xdata()[::-1], ticket, strict=True):
        ys = edges[np.isclose(edges[:, 0], x), 1]
        assert ys.min() == pytest.approx(top - 3)
        assert ys.max() == pytest.approx(top - 1)
    (key,) = drawn["accuracy.png"].legends
    assert key.get_title().get_text() == "mean and range of n trainings"


def test_one_copy_has_no_band_and_no_n(make_run, row, drawn):
    draw_study(make_run("a", study(row, copies=1)))
    axes = drawn["accuracy.png"].axes[0]
    assert not axes.collections
    assert legend(drawn["accuracy.png"]) == ["ticket", "random reinit", "dense"]


def test_the_dense_level_is_a_dashed_line_across(make_run, row, drawn):
    draw_study(make_run("a", study(row)))
    for name, level in (("accuracy.png", 98.0), ("early_stop.png", 6000)):
        dense = line(drawn[name].axes[0], "dense")
        assert list(dense.get_ydata()) == pytest.approx([level, level])
        assert dense.is_dashed()


def test_the_axes_hold_all_that_was_measured(make_run, row, drawn):
    """A network that has fallen to chance is shown there, and accuracy ends at 100 %."""
    rows = [row(0, test_accuracy=1.0), row(1, test_accuracy=0.99), row(2, test_accuracy=0.1)]
    draw_study(make_run("a", rows))
    low, high = drawn["accuracy.png"].axes[0].get_ylim()
    assert low < 10
    assert 100 < high < 103
    low, high = drawn["early_stop.png"].axes[0].get_ylim()
    assert low == 0
    assert high > 6_000


@pytest.mark.slow
def test_noise_is_not_blown_up(make_run, row, drawn):
    draw_study(
        make_run("a", [row(0, test_accuracy=0.9801), row(1, test_accuracy=0.9802), row(2, test_accuracy=0.9802)])
    )
    low, high = drawn["accuracy.png"].axes[0].get_ylim()
    assert high - low >= ACCURACY_SPAN


def test_an_inverted_mask_stands_at_its_own_density(make_run, row, drawn):
    rows = [row(0), *(row(k) for k in (1, 2)), *(row(k, "invert", density=1 - 0.8**k) for k in (1, 2))]
    draw_study(make_run("a", rows))
    inverted = line(drawn["accuracy.png"].axes[0], "inverted mask")
    np.testing.assert_allclose(inverted.get_xdata(), [1 - 0.8, 1 - 0.8**2])
    np.testing.assert_allclose(inverted.get_ydata(), [98.1, 98.2])


# -- layers -----------------------------------------------------------------------------------------------------------


def test_the_heat_map_holds_the_ticket_masks(make_run, row, drawn):
    rows = study(row, rounds=3)
    draw_study(make_run("a", rows))
    axes = drawn["layer_density.png"].axes[0]
    (mesh,) = axes.collections
    expected = [[0.8**k for k in range(4)], [0.8**k for k in range(4)], [0.9**k for k in range(4)]]
    np.testing.assert_allclose(mesh.get_array(), expected)
    assert type(mesh.norm).__name__ == "LogNorm"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layers.0", "layers.1", "output"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first layer on top
    assert axes.get_xticklabels()[3].get_text() == "3\n51.3"


def test_an_empty_layer_is_grey_and_no_other_is(make_run, row, drawn):
    empty = {"layers.0.weight": 1e-5, "layers.1.weight": 0.0, "output.weight": 0.3}
    rows = [row(0), row(1, layer_density=empty, collapsed_layers=["layers.1.weight"])]
    draw_study(make_run("a", rows))
    axes = drawn["layer_density.png"].axes[0]
    (mesh,) = axes.collections
    shades = mesh.cmap(mesh.norm(mesh.get_array()))
    grey = np.isclose(shades, mesh.cmap.get_under()).all(axis=-1)
    assert grey.tolist() == [[False, False], [False, True], [False, False]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["empty"]


@pytest.mark.parametrize("lowest", [1.0, 0.5, 0.1, 0.02, 1e-3, 1e-5, 3e-7])
def test_the_colour_scale_reaches_the_lowest_density(make_run, row, drawn, lowest):
    draw_study(make_run("a", [row(0), row(1, layer_density=dict.fromkeys(row(0)["layer_density"], lowest))]))
    (mesh,) = drawn["layer_density.png"].axes[0].collections
    assert lowest / 10 < mesh.norm.vmin <= lowest
    bar = drawn["layer_density.png"].axes[1]
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert labels[-1] == "100"
    assert 2 <= len(labels) <= 10


def test_many_layers_with_long_names_are_thinned(make_run, row, drawn):
    names = [f"stages.{i // 30}.blocks.{i % 30}.a_very_long_name_of_a_module.conv.weight" for i in range(120)]
    rows = [row(k, layer_density=dict.fromkeys(names, 0.8**k)) for k in range(26)]
    draw_study(make_run("a", rows))
    axes = drawn["layer_density.png"].axes[0]
    rounds = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(rounds))
    assert 20 <= len(axes.get_yticklabels()) <= 50
    assert all(label.get_text().endswith(".conv") for label in axes.get_yticklabels())


# -- what would mislead ----------------------------------------------------------------------------------------------


def test_tickets_of_one_density_stand_side_by_side_without_a_line(make_run, row, drawn):
    """A line from the dense network to the only ticket, or through markers on one spot, would show nothing."""
    rows = [row(0), row(1), *(row(1, "reinit", copy, test_accuracy=0.95 + 0.01 * copy) for copy in range(2))]
    draw_study(make_run("a", rows, method=ONE_SHOT | {"density": 0.8}))
    axes = drawn["accuracy.png"].axes[0]
    ticket, reinit = line(axes, "ticket (n = 1)"), line(axes, "random reinit (n = 2)")
    assert ([*ticket.get_xdata()], [*reinit.get_xdata()]) == ([0], [1])
    assert ticket.get_linestyle() == reinit.get_linestyle() == "None"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ticket", "random reinit"]
    assert axes.get_xlabel() == "networks with 80 % of the prunable weights"
    assert line(axes, "dense").is_dashed()
    title = drawn["accuracy.png"].get_suptitle()
    assert title.startswith("Test accuracy (%) at 80 % of the prunable weights\nLeNet-300-100 on MNIST, ")


def test_one_ticket_without_controls_is_one_dot_and_is_not_drawn(make_run, row, drawn):
    paths = draw_study(make_run("a", [row(0), row(1)], method=ONE_SHOT | {"density": 0.8}))
    assert names(paths) == ["layer_density.png"]


def test_layers_that_leave_as_a_whole_have_no_scale_of_densities(make_run, row, drawn):
    gone = {"layers.0.weight": 1.0, "layers.1.weight": 0.0, "output.weight": 1.0}
    draw_study(make_run("a", [row(0), row(1, layer_density=gone)]))
    figure = drawn["layer_density.png"]
    assert len(figure.axes) == 1, "no colour bar"
    assert figure.get_suptitle().startswith("Layers kept (yellow) and removed (grey) over the rounds\n")


def test_a_line_of_studies_that_prune_once_has_three_points(make_run, row, drawn, tmp_path):
    def ticket(density, number):
        method = ONE_SHOT | {"density": density}
        return make_run(f"{number}", [row(0), row(1, density=density, density_weights=density)], method=method)

    runs = [ticket(density, number) for number, density in enumerate((0.5, 0.2, 0.1))]
    for count, style in ((2, "None"), (3, "-")):
        density.accuracy(load_runs(runs[:count]), tmp_path / "accuracy")
        ours = line(drawn["accuracy.png"].axes[0], "ticket (n = 1)")
        assert len(ours.get_xdata()) == count
        assert ours.get_linestyle() == style


def test_the_mask_of_a_random_method_is_no_ticket(make_run, row, drawn):
    method = {"_target_": "lottery.methods.random.RandomPruning", "density": 0.8}
    draw_study(make_run("a", [row(0), row(1), row(1, "random"), row(1, "reinit")], method=method))
    assert legend(drawn["accuracy.png"]) == ["random mask", "random reinit", "another random mask", "dense"]


def test_a_ticket_without_units_is_drawn_against_the_units_removed(make_run, row, drawn):
    """Against density, blocks of unequal size would stand at places that mean nothing."""
    rows = [row(k, removed_units=["block"] * k, units=5) for k in range(4)]
    rows += [row(k, "reinit") for k in (1, 2)]  # a control lacks its ticket's units
    paths = draw_study(make_run("a", rows, method={"_target_": "lottery.methods.layers.LayerTickets"}))
    assert names(paths) == ["layers.png", "layer_density.png"]
    axes = drawn["layers.png"].axes[0]
    assert [*line(axes, "ticket").get_xdata()] == [0, 1, 2, 3]
    assert [*line(axes, "random reinit").get_xdata()] == [1, 2]
    assert axes.get_xlabel() == "units removed"


def test_nested_masks_have_no_overlap_figure(make_run, row, tmp_path):
    """Their overlap is the ratio of their densities, 0.8^(k - j) at a rate of 0.2, whatever was trained."""
    for name, apart in (("nested", 0), ("apart", 300)):
        rows = [row(k, density=0.8**k) for k in range(4)]
        run = make_run(name, rows)
        for k in range(4):
            kept = (torch.arange(round(1000 * 0.8**k)) + apart * k) % 1000
            mask = Mask({"w": torch.isin(torch.arange(1000), kept)})
            mask.save(run / f"masks/round_{k:03d}.safetensors", round=k, study="s", parent=None)
            rows[k]["mask_digest"] = mask.digest
        (run / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert ("mask_overlap.png" in names(draw_study(run))) is (name == "apart")
    names_of, pairs = masks._rounds(run, load_runs([run]))
    assert names_of == ["round 1, 80 %", "round 2, 64 %", "round 3, 51.2 %"]
    assert pairs[0, 1].iou == pytest.approx(500 / 940)
    with pytest.raises(LotteryError, match="each mask is part of the one before, so their overlap is the ratio of"):
        masks.overlap(load_runs([tmp_path / "nested"]), tmp_path / "overlap")


def test_a_title_says_what_is_shown_and_n(make_run, row, drawn):
    draw_study(make_run("a", study(row)))
    study_words = "LeNet-300-100 on MNIST, IMP, reset to init, seed 0 (n = 1)"
    shown = {
        "accuracy.png": "Test accuracy (%) against prunable weights remaining (%)",
        "early_stop.png": "Early-stop step against prunable weights remaining (%)",
        "layer_density.png": "Weights kept in each layer (%) over the rounds",
    }
    assert {name: figure.get_suptitle() for name, figure in drawn.items()} == {
        name: f"{words}\n{study_words}" for name, words in shown.items()
    }


# -- what may be missing ----------------------------------------------------------------------------------------------


def names(paths):
    return [path.name for path in paths]


def test_without_validation_there_is_no_early_stop_figure(make_run, row):
    run = make_run("a", study(row, early_stop_step=None, val_loss=None, val_accuracy=None))
    assert names(draw_study(run)) == ["accuracy.png", "layer_density.png"]
    assert not (run / "figures" / "early_stop.png").exists()


def test_a_value_that_is_missing_or_not_finite_leaves_its_point_out(make_run, row, drawn):
    rows = [row(0), row(1, test_accuracy=None), row(2, test_accuracy=float("nan")), row(3)]
    draw_study(make_run("a", rows))
    np.testing.assert_allclose(line(drawn["accuracy.png"].axes[0], "ticket").get_ydata(), [98.3, 98.0])


def test_the_dense_network_alone_is_no_figure(make_run, row):
    run = make_run("a", [row(0)])
    assert draw_study(run) == []
    assert list((run / "figures").iterdir()) == []


def test_a_study_without_rounds_has_no_figures(make_run):
    assert draw_study(make_run("a", [])) == []


def test_a_mask_with_nothing_left_is_said_to_be_left_out(make_run, row, drawn):
    nothing = dict.fromkeys(row(0)["layer_density"], 0.0)
    rows = [row(0), row(1), row(2, density=0.0, layer_density=nothing, test_accuracy=0.1)]
    assert len(draw_study(make_run("a", rows))) == 3
    axes = drawn["accuracy.png"].axes[0]
    assert len(line(axes, "ticket").get_xdata()) == 2
    assert axes.get_xlabel() == "prunable weights remaining (%); not shown: 1 with none left"


def test_a_method_without_layers_or_scores_fails_nothing(make_run, row):
    run = make_run("a", [row(0, layer_density={}, test_accuracy=None, early_stop_step=None)])
    assert draw_study(run) == []
    nothing = {"control": None, "layer_density": {}, "mask_digest": None, "kept": 1}
    minimal = [
        {"round": k, "density": 0.5**k, "density_weights": 0.5**k, "test_accuracy": 0.9, **nothing} for k in range(3)
    ]
    assert names(draw_study(make_run("b", minimal))) == ["accuracy.png"]  # no layers, no lines, no masks to overlap


def test_a_configuration_of_almost_nothing_is_enough(make_run, row):
    run = make_run("a", [row(0), row(1), row(2)])
    some = "data: {name: d}, model: {_target_: a.b}, method: {_target_: c.d}, paths: {runs: r}"
    (run / "config.yaml").write_text(f"{{seed: 1, {some}}}\n")
    assert len(draw_study(run)) == 3


def test_the_figures_folder_is_made(make_run, row):
    run = make_run("a", [row(0), row(1)])
    (run / "figures").rmdir()
    assert all(path.exists() for path in draw_study(run))


def test_a_folder_that_cannot_be_written_to_is_named(make_run, row, caplog):
    run = make_run("a", [row(0), row(1), row(1, "reinit")])
    (run / "figures").rmdir()
    (run / "figures").write_text("in the way")
    assert draw_study(run) == []
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3, "one for each figure"
    assert "accuracy.png: cannot be written: " in said[0]
    assert not any("\n" in line for line in said)


def test_a_failure_leaves_no_half_figure(make_run, row, monkeypatch, caplog):
    run = make_run("a", [row(0), row(1), row(2)])
    monkeypatch.setattr(density, "density_axis", lambda *_: 1 / 0)
    draw_study(run)
    assert [path.name for path in (run / "figures").iterdir()] == ["layer_density.png"]
    assert "accuracy.png was not drawn: " in caplog.text
    assert "ZeroDivisionError: division by zero" in caplog.text


# -- over seeds -------------------------------------------------------------------------------------------------------


def seeds_of(make_run, row, counts=(4, 4, 2)):
    """Seed s is s points better than seed 0; the last has not come as far."""
    runs = []
    for s, rounds in enumerate(counts):
        rows = [r | {"test_accuracy": r["test_accuracy"] - 0.1 + 0.01 * s} for r in study(row, rounds)]
        runs.append(make_run(f"s{s}", rows, seed=s, seeds={"init": s}))
    return runs


def drawn_over(runs, out):
    """The figure of a study, over several."""
    return density.accuracy(load_runs(runs), out / "accuracy", density="density_weights")


def test_seeds_are_averaged_in_a_band_from_lowest_to_highest(make_run, row, drawn, tmp_path):
    """The copies of a control count once a study."""
    paths = drawn_over(seeds_of(make_run, row), tmp_path / "out")
    assert all(path.stat().st_size > 5_000 for path in paths)
    axes = drawn["accuracy.png"].axes[0]
    ticket = line(axes, "ticket (n = 2–3)")
    np.testing.assert_allclose(ticket.get_ydata()[::-1], [89.0, 89.1, 89.2, 88.8, 88.9])
    control = line(axes, "random reinit (n = 2–3)")
    np.testing.assert_allclose(control.get_ydata()[::-1], [87.6, 87.7, 87.3, 87.4])
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    ranges = [
        [(min(at), max(at)) for x in line.get_xdata()[::-1] for at in [edges[np.isclose(edges[:, 0], x), 1]]]
        for edges, line in zip(bands, (ticket, control), strict=True)
    ]
    np.testing.assert_allclose(ranges[0], [(88, 90), (88.1, 90.1), (88.2, 90.2), (88.3, 89.3), (88.4, 89.4)])
    np.testing.assert_allclose(ranges[1], [(86.6, 88.6), (86.7, 88.7), (86.8, 87.8), (86.9, 87.9)])
    assert list(line(axes, "dense").get_ydata()) == pytest.approx([89, 89])


def test_the_title_over_seeds_names_none(make_run, row, drawn, tmp_path):
    drawn_over(seeds_of(make_run, row), tmp_path)
    title = "Test accuracy (%) against weights remaining (%)\nLeNet-300-100 on MNIST, IMP, reset to init, 3 seeds"
    assert drawn["accuracy.png"].get_suptitle() == title


def test_one_seed_says_so(make_run, row, drawn, tmp_path):
    drawn_over([make_run("a", study(row, copies=1))], tmp_path)
    assert legend(drawn["accuracy.png"]) == ["ticket (n = 1)", "random reinit (n = 1)", "dense"]


def test_places_and_controls_may_differ(make_run, row, drawn, tmp_path):
    other = {"seed": 1, "seeds": {"init": 1}, "paths": {"runs": "elsewhere"}, "tracker": {"name": "wandb"}}
    runs = [make_run("a", study(row)), make_run("b", study(row, copies=0), **other, controls={"reinit": 0})]
    drawn_over(runs, tmp_path)
    assert legend(drawn["accuracy.png"]) == ["ticket (n = 2)", "random reinit (n = 1)", "dense"]


# -- words and looks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(1.0, "100"), (0.512, "51.2"), (0.8, "80"), (0.2621, "26.2"), (0.0358, "3.58"), (0.0002, "0.02"), 
     (1e-7, "0.00001"), (0.99999, "100"), (0.0, "0")],
)  # fmt: skip
def test_percentages_are_plain(fraction, text):
    assert percent(fraction) == text


def test_labels_of_a_geometric_ladder_are_evenly_spaced():
    ladder = [0.8**k for k in range(18)]
    chosen = spaced(ladder, 0.0148)
    indices = [ladder.index(density) for density in chosen]
    assert indices[0] == 0
    assert len(set(np.diff(indices))) == 1
    assert spaced([1.0], 0.0148) == [1.0]


@pytest.mark.parametrize("depth", [3, 17, 30, 60])
def test_tick_labels_do_not_touch(make_run, row, drawn, depth):
    draw_study(make_run("a", [row(k) for k in range(depth)]))
    boxes = [label.get_window_extent() for label in drawn["accuracy.png"].axes[0].get_xticklabels()]
    assert len(boxes) >= 2
    assert all(a.x1 + 4 < b.x0 for a, b in pairwise(boxes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "LeNet-300-100 on MNIST, reset to init, seed 0"),
        ({"rewind": {"to": "500it", "weights": "rewind"}}, "LeNet-300-100 on MNIST, rewound to 500it, seed 0"),
        ({"rewind": {"to": "2ep", "weights": "keep", "schedule": "rewind"}},
         "LeNet-300-100 on MNIST, learning rate rewound to 2ep, seed 0"),
        ({"rewind": {"to": "init", "weights": "keep", "schedule": "keep"}},
         "LeNet-300-100 on MNIST, fine-tuned, seed 0"),
        ({"data": {"name": "cifar10", "limit": 2000}},
         "LeNet-300-100 on CIFAR-10 (2,000 images), reset to init, seed 0"),
        ({"data": {"name": "mine"}}, "LeNet-300-100 on mine, reset to init, seed 0"),
        ({"model": {"_target_": "a.b.transformer", "depth": 3}}, "transformer on MNIST, reset to init, seed 0"),
        ({"method": {"_target_": "lottery.methods.bip.BiP", "variant": "repo", "pattern": "filter"}},
         "LeNet-300-100 on MNIST, BiP by the released update, filters, seed 0"),
        ({"method": {"_target_": "lottery.methods.jackpot.Jackpot", "short_restriction": "quartic",
                     "tune": {"steps": "10ep"}}},
         "LeNet-300-100 on MNIST, jackpot, restriction quartic, tuned for 10ep, seed 0"),
        ({"method": {"_target_": "lottery.methods.edge_popup.EdgePopup", "pattern": "2:4"}},
         "LeNet-300-100 on MNIST, edge-popup, 2:4, seed 0"),
    ],
)  # fmt: skip
def test_the_title_says_what_was_studied(config, changes, text):
    assert title(config | changes) == text


def test_every_family_of_models_has_a_name():
    """A family's options, as the configuration holds them, give a name without a placeholder left over."""
    from dataclasses import asdict

    from lottery.config.models import SCHEMAS

    names = {family: title({"model": asdict(schema())}).split(" on ")[0] for family, schema in SCHEMAS.items()}
    expected = {
        "lenet": "LeNet-300-100", "mlp": "MLP 100-100", "conv": "Conv-2", "resnet": "ResNet-20", "vgg": "VGG-16",
        "wide_resnet": "WRN-28-10", "airbench": "airbench94", "timm": "resnet18", "torchvision": "resnet18",
    }  # fmt: skip
    assert expected.items() <= names.items()
    assert not [name for name in names.values() if "{" in name]


def test_curves_in_a_figure_look_different_and_a_control_always_the_same():
    both = looks(["mine", "shuffle", None, "yours", "reinit", "random", "invert"])
    assert [look.control for look in both] == [None, "reinit", "random", "shuffle", "invert", "mine", "yours"]
    assert len({look.colour for look in both}) == len({look.marker for look in both}) == len(both)
    assert looks(["random"]) == [look for look in both if look.control == "random"]


def test_a_long_title_stays_inside_the_figure(make_run, row, drawn):
    data = {"name": "a_data_set_of_our_own_with_a_long_name", "limit": 10_000}
    model = {"_target_": "lottery.models.zoo.from_timm", "name": "vit_small_patch16_224.augreg_in21k_ft_in1k"}
    draw_study(make_run("a", [row(0), row(1), row(2)], data=data, model=model))
    figure = drawn["accuracy.png"]
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.slow
def test_the_users_matplotlib_is_neither_touched_nor_used(make_run, row, tmp_path):
    """Figures are the same whatever the user's style is; backend and settings stay as they were; pyplot stays out."""
    run = make_run("a", [row(0), row(1)])
    code = (
        "import json, sys, matplotlib\n"
        "from pathlib import Path\n"
        "from lottery.figures.study import draw_study\n"
        f"run = Path({json.dumps(str(run))})\n"
        "matplotlib.rcParams['backend'] = 'svg'\n"
        "first = [path.read_bytes() for path in draw_study(run)]\n"
        "matplotlib.rcParams.update({'font.size': 30, 'axes.facecolor': 'pink', 'savefig.bbox': 'tight'})\n"
        "before = dict(matplotlib.rcParams)\n"
        "assert [path.read_bytes() for path in draw_study(run)] == first\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "assert matplotlib.rcParams['backend'] == 'svg'\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
