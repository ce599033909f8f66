"""Intervals and tests against closed forms and scipy, and the rules for matching and winning tickets, one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lottery.analysis.intervals import bootstrap_interval, holm, p_above, t_interval
from lottery.analysis.statistics import check_groups, matching, paired, spread, summary, winning
from lottery.errors import ConfigError, LotteryError
from lottery.record.table import load_runs

NAN = float("nan")


def test_spread_is_mean_lowest_and_highest_in_words():
    values = pd.Series([0.5, -0.25, 2.0])
    assert spread(values) == "0.75 (-0.25 … 2.00)"
    assert spread(values, "{:+.1f}") == "+0.8 (-0.2 … +2.0)"


# -- of numbers --------------------------------------------------------------------------------------------------------


def test_t_interval_of_1_2_3():
    """Mean 2, s = 1, and 4.302653 is t(0.975) of two degrees of freedom, as in any table of it."""
    low, high = t_interval([1, 2, 3])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)


ACCURACIES = st.integers(0, 10_000).map(lambda correct: correct / 10_000)


@given(values=st.lists(ACCURACIES, min_size=2, max_size=9), confidence=st.floats(0.5, 0.99))
def test_t_interval_is_scipys(values, confidence):
    found = t_interval(values, confidence)
    if len(set(values)) == 1:
        assert found == pytest.approx((values[0], values[0]))
        return
    error = scipy.stats.sem(values)
    assert found == pytest.approx(
        scipy.stats.t.interval(confidence, len(values) - 1, np.mean(values), error), rel=1e-6, abs=1e-9
    )


def test_t_interval_holds_the_true_mean_as_often_as_it_says():
    """Of 4,000 draws of five: 95 %, with a standard error of 0.34 points."""
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    held = np.mean([low <= 0 <= high for low, high in map(t_interval, draws)])
    assert held == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
@pytest.mark.parametrize("n", [3, 5, 30])
def test_bootstrap_is_scipys_of_the_same_draws(method, n):
    values = np.random.default_rng(1).exponential(size=n)  # skewed: there the methods differ
    means = values[np.random.default_rng(3).integers(n, size=(2000, n))].mean(axis=1)
    means[np.isclose(means, values.mean(), rtol=1e-12)] = values.mean()  # each value once: equal but for rounding
    drawn = SimpleNamespace(bootstrap_distribution=means)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=0, method=method, bootstrap_result=drawn)
    found = bootstrap_interval(values, method=method.lower(), resamples=2000, seed=3)
    assert found == pytest.approx(tuple(theirs.confidence_interval))


def test_bca_corrects_for_skewness_towards_the_longer_tail():
    values = np.random.default_rng(1).exponential(size=30)
    bca, percentile = (bootstrap_interval(values, method=method) for method in ("bca", "percentile"))
    assert bca.low > percentile.low
    assert bca.high > percentile.high + 0.015
    mirrored = bootstrap_interval(-values)
    assert (-mirrored.high, -mirrored.low) == pytest.approx(bca)


@given(values=st.lists(ACCURACIES, min_size=2, max_size=6), seed=st.integers(0, 5))
def test_bootstrap_lies_within_the_values_and_repeats_with_its_seed(values, seed):
    low, high = bootstrap_interval(values, resamples=200, seed=seed)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    assert (low, high) == bootstrap_interval(values, resamples=200, seed=seed)


def test_bootstraps_of_other_seeds_are_others():
    values = np.random.default_rng(0).normal(size=9)
    assert bootstrap_interval(values, resamples=100, seed=0) != bootstrap_interval(values, resamples=100, seed=1)


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
def test_one_value_allows_no_interval_and_equal_ones_no_spread(interval):
    assert np.isnan(interval([0.98])).all()
    assert np.isnan(interval([0.98, NAN])).all()
    assert np.isnan(interval([])).all()
    assert interval([0.1] * 3) == pytest.approx((0.1, 0.1), abs=1e-12)
    assert interval([0.1, NAN, 0.3]) == interval([0.1, 0.3])


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
def test_confidence_is_a_share(interval):
    with pytest.raises(ConfigError, match="confidence: got 95, expected a number between 0 and 1"):
        interval([1, 2], 95)


def test_the_bootstraps_method_is_one_of_two():
    with pytest.raises(ConfigError, match="method: got 'basic', expected bca or percentile"):
        bootstrap_interval([1, 2], method="basic")


def test_holm_by_hand():
    """4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which may not come below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([0.01, NAN, 0.04]) == pytest.approx([0.02, NAN, 0.04], nan_ok=True)
    assert len(holm([])) == 0


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_uncorrected_and_bonferroni_and_keeps_the_order(p):
    found = holm(p)
    assert (found >= np.array(p)).all()
    assert (found <= np.minimum(1, len(p) * np.array(p)) + 1e-15).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()


