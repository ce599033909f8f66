"""Tables with nothing to show, or next to nothing: a figure is drawn, or one line says why not. None ends a study."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from lottery.errors import LotteryError
from lottery.figures import (
    connectivity,
    cost,
    density,
    layers,
    masks,
    quality,
    regimes,
    rewinding,
    searches,
    sizes,
    style,
    training,
)
from lottery.figures.study import draw_study
from lottery.record.names import CURVE_COLUMNS, SEARCH_COLUMNS
from lottery.record.table import load_runs
from lottery.report.command import write_report
from lottery.ticket import Mask

Row = dict[str, Any]

METHODS = ("imp.IMP", "instability.Instability", "regimes.Regimes", "bip.BiP")
PROBES: dict[str, Any] = {
    **{
        f"probe/{name}_{key}": value
        for name in ("lmc", "lmc_previous", "lmc_path")
        for key, value in {
            "curve_test": [0.1, 0.3, 0.1], "curve_train": [0.1, 0.2, 0.1], "error_test": 0.2, "error_train": 0.01,
            "points": 3, "copies": 2, "bn_recomputed": 0, "images_test": 100, "images_train": 100,
        }.items()
    },
    "probe/cka_copies": {"a": 0.9, "b": 0.99},
    **dict.fromkeys(("probe/l2_order", "probe/angle_order", "probe/l2_pruning", "probe/angle_pruning"), 3.0),
    **dict.fromkeys(("probe/ece", "probe/nll", "probe/accuracy_fgsm", "probe/accuracy_corrupted"), 0.4),
    "probe/ood_auc_fashion_mnist": 0.7, "probe/cost_joules": 2.0, "probe/cost_step_speedup": 1.5,
    "search_steps": 10, "search_batches": 20, "search_seconds": 1.0, "removed_units": ["a"], "units": 3,
}  # fmt: skip
SIZES = ("density", "density_weights")


def empty(value: Any) -> Any:
    """The same with NaN for every number that was measured."""
    if isinstance(value, dict):
        return {name: empty(each) for name, each in value.items()}
    if isinstance(value, list):
        return [empty(each) if isinstance(each, float) else each for each in value]
    return math.nan if isinstance(value, float) else value


def none_kept(rows: list[Row]) -> list[Row]:
    gone = {"density": 0.0, "density_weights": 0.0, "kept": 0}
    return [*rows[:-1], rows[-1] | gone | {"layer_density": dict.fromkeys(rows[-1]["layer_density"], 0.0)}]


def nothing_but_none_kept(rows: list[Row]) -> list[Row]:
    return [none_kept([row])[0] for row in rows]


def all_nan(rows: list[Row]) -> list[Row]:
    return [row | {name: empty(value) for name, value in row.items() if name not in SIZES} for row in rows]


def all_null(rows: list[Row]) -> list[Row]:
    measured = [name for name in rows[0] if name.startswith("probe/") or name.endswith(("loss", "accuracy", "_step"))]
    return [row | dict.fromkeys(measured) for row in rows]


def one_point(rows: list[Row]) -> list[Row]:
    return rows[:1]


def one_ticket(rows: list[Row]) -> list[Row]:
    return rows[1:2]


def all_equal(rows: list[Row]) -> list[Row]:
    return [rows[1] | {"round": row["round"]} for row in rows]


def extreme(rows: list[Row]) -> list[Row]:
    """Numbers that a figure cannot well show, among others that it can."""
    return [*rows[:-1], rows[-1] | {"test_accuracy": 0.0, "early_stop_step": 10**12, "density": 1e-12,
                                    "probe/lmc_curve_test": [math.inf, None, -1e30]}]  # fmt: skip


TABLES = [
    none_kept,
    all_null,
    one_point,
    *(
        pytest.param(each, marks=pytest.mark.slow)
        for each in (nothing_but_none_kept, all_nan, one_ticket, all_equal, extreme)
    ),
]


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn and laid out, but written to no file, which takes most of the time."""
    monkeypatch.setattr(style, "_save", lambda figure, *_: figure.draw_without_rendering())


