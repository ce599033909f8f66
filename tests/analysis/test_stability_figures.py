"""Figures of stability show what the run folders hold: which lines, which masks, and how they were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lottery.errors import LotteryError
from lottery.figures import sheet
from lottery.figures.rewinding import rewind
from lottery.figures.study import draw_study
from lottery.record.table import load_runs
from lottery.ticket import Mask

Row = dict[str, Any]
INSTABILITY = {"method": {"_target_": "lottery.methods.instability.Instability"}}
REGIMES = {"method": {"_target_": "lottery.methods.regimes.Regimes"}}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures as matplotlib holds them, by file name; the files are written all the same."""
    kept: dict[str, Any] = {}
    canvas = sheet.canvas

    @contextmanager
    def keeping(path: Path, *args: Any, **options: Any) -> Iterator[Any]:
        with canvas(path, *args, **options) as figure:
            yield figure
            kept[path.name] = figure

    monkeypatch.setattr(sheet, "canvas", keeping)
    return kept


def lines(name: str, curve: list[float | None], points: int, **others: Any) -> Row:
    """What the probe writes, here without loss."""
    facts = {"points": points, "bn_recomputed": 0, "curve_test": curve, "error_test": 0.01} | others
    return {f"probe/{name}_{key}": value for key, value in facts.items()}


def snapshots(run: Path, densities: dict[int, float], shift: int = 300) -> None:
    """A mask for each round, over 1,000 weights; nested where `shift` is 0."""
    (run / "masks").mkdir()
    for k, density in densities.items():
        mask = Mask({"w": kept(k, density, shift)})
        mask.save(run / "masks" / f"round_{k:03d}.safetensors", round=k, study="s", parent=None)


def kept(k: int, density: float, shift: int = 300) -> torch.Tensor:
    return (torch.arange(1000) < round(1000 * density)).roll(shift * k)


def names(paths: list[Path]) -> set[str]:
    return {path.name for path in paths}


# -- lines ------------------------------------------------------------------------------------------------------------


def test_each_kind_of_line_has_its_figure(
    make_run: Callable[..., Path], row: Callable[..., Row], drawn: dict[str, Any]
) -> None:
    """A curve a round; of the paths, which hold one another, the last alone."""
    rows = [row(0) | lines("lmc", [0.1, 0.2, 0.1], 3, copies=2)]
    for k in (1, 2):
        path = [0.1, 0.3, 0.1, 0.4, 0.1][: 2 * k + 1]
        curves = lines("lmc", [0.1, None, 0.2], 3, copies=2) | lines("lmc_previous", [0.1, 0.3], 2)
        rows.append(row(k) | curves | lines("lmc_path", path, 3))
    figures = names(draw_study(make_run("a", rows)))
    assert figures >= {"lmc.png", "lmc_previous.png", "lmc_path.png"}
    copies, path = (drawn[name].axes[0] for name in ("lmc.png", "lmc_path.png"))
    assert [list(line.get_ydata())[::2] for line in copies.lines] == [[10, 10], [10, 20], [10, 20]]
    assert [list(line.get_xdata()) for line in path.lines] == [[0, 0.5, 1, 1.5, 2]]
    assert "2 copies, 3 points, BN interpolated" in drawn["lmc.png"].get_suptitle().replace("\n", " ")
    assert [text.get_text() for text in drawn["lmc.png"].legends[0].get_texts()] == ["100 %", "80 %", "64.1 %"]


def test_every_rewind_point_has_its_axis(
    make_run: Callable[..., Path], row: Callable[..., Row], drawn: dict[str, Any]
) -> None:
    """And the dense run at its end, which is of none of them, has none."""
    rows = [row(0) | lines("lmc", [0.1, 0.2, 0.1], 3)]
    rows += [row(k, step_rewind=step) | lines("lmc", [0.1, 0.2, 0.1], 3) for k, step in ((1, 0), (2, 0), (3, 50))]
    draw_study(make_run("a", rows, **INSTABILITY))
    axes = drawn["lmc.png"].axes
    assert [(each.get_title(), len(each.lines)) for each in axes] == [
        ("rewound to step 0, n = 1", 2),
        ("rewound to step 50, n = 1", 1),
    ]


def test_many_rounds_have_a_scale_in_place_of_a_legend(
    make_run: Callable[..., Path], row: Callable[..., Row], drawn: dict[str, Any]
) -> None:
    rows = [row(k) | lines("lmc", [0.1, 0.2, 0.1], 3) for k in range(20)]
    draw_study(make_run("a", rows))
    figure = drawn["lmc.png"]
    assert not figure.legends
    assert len(figure.axes[0].lines) == 20
    assert figure.axes[1].get_ylabel() == "prunable weights remaining (%)"
    assert len({line.get_color() for line in figure.axes[0].lines}) == 20


# -- overlap ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [3, 20])
def test_overlap_of_the_pruned_tickets_beside_chance(
    make_run: Callable[..., Path], row: Callable[..., Row], drawn: dict[str, Any], rounds: int
) -> None:
    """The dense network's mask, which says nothing, is left out."""
    densities = {k: round(0.9**k, 3) for k in range(rounds + 1)}
    run = make_run("a", [row(k, density=density) for k, density in densities.items()])
    snapshots(run, densities)
    assert "mask_overlap.png" in names(draw_study(run))
    axes, bar = drawn["mask_overlap.png"].axes
    grid = axes.images[0].get_array()
    assert grid.shape == (rounds, rounds)
    one, other = densities[1], densities[rounds]
    first, last = kept(1, one), kept(rounds, other)
    iou = float((first & last).sum() / (first | last).sum())
    assert grid[rounds - 1, 0] == pytest.approx(iou)
    chance = one * other / (one + other - one * other)
    if rounds == 3:
        assert grid[0, rounds - 1] == grid[rounds - 1, 0]
        assert f"{iou:.2f}\n({chance:.2f})" in [text.get_text() for text in axes.texts]
    else:
        assert grid[0, rounds - 1] == pytest.approx(chance)
        assert "above the diagonal: by chance" in bar.get_ylabel()
    assert axes.get_yticklabels()[0].get_text() == "round 1, 90 %"


