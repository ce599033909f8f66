"""The figure of training curves (Frankle & Carbin 2019, Fig. 3): what stands where, and what it refuses."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from lottery.errors import ConfigError, LotteryError
from lottery.figures.training import draw_training, span, training
from lottery.record.table import curves, load_runs

STEPS = (0, 100, 200)


def accuracy(seed: int, round: int, control: str, step: int) -> float:
    """Rises with the step; higher by the seed, lower by the round and for controls."""
    return 0.1 + 0.004 * step + 0.02 * seed - 0.01 * round - (0.05 if control else 0)


@pytest.fixture
def table(make_run, row, tmp_path):
    """Three seeds of three rounds, the reinitialised ticket beside the pruned ones."""
    rows = [row(0), *(row(k, control) for k in (1, 2) for control in (None, "reinit"))]
    for seed in range(3):
        run = make_run(f"lth/{seed:012x}", rows, seed=seed)
        lines = ["round,control,copy,step,split,loss,accuracy"]
        for each in rows:
            name = each["control"] or ""
            for step in STEPS:
                at = f"{each['round']},{name},0,{step}"
                lines.append(f"{at},validation,1.0,{accuracy(seed, each['round'], name, step)}")
                lines.append(f"{at},train,{2 - 0.001 * step},")
        (run / "curves.csv").write_text("\n".join(lines) + "\n")
    return load_runs(tmp_path)


def test_a_curve_is_the_mean_over_the_seeds_in_per_cent(table):
    recorded = curves(table)
    recorded = recorded[(recorded["split"] == "validation") & recorded["control"].isna()]
    axes = Figure().subplots()
    density = table.groupby("round")["density_weights"].mean()
    draw_training(axes, recorded[recorded["round"] > 0], recorded[recorded["round"] == 0], density, 0.5)
    drawn = {line.get_label(): line for line in axes.lines}
    assert next(iter(drawn)) == "dense"
    assert len(drawn) == 3, "dense and two densities"
    for round, line in enumerate(axes.lines):
        assert list(line.get_xdata()) == list(STEPS)
        assert list(line.get_ydata()) == pytest.approx([100 * accuracy(1, round, "", step) for step in STEPS])


def test_what_is_shown_holds_the_end_of_every_curve(table):
    recorded = curves(table)
    recorded = recorded[recorded["split"] == "validation"]
    low, high = span([recorded[recorded["control"].isna()], recorded[recorded["control"] == "reinit"]])
    ends = [100 * accuracy(1, k, control, 200) for k in (0, 1, 2) for control in ("", "reinit") if k or not control]
    assert low < min(ends) < max(ends) < high


def test_it_is_written(table, tmp_path):
    paths = training(table, tmp_path / "curves")
    assert [path.name for path in paths] == ["curves.png", "curves.svg", "curves.pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)
    only = training(table, tmp_path / "loss", split="train", rounds=[2], controls=())
    assert all(path.exists() for path in only)


def test_what_it_refuses(table, tmp_path):
    with pytest.raises(ConfigError, match="split: got 'test', expected one of validation, train"):
        training(table, tmp_path / "a", split="test")
    for path in (tmp_path / "lth").glob("*/curves.csv"):  # as where nothing was held out
        path.write_text("".join(line for line in path.open() if ",validation," not in line))
    with pytest.raises(LotteryError, match="no validation accuracy on the curves"):
        training(table, tmp_path / "a")


def test_several_experiments_are_not_averaged(table, make_run, row, tmp_path):
    other = make_run("other/000000000000", [row(0)], optim={"lr": 0.5})
    with pytest.raises(LotteryError, match="training: 2 experiments"):
        training(load_runs([*table["run"].unique(), other]), tmp_path / "a")