def test_holm_rejects_any_true_hypothesis_as_rarely_as_promised():
    """20 true null hypotheses, 3,000 times: at least one below 0.05 in 5 %, with a standard error of 0.4 points."""
    draws = np.random.default_rng(0).uniform(size=(3000, 20))
    assert np.mean([holm(p).min() <= 0.05 for p in draws]) == pytest.approx(0.05, abs=0.015)


@given(values=st.lists(ACCURACIES, min_size=2, max_size=8, unique=True), bound=ACCURACIES)
def test_p_above_is_scipys_one_sided_t_test(values, bound):
    theirs = scipy.stats.ttest_1samp(values, bound, alternative="greater").pvalue
    assert p_above(values, bound) == pytest.approx(theirs, rel=1e-6, abs=1e-12)


def test_p_above_without_spread_is_certain_and_with_one_value_unknown():
    assert (p_above([0.1] * 3, 0), p_above([-0.1] * 3, 0), p_above([0.0] * 3, 0)) == (0, 1, 1)
    assert np.isnan(p_above([0.1], 0))


# -- of tables of runs -------------------------------------------------------------------------------------------------

TICKET = [0.97, 0.98, 0.985]  # at round 1, of seeds 0, 1, 2
DENSE = [0.98, 0.975, 0.98]
REINIT = [(0.95, 0.97), (0.96, 0.96), (0.95, 0.95)]  # two copies


@pytest.fixture
def table(make_run, row, tmp_path):
    for seed in range(3):
        reinit = [row(1, "reinit", copy, test_accuracy=REINIT[seed][copy]) for copy in range(2)]
        rows = [row(0, test_accuracy=DENSE[seed]), row(1, test_accuracy=TICKET[seed]), *reinit]
        make_run(f"s{seed}", rows, seed=seed)
    return load_runs(tmp_path)


def at(table: pd.DataFrame, round: int, control: str | None = None) -> pd.Series:
    (found,) = [
        line
        for _, line in table.iterrows()
        if line["round"] == round and (pd.isna(line["control"]) if control is None else line["control"] == control)
    ]
    return found


def test_a_summary_of_each_round_and_control(table):
    found = summary(table)
    assert len(found) == 3
    ticket = at(found, 1)
    assert (ticket["n"], ticket["rows"]) == (3, 3)
    assert (ticket["median"], ticket["min"], ticket["max"]) == (0.98, 0.97, 0.985)
    assert ticket["mean"] == pytest.approx(np.mean(TICKET))
    assert (ticket["t_low"], ticket["t_high"]) == t_interval(TICKET)
    assert (ticket["boot_low"], ticket["boot_high"]) == bootstrap_interval(TICKET)
    narrow = at(summary(table, confidence=0.5, method="percentile", seed=4), 1)
    assert (narrow["boot_low"], narrow["boot_high"]) == bootstrap_interval(TICKET, 0.5, method="percentile", seed=4)
    assert narrow["t_low"] > ticket["t_low"]


def test_copies_of_a_study_are_no_samples_of_their_own(table):
    reinit = at(summary(table), 1, "reinit")
    assert (reinit["n"], reinit["rows"]) == (3, 6)
    means = [np.mean(copies) for copies in REINIT]
    assert (reinit["min"], reinit["max"]) == pytest.approx((0.95, 0.96))
    assert (reinit["t_low"], reinit["t_high"]) == pytest.approx(t_interval(means))


def test_what_was_not_measured_does_not_count_and_n_says_so(table):
    table.loc[(table["run"] == table["run"][0]) & (table["round"] == 1), "test_accuracy"] = NAN
    table.loc[table["round"] == 0, "test_accuracy"] = NAN
    found = summary(table)
    assert at(found, 1)["n"] == 2
    assert at(found, 1)["mean"] == pytest.approx(np.mean(TICKET[1:]))
    assert at(found, 0)["n"] == at(found, 0)["rows"] == 0
    assert np.isnan(at(found, 0)[["mean", "median", "min", "max", "t_low", "boot_high"]].astype(float)).all()


