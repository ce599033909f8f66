"""Many run folders become one table: what is in it, which folders are in it, and what is said of those that are not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lottery.compose import composed, groups
from lottery.errors import ConfigError, LotteryError
from lottery.record.config import config_leaves, flat, read_config
from lottery.record.frame import PLACE
from lottery.record.run import Run
from lottery.record.status import Status
from lottery.record.table import curves, load_runs

DONE = "2026-11-23 00:36:30,385  done: 6 rows, masks, curves and figures in runs/x\n"


@pytest.fixture
def seeds(make_run, row, tmp_path):
    """Three seeds: a round each of the ticket, and a control with two copies."""
    rows = [row(0), row(1), row(1, "reinit", 0), row(1, "reinit", 1)]
    for seed in range(3):
        make_run(f"lth/{seed:012x}", rows, seed=seed)
    return tmp_path


@pytest.fixture
def warned(caplog, monkeypatch):
    """A function that gives what was warned of since it was asked last."""
    monkeypatch.setattr(logging.getLogger("lottery"), "propagate", True)

    def since():
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return since


# -- the table ---------------------------------------------------------------------------------------------------------


def test_a_row_a_round_control_and_copy_beside_the_configuration(seeds, config, row):
    table = load_runs(seeds)
    assert len(table) == 3 * 4
    assert list(table.columns[: len(PLACE)]) == list(PLACE)
    assert table["run"].unique().tolist() == [str(seeds / "lth" / f"{seed:012x}") for seed in range(3)]
    assert table["seed"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table["name"].unique().tolist() == [config["name"]]
    assert table["key"].unique().tolist() == [f"{seed:012x}" for seed in range(3)]
    assert table["control"].isna().tolist() == [True, True, False, False] * 3
    assert table["test_accuracy"].tolist() == [row(k)["test_accuracy"] for k in (0, 1, 1, 1)] * 3
    assert table["layer_density"][1] == row(1)["layer_density"]
    assert (table["config.optim.lr"] == 0.0012).all()
    assert table["config.data.limit"].isna().all()
    assert table.index.tolist() == list(range(12))


def test_the_rounds_are_those_that_the_strict_reader_reads(seeds):
    table = load_runs(seeds)
    strict = pd.concat([Run(run).table for run in sorted((seeds / "lth").iterdir())], ignore_index=True)
    pd.testing.assert_frame_equal(table[strict.columns], strict)


def test_lists_are_tuples_so_that_one_can_group_by_them(make_run, row, tmp_path):
    make_run("a", [row(0)], model={"hidden": [300, 100], "nested": [[1, 2], [3]]})
    table = load_runs(tmp_path)
    assert table["config.model.hidden"][0] == (300, 100)
    assert table["config.model.nested"][0] == ((1, 2), (3,))
    assert table.groupby("config.model.hidden").size().tolist() == [1]


def test_what_no_study_measured_is_nan_in_a_column_of_numbers(make_run, row, tmp_path):
    make_run("a", [row(0, val_loss=None, **{"probe/surprise": None})])
    table = load_runs(tmp_path)
    assert table["val_loss"].dtype == table["probe/surprise"].dtype == float


def test_keys_that_only_some_studies_have(make_run, row, tmp_path):
    make_run("a", [row(0, **{"probe/ece": 0.5})], extra={"only": "here"})
    make_run("b", [row(0)])
    table = load_runs(tmp_path)
    assert table["probe/ece"].isna().tolist() == [False, True]
    assert table["config.extra.only"].isna().tolist() == [False, True]


def test_an_old_row_without_a_copy_is_the_first(make_run, row, tmp_path):
    old = {key: value for key, value in row(0).items() if key != "copy"}
    make_run("a", [old])
    assert load_runs(tmp_path)["copy"].tolist() == [0]


def test_torch_is_not_needed():
    code = "import sys, lottery.record.table, lottery.analysis.statistics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- unfinished and damaged --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "done", "failed", "interrupted"])
def test_finished_is_what_the_status_says(make_run, row, state):
    run = make_run("a", [row(0)])
    (run / "study.log").write_text(DONE if state != "done" else "")
    (run / "status.json").write_text(json.dumps(asdict(Status(state=state))))
    assert load_runs(run)["finished"].tolist() == [state == "done"]


@pytest.mark.parametrize(
    ("log", "finished"),
    [
        (DONE, True),
        ("x\n" * 9000 + DONE, True),
        (DONE + "2026-11-23 00:40:00  interrupted by SIGTERM\n", False),
        ("", False),
        ("not yet done: 6 rows\n", False),
        (None, False),
    ],
)
def test_without_a_status_it_is_how_the_log_ends(make_run, row, log, finished):
    run = make_run("a", [row(0)])
    if log is not None:
        (run / "study.log").write_text(log)
    assert load_runs(run)["finished"].tolist() == [finished]


def test_a_study_without_a_round_has_no_rows_beside_others(make_run, row, tmp_path):
    make_run("a", [row(0)])
    for name in ("b", "c"):
        run = make_run(name, [])
        (run / "masks").mkdir()
    (run / "rounds.jsonl").unlink()  # as before the first round
    assert load_runs(tmp_path)["run"].tolist() == [str(tmp_path / "a")]
    with pytest.raises(LotteryError, match=r"b: has not finished a round yet, nor one of 1 more; run it first"):
        load_runs([tmp_path / "b", tmp_path / "c"])


def test_a_torn_last_line_is_no_row_and_nothing_is_said(make_run, row, warned):
    run = make_run("a", [row(0), row(1)])
    with (run / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(row(2)))
    assert load_runs(run)["round"].tolist() == [0, 1]
    assert not warned()


@pytest.mark.parametrize("line", ["{broken", "", "[1, 2]", "\x00\x00", '{"round": 1}', '{"control": null}', "\xff\xfe"])
def test_a_damaged_line_is_named_and_the_rest_is_used(make_run, row, warned, line):
    run = make_run("a", [row(0)])
    with (run / "rounds.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n" + json.dumps(row(2)).encode() + b"\n")
    assert load_runs(run)["round"].tolist() == [0, 2]
    assert warned() == [f"{run / 'rounds.jsonl'}, line 2: damaged, and left out; the rest is used"]


def test_a_newer_format_is_one_line(make_run, row):
    later = "lottery-run/2"
    named = make_run("a", [row(0)], format=later)
    inside = make_run("b", [row(0), row(1, format=later)])
    for run, place in ((named, r"config\.yaml"), (inside, r"rounds\.jsonl, line 2")):
        with pytest.raises(LotteryError, match=rf"{place}: format '{later}', expected 'lottery-run/1'") as caught:
            load_runs(run)
        assert "\n" not in str(caught.value)
    this = make_run("c", [row(0)], format="lottery-run/1")
    assert len(load_runs(this)) == 1


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: ${nowhere}\n", "a: 1\na: 2\n"])
def test_a_damaged_configuration_is_one_line(make_run, row, text):
    run = make_run("a", [row(0)])
    (run / "config.yaml").write_text(text)
    with pytest.raises(LotteryError, match=r"a/config\.yaml(, line \d+)?: ") as caught:
        load_runs(run)
    assert "\n" not in str(caught.value)


# -- which folders -----------------------------------------------------------------------------------------------------


def test_folders_are_found_at_any_depth_each_once(seeds, make_run, row):
    make_run("other/deep/down/d", [row(0)], seed=9)
    every = load_runs(seeds)["run"].unique().tolist()
    assert len(every) == 4
    run = seeds / "lth" / f"{0:012x}"
    again = load_runs([run, seeds / "lth", str(seeds / "*"), seeds])
    assert len(again) == len(load_runs(seeds))
    assert again["run"].unique().tolist() == every
    assert load_runs(str(seeds / "oth*"))["seed"].tolist() == [9]
    assert load_runs(str(seeds / "**"))["run"].nunique() == 4
    assert load_runs(path for path in [run])["run"].unique().tolist() == [str(run)]


def test_what_is_hidden_or_only_looks_like_a_run_is_left_out(seeds, make_run, row):
    make_run(".sweeps/x", [row(0)])
    (seeds / "conf").mkdir()
    (seeds / "conf" / "config.yaml").write_text("seed: 1\n")
    assert load_runs(seeds)["run"].nunique() == 3
    assert len(load_runs(seeds / ".sweeps")) == 1  # asked for by name


def test_links_are_followed_but_not_in_circles(seeds, tmp_path):
    (tmp_path / "collected").mkdir()
    (tmp_path / "collected" / "one").symlink_to(seeds / "lth" / f"{1:012x}")
    (tmp_path / "collected" / "circle").symlink_to(tmp_path / "collected")
    assert load_runs(tmp_path / "collected")["seed"].unique().tolist() == [1]
    assert load_runs(seeds)["run"].nunique() == 3


@pytest.mark.parametrize("path", ["nowhere", "empty", "lth/no*"])
def test_where_no_run_is_the_command_that_makes_one_is_said(seeds, path):
    (seeds / "empty").mkdir()
    with pytest.raises(LotteryError, match=r"no .*run folder.*python -m lottery \+exp=imp_rewind") as caught:
        load_runs([seeds / "lth", seeds / path])
    assert str(caught.value).startswith(str(seeds / path))
    assert "\n" not in str(caught.value)


def test_no_path_at_all_is_an_error():
    with pytest.raises(LotteryError, match="got no path"):
        load_runs([])


def test_the_same_study_twice_is_warned_of(make_run, row, tmp_path, warned):
    for name in ("here", "copied"):
        make_run(f"{name}/{7:012x}", [row(0)])
    assert len(load_runs(tmp_path)) == 2
    (message,) = warned()
    assert "are the same study, which counts 2 times" in message
    load_runs(tmp_path / "here")
    assert not warned()


# -- filters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ({"seed": 1}, 4),
        ({"config.seed": [0, 2]}, 8),
        ({"seed": range(2)}, 8),
        ({"optim.lr": lambda lr: lr < 0.01}, 12),
        ({"data.limit": None}, 12),
        ({"round": 1, "control": None}, 3),
        ({"control": "reinit"}, 6),
        ({"control": [None, "reinit"]}, 12),
        ({"control": lambda control: control.startswith("re")}, 6),
        ({"key": f"{2:012x}", "copy": 1}, 1),
        ({"finished": False}, 12),
    ],
)
def test_filters_take_a_value_a_list_or_a_function(seeds, filters, rows):
    table = load_runs(seeds, filters)
    assert len(table) == rows
    assert table.index.tolist() == list(range(rows))


def test_a_key_that_no_run_has_is_wrong_and_the_nearest_is_named(seeds):
    with pytest.raises(ConfigError, match=r"filters: no run has 'optim.ls' \(did you mean '.*optim.lr'\?\)"):
        load_runs(seeds, {"optim.ls": 1})
    with pytest.raises(ConfigError, match=r"config: no run has 'optin' "):
        load_runs(seeds, config=["optin"])


@pytest.mark.parametrize(
    ("filters", "values"), [({"seed": 7}, "0, 1, 2"), ({"seed": "1"}, "0, 1, 2"), ({"control": "x"}, "None, 'reinit'")]
)
def test_filters_that_leave_nothing_name_the_values(seeds, filters, values):
    with pytest.raises(LotteryError, match=f"leaves no row; its values are {values}$"):
        load_runs(seeds, filters)


def test_only_the_configuration_asked_for(seeds):
    def kept(asked):
        return [name for name in load_runs(seeds, config=asked) if name.startswith("config.")]

    assert kept([]) == []
    assert kept(["optim.lr"]) == kept("optim.lr") == kept(["config.optim.lr"]) == ["config.optim.lr"]
    assert kept(["optim"]) == ["config.optim.name", "config.optim.lr"]


# -- configurations, fast ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", groups()["exp"])
def test_every_preset_is_read_as_the_strict_reader_reads_it(tmp_path, name):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(composed([f"+exp={name}"]), resolve=True))
    assert config_leaves(tmp_path) == flat(read_config(tmp_path))


ODD = [
    "1e-3",
    "-1E+5",
    "1.e3",
    ".5e-3",
    "1.5e5",
    "1_0e2",
    "e5",
    "1e",
    "2026-11-23",
    "1:30",
    "0x1f",
    "010",
    "on",
    "~",
    ".inf",
]


@pytest.mark.parametrize("text", [*ODD, "'1e-3'", "[1e-3, a: 1]", "{b: {}, c: []}", "|\n  x: 1\n  y", "a\n  b", "# x"])
def test_scalars_mean_what_they_mean_to_hydra(tmp_path, text):
    (tmp_path / "config.yaml").write_text(f"# a comment\nfirst: 1\nvalue: {text}\ngroup:\n  value: {text}\nlast: 'x'\n")
    try:
        strict = flat(read_config(tmp_path, needs=()))
    except LotteryError:
        with pytest.raises(LotteryError):
            config_leaves(tmp_path)
    else:
        found = config_leaves(tmp_path)
        assert found == strict
        assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in strict.items()}


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False),
    st.text(st.characters(exclude_characters="$\\\x85", exclude_categories=["Cs", "Cc"])),
    st.lists(st.integers(), max_size=3),
)  # fmt: skip
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
TREES = st.dictionaries(NAMES, LEAVES | st.dictionaries(NAMES, LEAVES, max_size=3), min_size=1, max_size=5)


@given(tree=TREES)
def test_what_hydra_writes_is_read_as_it_was(tmp_path_factory, tree):
    run = tmp_path_factory.getbasetemp()
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(tree)), encoding="utf-8")
    if "format" not in tree:
        assert config_leaves(run) == flat(read_config(run, needs=()))


# -- speed -------------------------------------------------------------------------------------------------------------


def test_three_files_of_a_run_are_opened_and_no_others(make_run, row, tmp_path):
    """What a load costs on a cluster's file system. Masks, curves and figures are not touched."""
    for seed in range(50):
        run = make_run(f"{seed:012x}", [row(0), row(1)], seed=seed)
        (run / "status.json").write_text(json.dumps(asdict(Status(state="done"))))
        for name in ("curves.csv", "study.log", "masks/round_000.safetensors", "rounds/round_000.json"):
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text("not to be read")
    opened: list[str] = []
    watching = True

    def watch(event, given):  # a hook cannot be taken away again
        if watching and event == "open":
            opened.append(os.fspath(given[0]) if not isinstance(given[0], int) else "")

    sys.addaudithook(watch)
    table = load_runs(tmp_path)
    watching = False
    assert len(table) == 100
    inside = sorted(path for path in opened if str(path).startswith(str(tmp_path)))
    wanted = ("config.yaml", "rounds.jsonl", "status.json")
    assert inside == sorted(str(tmp_path / f"{seed:012x}" / name) for seed in range(50) for name in wanted)