def test_nested_masks_have_no_overlap_map(make_run: Callable[..., Path], row: Callable[..., Row]) -> None:
    """Their overlap is the ratio of their densities."""
    densities = {k: 0.8**k for k in range(4)}
    run = make_run("a", [row(k, density=density) for k, density in densities.items()])
    snapshots(run, densities, shift=0)
    assert "mask_overlap.png" not in names(draw_study(run))


def test_rewind_points_are_told_apart(
    make_run: Callable[..., Path], row: Callable[..., Row], drawn: dict[str, Any]
) -> None:
    rows = [row(0, density=1.0), *(row(k, density=0.5, step_rewind=step) for k, step in ((1, 0), (2, 500)))]
    run = make_run("a", rows)
    snapshots(run, {1: 0.5, 2: 0.5})
    draw_study(run)
    axes = drawn["mask_overlap.png"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["step 0, 50 %", "step 500, 50 %"]


@pytest.mark.parametrize("fault", ["one ticket", "no file", "damaged"])
def test_without_masks_to_compare_there_is_no_figure(
    make_run: Callable[..., Path], row: Callable[..., Row], fault: str
) -> None:
    run = make_run("a", [row(k, density=0.5**k) for k in range(2 if fault == "one ticket" else 3)])
    snapshots(run, {1: 0.5, 2: 0.25})
    if fault == "no file":
        (run / "masks" / "round_002.safetensors").unlink()
    elif fault == "damaged":
        (run / "masks" / "round_002.safetensors").write_bytes(b"no mask")
    assert "mask_overlap.png" not in names(draw_study(run))


# -- instability and regimes ------------------------------------------------------------------------------------------


def test_a_barrier_of_the_dense_run_alone_is_no_analysis_and_no_error(
    make_run: Callable[..., Path], row: Callable[..., Row]
) -> None:
    """probes.connectivity.rounds=[0]: the study ends well, without the figure."""
    rows = [row(0) | lines("lmc", [0.1, 0.2, 0.1], 3), row(1)]
    assert "instability.png" not in names(draw_study(make_run("a", rows, **INSTABILITY)))


def test_barriers_against_the_rewind_point(
    make_run: Callable[..., Path], row: Callable[..., Row], drawn: dict[str, Any], tmp_path: Path
) -> None:
    """Over two seeds: means, in points of error."""

    def study(seed: int) -> list[Row]:
        found = [row(0)]
        for k, step in ((1, 0), (2, 50)):
            barrier = 0.01 * (k + 2 * seed)
            found.append(row(k, density=0.5, step_rewind=step) | lines("lmc", [0.1], 3, copies=2, error_test=barrier))
        return found

    runs = [make_run(f"seed{seed}", study(seed), seed=seed, seeds={"init": seed}, **INSTABILITY) for seed in (0, 1)]
    rewind(load_runs(runs), tmp_path / "instability")
    left = drawn["instability.png"].axes[0]
    (ticket,) = [line for line in left.lines if line.get_label() == "ticket (n = 2)"]
    assert list(ticket.get_xdata()) == [0, 50]
    assert list(ticket.get_ydata()) == pytest.approx([2.0, 3.0])
    other = make_run("other", study(2), seed=2, seeds={"init": 2}, method=INSTABILITY["method"] | {"rate": 0.5})
    with pytest.raises(LotteryError, match=r"differ in config\.method"):
        rewind(load_runs([runs[0], other]), tmp_path / "mixed", by="method._target_")


def test_barriers_of_different_treatments_of_normalisation_are_never_compared(
    make_run: Callable[..., Path], row: Callable[..., Row], tmp_path: Path
) -> None:
    """Methods.md 2.3: recomputing lowers them."""
    runs = []
    for seed in (0, 1):
        rows = [row(0), row(1) | lines("lmc", [0.1], 3, copies=2, bn_recomputed=seed)]
        runs.append(make_run(f"seed{seed}", rows, seed=seed, seeds={"init": seed}, **INSTABILITY))
    with pytest.raises(LotteryError, match=r"different ways .* BN interpolated and .* BN recomputed"):
        rewind(load_runs(runs), tmp_path / "instability")


def test_regimes_are_coloured_and_say_how_they_were_measured(
    make_run: Callable[..., Path], row: Callable[..., Row], drawn: dict[str, Any]
) -> None:
    cells = [(50, 0.5, 0.05, 0.99), (50, 0.1, 0.0, 0.9), (90, 0.5, 0.0, 0.99), (90, 0.1, 0.0, None)]
    rows = [row(0)]
    for k, (step, density, barrier, cka) in enumerate(cells, 1):
        found = lines("lmc", [0.1], 11, copies=2, bn_recomputed=1, error_train=barrier)
        rows.append(row(k, density=density, step_rewind=step) | found | {"probe/cka_copies": {"fc": 0.1, "out": cka}})
    draw_study(make_run("a", rows, **REGIMES))
    axes = drawn["regimes.png"].axes[0]
    assert len(axes.patches) == 3, "where CKA is undefined there is no regime"
    assert sorted(text.get_text()[:10] for text in axes.texts) == ["0.0 | 0.90", "0.0 | 0.99", "5.0 | 0.99"]
    assert "2 copies, 11 points, BN recomputed" in drawn["regimes.png"].get_suptitle().replace("\n", " ")