def test_a_summary_by_one_column_of_another_value(table):
    found = summary(table[table["control"].isna()], "round", "kept")
    assert found["round"].tolist() == [0, 1]
    assert found["mean"][0] == 266_200


def test_columns_that_are_not_there_or_hold_no_numbers(table):
    with pytest.raises(ConfigError, match=r"no column 'test_acuracy' \(did you mean 'test_accuracy'\?\)"):
        summary(table, value="test_acuracy")
    with pytest.raises(ConfigError, match="no column 'ronud'"):
        summary(table, by="ronud")
    with pytest.raises(ConfigError, match="value: got 'layer_density', expected a column of numbers"):
        summary(table, value="layer_density")


# -- no mean over different experiments --------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", [summary, matching, winning])
def test_a_group_of_two_experiments_is_refused(make_run, row, table, tmp_path, statistic):
    make_run("other", [row(0), row(1)], seed=7, optim={"name": "adam", "lr": 0.1})
    mixed = load_runs(tmp_path)
    with pytest.raises(LotteryError, match=r"differ in config\.optim\.lr \(.*0\.1.*\): add it to `by`") as caught:
        statistic(mixed)
    assert "\n" not in str(caught.value)
    apart = statistic(mixed, by=["round", "control", "config.optim.lr"])
    assert sorted(set(apart["n"])) == [1, 3]
    assert max(statistic(mixed, mixed=True)["n"]) == 4


def test_a_group_with_a_seed_twice_is_refused(make_run, row, table, tmp_path):
    make_run("again", [row(0), row(1)], seed=2)
    with pytest.raises(LotteryError, match=r"again and .*s2 have the same seeds: give each seed once"):
        summary(load_runs(tmp_path))
    with pytest.raises(LotteryError, match="have the same seeds"):
        summary(load_runs(tmp_path, config=[]))
    make_run("again2", [row(0), row(1)], seed=1, seeds={"init": 5, "order": 1, "mask": 1, "split": 1})
    summary(load_runs([*(tmp_path / f"s{seed}" for seed in range(3)), tmp_path / "again2"]))


def test_what_can_change_no_number_sets_no_experiments_apart(make_run, row, table, tmp_path):
    run = make_run("a", [row(0)], seed=8, paths={"runs": "elsewhere"}, controls={"reinit": 0}, probes={"x": 1})
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace('"name": "lth_lenet"', '"name": "renamed"'))
    renamed = load_runs(tmp_path)
    assert renamed["name"].nunique() == 2
    check_groups(renamed, ["round", "control"])


# -- paired ------------------------------------------------------------------------------------------------------------


def test_differences_are_from_the_dense_network_of_the_same_study(table):
    found = paired(table)
    assert len(found) == len(table) - 3  # all but the dense ones
    ticket = found[found["control"].isna()]
    assert ticket["reference"].tolist() == DENSE
    assert ticket["difference"].tolist() == pytest.approx([-0.01, 0.005, 0.005])
    assert found["difference"].tolist() == pytest.approx((found["test_accuracy"] - found["reference"]).tolist())


def test_differences_from_a_control_are_from_the_mean_of_its_copies(table):
    found = paired(table, against="reinit")
    assert found["control"].isna().all()
    at_1 = found[found["round"] == 1]
    assert at_1["reference"].tolist() == pytest.approx([0.96, 0.96, 0.95])
    assert found[found["round"] == 0]["difference"].isna().all()  # the dense network has no controls


def test_a_study_without_its_dense_network_does_not_count(table):
    found = matching(table[~((table["seed"] == 0) & (table["round"] == 0))])
    assert at(found, 1)["n"] == 2
    assert at(found, 1)["difference"] == pytest.approx(0.005)


def test_a_control_that_nobody_has_is_named(table):
    with pytest.raises(ConfigError, match="against: got 'random', expected one that the rows have, of dense, reinit"):
        paired(table, against="random")


# -- matching and winning ----------------------------------------------------------------------------------------------


def study(make_run, row, tmp_path, differences, steps=None, **changes):
    """Seeds whose ticket of round 1 differs so much from dense in both accuracies, and in the early-stop step."""
    for seed, difference in enumerate(differences):
        accuracy = {"test_accuracy": 0.98 + difference, "early_stop_test_accuracy": 0.98 + difference}
        dense = row(0, test_accuracy=0.98, early_stop_test_accuracy=0.98, early_stop_step=1000)
        step = None if steps is None else 1000 + steps[seed]
        make_run(f"s{seed}", [dense, row(1, early_stop_step=step, **accuracy) | changes], seed=seed)
    return load_runs(tmp_path)


