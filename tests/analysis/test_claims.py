"""Claims beside what studies show: means over seeds, differences within and between studies, published points."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from lottery.analysis.claims import (
    Claim,
    across,
    beside,
    checked,
    dense_level,
    distinct,
    named,
    near,
    relative,
    studies,
    tickets,
    within,
)
from lottery.errors import ConfigError, LotteryError
from lottery.record.table import load_runs


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rounds, with what is not said: a ticket of half the weights, of seed 0 and the run of that seed."""
    usual = {"seed": 0, "round": 1, "control": None, "density": 0.5, "test_accuracy": 0.9}
    rows = tuple(usual | row for row in rows)
    digests = [{"run": f"run{row['seed']}", "weights_digest": str(k)} | row for k, row in enumerate(rows)]
    return pd.DataFrame(digests)


def checked_one(claim: Claim) -> dict[str, Any]:
    return checked([claim]).iloc[0].to_dict()


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_claim_is_about_the_mean_over_seeds_each_counted_once():
    rows = table(
        {"seed": 0, "gain": 0.01}, {"seed": 0, "gain": 0.03}, {"seed": 1, "gain": -0.01}, {"seed": 2, "gain": None}
    )
    row = checked_one(Claim("better", rows, "gain", least=0, published=0.3))
    assert (row["claim"], row["published"]) == ("better", 0.3)
    assert row["here"] == pytest.approx(0.5), "of 2 and -1 points, not of 1, 3 and -1"
    assert (row["lowest"], row["highest"]) == pytest.approx((-1, 2))
    assert (row["n"], row["holds_in"], row["agrees"]) == (2, 1, "yes")
    half = 12.706205 * math.sqrt(4.5) / math.sqrt(2)  # t(0.975) of one degree of freedom; s² = 4.5
    assert (row["t_low"], row["t_high"]) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-5)
    assert row["density"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("bounds", "agrees"),
    [({"least": 0.02}, "yes"), ({"least": 0.021}, "no"), ({"most": 0.02}, "yes"), ({"most": 0.019}, "no"),
     ({"least": 0.01, "most": 0.03}, "yes"), ({"least": -0.03, "most": 0.01}, "no")],
)  # fmt: skip
def test_a_claim_holds_between_its_bounds_and_at_them(bounds, agrees):
    rows = table({"gain": 0.1 - 0.08})  # 0.020000000000000004
    assert checked_one(Claim("so", rows, "gain", **bounds))["agrees"] == agrees


def test_what_was_not_measured_is_open():
    row = checked_one(Claim("better", table({"gain": None}).astype({"gain": float}), "gain", least=0))
    assert (row["n"], row["holds_in"], row["agrees"]) == (0, 0, "open")
    assert math.isnan(row["here"])


@pytest.mark.parametrize(("unit", "shown"), [("points", 5), ("%", 5), ("times", 0.05), ("steps", 0.05), ("", 0.05)])
def test_units(unit, shown):
    assert checked_one(Claim("so", table({"x": 0.05}), "x", unit=unit))["here"] == pytest.approx(shown)


def test_wrong_claims_are_one_line():
    with pytest.raises(ConfigError, match="unit: got 'mm'"):
        Claim("so", table({}), "test_accuracy", unit="mm")
    with pytest.raises(ConfigError, match=r"so: the table has no column 'test_acuracy' .did you mean 'test_accuracy'"):
        Claim("so", table({}), "test_acuracy")


# -- rows --------------------------------------------------------------------------------------------------------------


def test_tickets_are_pruned_and_no_controls():
    rows = table({"round": 0, "density": 1.0}, {}, {"control": "reinit"}, {"round": 2, "density": 1.0})
    assert tickets(rows).index.tolist() == [1]


def test_near_is_the_nearest_density_of_each_study_within_a_factor():
    rows = table(
        {"density": 0.5}, {"density": 0.26}, {"density": 0.24},
        {"seed": 1, "density": 0.30}, {"seed": 1, "density": 0.8}, {"seed": 2, "density": 0.05},
    )  # fmt: skip
    assert near(rows, 0.25).index.tolist() == [1, 3], "0.24 is farther, as a ratio; 0.05 too far"
    assert near(rows, 0.238).index.tolist() == [2], "0.30 is 1.26 times as much"
    with pytest.raises(ConfigError, match="density: got 25"):
        near(rows, 25)


def test_within_is_beside_the_same_study():
    rows = table(
        {"round": 0, "density": 1.0, "test_accuracy": 0.8}, {"test_accuracy": 0.9},
        {"control": "random", "test_accuracy": 0.6}, {"seed": 1, "round": 0, "density": 1.0, "test_accuracy": 0.5},
        {"seed": 1, "test_accuracy": 0.4},
    )  # fmt: skip
    of_dense = within(rows)
    assert of_dense["difference"].dropna().tolist() == pytest.approx([0.1, -0.2, -0.1])
    of_random = tickets(within(rows, against="random"))
    assert of_random["ratio"].tolist()[0] == pytest.approx(1.5)
    assert of_random["ratio"].isna().tolist() == [False, True], "seed 1 has no such control"


def test_across_is_beside_another_study_of_the_same_seed_and_round():
    ours = table({"run": "a0", "test_accuracy": 0.9}, {"run": "a1", "seed": 1, "test_accuracy": 0.7})
    theirs = table({"run": "b0", "test_accuracy": 0.8}, {"run": "b0", "test_accuracy": 0.6, "control": "copy"})
    rows = across(ours, theirs)
    assert rows["difference"].iloc[0] == pytest.approx(0.2), "from the mean of that study's rows"
    assert rows["ratio"].iloc[0] == pytest.approx(0.9 / 0.7)
    assert math.isnan(rows["difference"].iloc[1])
    again = across(rows, theirs.assign(difference=0.05), "difference", "seed")
    assert again["difference"].iloc[0] == pytest.approx(0.15), "a difference of differences"
    with pytest.raises(ConfigError, match="across: the table has no column 'difference'"):
        across(rows, theirs, "difference")