@pytest.fixture
def make(make_run: Callable[..., Path], row: Callable[..., Row], tmp_path: Path) -> Callable[..., Path]:
    """A run folder with everything measured, its rows passed through `spoil`, in the files beside them too."""

    def make(spoil: Callable[[list[Row]], list[Row]], method: str = "imp.IMP", seed: int = 0) -> Path:
        rows = [row(k, **PROBES, step_rewind=10 * k) for k in range(3)]
        rows = spoil([each | {"test_accuracy": each["test_accuracy"] + 0.001 * seed} for each in rows])
        for each in rows:
            mask = Mask({"w": torch.arange(1000) < round(1000 * each["density"])})
            each["mask_digest"] = mask.digest
            path = f"{method}-{seed}/masks/round_{each['round']:03d}.safetensors"
            mask.save(tmp_path / path, round=each["round"], study="s", parent=None)
        config = {"method": {"_target_": f"lottery.methods.{method}", "density": 0.1}, "seeds": {"init": seed}}
        run = make_run(f"{method}-{seed}", rows, seed=seed, **config)
        written_beside(run, rows)
        return run

    return make


def written_beside(run: Path, rows: list[Row]) -> None:
    """curves.csv and search.csv, with the test accuracy in them."""
    points = [[r["round"], "", 0, step, split, 1.0, r["test_accuracy"]] for r in rows for step in (0, 10)
              for split in ("validation", "test")]  # fmt: skip
    lines = [CURVE_COLUMNS, *points]
    (run / "curves.csv").write_text("".join(",".join(map(text, line)) + "\n" for line in lines))
    bins = [f"score_bin_{k:02d}" for k in range(1, 4)]
    entry = [r["test_accuracy"] for r in rows[:1]] * (len(SEARCH_COLUMNS) - 1)
    found = [("round", *SEARCH_COLUMNS, *bins), *([1, step, *entry, 0, 0, 0] for step in range(len(rows)))]
    (run / "search.csv").write_text("".join(",".join(map(text, line)) + "\n" for line in found))


def text(value: Any) -> str:
    return "" if value is None else str(value)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", TABLES, ids=lambda table: table.__name__)
def test_a_study_draws_what_it_can_and_warns_of_nothing(
    spoil: Callable[..., Any], make: Callable[..., Path], caplog: pytest.LogCaptureFixture, unsaved: None
) -> None:
    """Degenerate figures are left out: they are no errors."""
    for method in METHODS:
        draw_study(make(spoil, method))
    assert "was not drawn" not in caplog.text


PLOTS: dict[str, Callable[..., Any]] = {
    "accuracy": density.accuracy,
    "early_stop": density.early_stop,
    **{
        f"lmc {between}": (lambda frame, path, between=between: connectivity.lmc(frame, path, between=between))
        for between in connectivity.BETWEEN
    },
    **{f"cost {x}": (lambda frame, path, x=x: cost.cost(frame, path, x=x)) for x in cost.COSTS},
    "layers": layers.layers,
    "layer_density": masks.layer_density,
    "overlap": masks.overlap,
    "quality": quality.quality,
    "robustness": quality.robustness,
    "regimes": regimes.regimes,
    "rewind": rewinding.rewind,
    "stability": rewinding.stability,
    "search": searches.search,
    "width_depth": sizes.width_depth,
    "training": training.training,
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", TABLES, ids=lambda table: table.__name__)
def test_a_plot_is_drawn_or_refused_in_one_line(
    spoil: Callable[..., Any], make: Callable[..., Path], tmp_path: Path, unsaved: None
) -> None:
    frame = load_runs([make(spoil, seed=seed) for seed in range(2)])
    for plot in PLOTS.values():
        with suppress(LotteryError):  # anything else is an escape
            assert plot(frame, tmp_path / "figure")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [none_kept, all_nan, all_null], ids=lambda table: table.__name__)
def test_reports(spoil: Callable[..., Any], make: Callable[..., Path], tmp_path: Path) -> None:
    for method in METHODS:
        runs = [make(spoil, method, seed) for seed in range(2)]
        assert write_report(runs, tmp_path / "report.html", interactive=False)


def test_a_round_that_keeps_no_weight_is_drawn_with_the_others(make: Callable[..., Path]) -> None:
    drawn = draw_study(make(none_kept))
    assert {path.name for path in drawn} >= {"layers.png", "layer_density.png", "lmc.png", "lmc_path.png"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)


def test_an_error_in_one_figure_is_one_warning_and_the_others_are_drawn(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The traceback goes with it, for study.log; a terminal shows the message alone."""

    def broken(*_: object) -> None:
        raise ValueError("Invalid vmin or vmax")

    monkeypatch.setattr(masks, "heat_map", broken)
    drawn = {path.name for path in draw_study(make(list))}
    assert {"layers.png", "lmc.png", "search.png"} <= drawn
    assert "layer_density.png" not in drawn
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "layer_density.png was not drawn: " in record.getMessage()
    assert record.getMessage().endswith("ValueError: Invalid vmin or vmax")
    assert record.exc_info
    assert json.dumps(record.getMessage()).count("\\n") == 0