# -- training curves ---------------------------------------------------------------------------------------------------

CURVE = """round,control,copy,step,split,loss,accuracy
0,,0,0,validation,2.3,0.17
0,,0,100,train,0.57,
1,,0,100,train,0.5,
1,reinit,0,100,train,0.6,
1,reinit,1,100,train,0.7,
"""


def test_curves_are_those_of_the_rows(seeds):
    for run in (seeds / "lth").iterdir():
        (run / "curves.csv").write_text(CURVE)
    every = curves(seeds)
    assert list(every.columns) == ["run", "seed", "round", "control", "copy", "step", "split", "loss", "accuracy"]
    assert every["seed"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert every["loss"].tolist() == [2.3, 0.57, 0.5, 0.6, 0.7] * 3
    assert every["control"].isna().tolist() == [True, True, True, False, False] * 3
    assert every["accuracy"].notna().sum() == 3
    table = load_runs(seeds)
    part = curves(table[(table["round"] == 1) & (table["copy"] == 1)])
    assert part[["control", "loss"]].to_numpy().tolist() == [["reinit", 0.7]] * 3
    tickets = curves(table[table["control"].isna()])
    assert tickets["loss"].tolist() == [2.3, 0.57, 0.5] * 3


def test_curves_of_a_study_without_controls(make_run, row):
    run = make_run("a", [row(0)])
    (run / "curves.csv").write_text("".join(CURVE.splitlines(keepends=True)[:3]))
    assert curves(run)["loss"].tolist() == [2.3, 0.57]


def test_a_study_without_curves_is_named(make_run, row):
    run = make_run("a", [row(0)])
    with pytest.raises(LotteryError, match=r"curves\.csv: no training curves"):
        curves(run)
    (run / "curves.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LotteryError, match=r"curves\.csv: has no column 'round', expected round, control"):
        curves(run)