@pytest.mark.parametrize("which", ["ours", "theirs"])
def test_across_refuses_to_average_over_different_studies(which):
    several = table({"run": "b0"}, {"run": "b1"})
    given = {"ours": table({"run": "a0"}), "theirs": table({"run": "c0"})} | {which: several}
    with pytest.raises(LotteryError, match=rf"across: {which} at seed 0, round 1: b0 and b1, expected one study"):
        across(given["ours"], given["theirs"])
    told = {name: rows.assign(lr=[0.1, 0.2][: len(rows)]) for name, rows in given.items()}
    assert len(across(told["ours"], told["theirs"], on=["seed", "lr"])) == len(told["ours"])


def test_distinct_keeps_of_equal_trainings_the_study_with_most_measured():
    dense = {"round": 0, "density": 1.0, "weights_digest": "dense"}
    rows = table(
        {"run": "plain", **dense}, {"run": "plain", "weights_digest": "ticket", "probe/ece": None},
        {"run": "probed", **dense}, {"run": "probed", "weights_digest": "ticket", "probe/ece": 0.1},
        {"run": "other", **dense}, {"run": "other", "weights_digest": "another"},
    )  # fmt: skip
    assert distinct(rows)["run"].unique().tolist() == ["probed", "other"]


# -- what there is -----------------------------------------------------------------------------------------------------


def test_studies_are_counted_with_their_different_trainings(make_run, row, tmp_path):
    for seed in (0, 1):
        rows = [row(k, weights_digest=f"{seed}-{k}", seconds=1800.0) for k in (0, 1)]
        make_run(f"a{seed}", rows, seed=seed)
        one_shot = {"_target_": "lottery.methods.imp.IMP", "rounds": 1, "one_shot": True}
        make_run(f"b{seed}", [rows[0], row(1, weights_digest=f"b{seed}")], seed=seed, method=one_shot)
    frame = named(load_runs(tmp_path))
    assert set(frame["network"]) == {"LeNet-300-100 on MNIST"}
    (found,) = studies(frame).to_dict("records")
    assert found["method"] == "IMP, reset to init"
    assert (found["seeds"], found["studies"], found["rounds"]) == ("0, 1", 4, 1)
    assert (found["trainings"], found["steps"]) == (6, 300_000), "the dense networks are shared"
    labelled = studies(frame.assign(label=frame["config.method.one_shot"].fillna(False).map(str)))
    assert labelled["method"].tolist() == ["False", "True"]


# -- published numbers -------------------------------------------------------------------------------------------------

THEIRS = [{"x": 1, "y": 0.92, "label": "theirs"}, {"x": 0.5, "y": 0.93, "label": "theirs", "series": "random"}]


def test_published_points_of_another_network_are_moved_by_its_dense_one():
    rows = table({"round": 0, "test_accuracy": 0.8}, {"seed": 1, "round": 0, "test_accuracy": 0.7}, {})
    assert dense_level(rows) == pytest.approx(0.75)
    (point,) = relative(THEIRS, rows)
    assert point["y"] == pytest.approx(0.76)
    assert point["label"] == "theirs, relative to dense"
    assert THEIRS[1]["y"] == 0.93, "what is given is left alone"


def test_a_seed_counts_once_in_the_dense_level_however_many_studies_share_it():
    dense = {"round": 0, "density": 1.0}
    rows = table(
        *({"run": f"a{k}", "test_accuracy": 0.8, **dense} for k in range(3)),
        {"run": "b", "seed": 1, "test_accuracy": 0.6, **dense},
    )
    assert dense_level(rows) == pytest.approx(0.7)


@pytest.mark.parametrize("points", [[], THEIRS[1:], [*THEIRS, {"x": 1, "y": 0.5, "label": "another"}]])
def test_points_without_one_dense_network_cannot_be_moved(points):
    with pytest.raises(LotteryError, match=r"published points: [02] values of a dense network"):
        relative(points, table({"round": 0}))


def test_published_beside_here():
    dense = {"round": 0, "density": 1.0, "test_accuracy": 0.8, "weights_digest": "shared"}
    rows = table(
        {"run": "a", **dense, "label": "A"}, {"run": "a", "test_accuracy": 0.9, "label": "A"},
        {"run": "b", **dense, "label": "B"}, {"run": "b", "test_accuracy": 0.7, "label": "B"},
        {"run": "b", "test_accuracy": 0.6, "label": "B", "control": "random"},
    )  # fmt: skip
    points = [*THEIRS, {"x": 0.45, "y": 0.9, "series": "A"}, {"x": 0.1, "y": 0.5, "series": "A"}]
    found = beside(points, rows)
    assert found["series"].tolist() == ["dense", "random", "A", "A"]
    assert found["published"].tolist() == pytest.approx([92, 93, 90, 50])
    assert found["density here"].tolist()[:3] == pytest.approx([100, 50, 50])
    assert found["here"].tolist()[:3] == pytest.approx([80, 60, 90])
    assert found["n"].tolist() == [1, 1, 1, 0], "a training that two studies share counts once"
    less = beside(points, rows, of_dense=True)
    assert less["series"].tolist() == ["random", "A", "A"]
    assert less["published"].tolist() == pytest.approx([1, -2, -42])
    assert less["here"].tolist()[:2] == pytest.approx([-20, 10])
    assert beside(points, rows[:0], of_dense=True)["n"].tolist() == [0, 0, 0]