@pytest.mark.parametrize(
    ("differences", "margin", "matches"),
    [
        ([0.01, -0.01], 0.0, True),  # the mean, not each
        ([0.01, -0.011], 0.0, False),
        ([-0.005, -0.005, -0.005], 0.005, True),  # 0.975 - 0.98 is a little less than -0.005 in floating point
        ([-0.005, -0.005, -0.0053], 0.005, False),
        ([0.0], 0.0, True),
    ],
)
def test_matching_is_a_mean_difference_within_the_margin(make_run, row, tmp_path, differences, margin, matches):
    found = at(matching(study(make_run, row, tmp_path, differences), margin), 1)
    assert found["matching"] == matches
    assert (found["n"], found["margin"]) == (len(differences), margin)
    assert (found["t_low"], found["t_high"]) == pytest.approx(t_interval(differences), nan_ok=True)
    assert found["density"] == pytest.approx(row(1)["density"])


def test_shown_needs_more_than_a_mean(make_run, row, tmp_path):
    close = study(make_run, row, tmp_path, [0.001, -0.001, 0.0005, -0.0005, 0.0])
    assert at(matching(close, 0.005), 1)["shown"]
    assert not at(matching(close, 0.0), 1)["shown"]
    one = at(matching(close[close["seed"] == 0], 0.005), 1)
    assert one["matching"]
    assert pd.isna(one["shown"])


def test_several_densities_are_corrected_for_each_curve_by_itself(make_run, row, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.004, size=(5, 4))
    for seed in range(5):
        rows = [row(0, test_accuracy=0.98)]
        rows += [row(k, test_accuracy=0.98 + noise[seed, k - 1]) for k in (1, 2, 3)]
        rows += [row(1, "reinit", test_accuracy=0.98 + noise[seed, 3])]
        make_run(f"s{seed}", rows, seed=seed)
    found = matching(load_runs(tmp_path), 0.005)
    tickets = found[found["control"].isna()]
    assert tickets["p_holm"].tolist() == pytest.approx(holm(tickets["p"]).tolist())
    assert tickets["p"].tolist() == pytest.approx([p_above(noise[:, k], -0.005) for k in range(3)], rel=1e-6)
    reinit = at(found, 1, "reinit")
    assert reinit["p_holm"] == reinit["p"]  # one density: nothing to correct
    alone = matching(load_runs(tmp_path, {"control": None}), 0.005, by="round")
    assert alone["p_holm"].tolist() == tickets["p_holm"].tolist()


def test_where_nothing_was_measured_matching_is_unknown(table):
    table.loc[table["control"] == "reinit", "test_accuracy"] = NAN
    found = at(matching(table), 1, "reinit")
    assert found["n"] == 0
    assert pd.isna(found["matching"])
    assert pd.isna(found["shown"])


def test_a_margin_is_not_negative(table):
    for margin in (-0.01, NAN):
        with pytest.raises(ConfigError, match=r"margin: got .*, expected 0 or more"):
            matching(table, margin)


@pytest.mark.parametrize(
    ("differences", "steps", "changes", "wins"),
    [
        ([0.001, 0.001], [-100, 50], {}, True),  # as accurate, sooner in the mean, smaller
        ([0.0, 0.0], [0, 0], {}, True),
        ([-0.001, -0.001], [-100, -100], {}, False),  # less accurate
        ([0.001, 0.001], [100, -50], {}, False),  # slower
        ([0.001, 0.001], [-100, -100], {"density": 1.0}, False),  # not smaller
        # after training longer it is worse, which does not count: the definition is about the early stop
        ([0.001, 0.001], [-100, -100], {"test_accuracy": 0.9}, True),
    ],
)
def test_winning_by_each_of_its_conditions(make_run, row, tmp_path, differences, steps, changes, wins):
    found = at(winning(study(make_run, row, tmp_path, differences, steps, **changes)), 1)
    assert found["winning"] == wins
    assert found["step_difference"] == np.mean(steps)
    assert (found["step_low"], found["step_high"]) == pytest.approx(t_interval(steps))
    assert found["n"] == found["step_n"] == 2


def test_without_an_early_stop_winning_is_unknown(make_run, row, tmp_path):
    found = at(winning(study(make_run, row, tmp_path, [0.001, 0.001])), 1)
    assert found["step_n"] == 0
    assert pd.isna(found["winning"])
